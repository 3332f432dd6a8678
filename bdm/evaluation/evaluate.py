import logging
from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from bdm.errors import InputError
from bdm.evaluation.cells import FEWEST_FOR_MEANS, Cells
from bdm.evaluation.fold_changes import marker_genes
from bdm.evaluation.gene_statistics import variable_genes
from bdm.evaluation.judge import Reference, judge
from bdm.evaluation.scores import Judgement
from bdm.evaluation.trial import draw_trial

logger = logging.getLogger(__name__)

FLOOR = "floor"


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How cells are judged.

    Attributes
    ----------
    n_repeats
        Draws of cells over which scores are averaged.
    max_cells_per_type
        Most cells of a type compared at a time.
    """

    n_repeats: int = 3
    max_cells_per_type: int = 500

    def __post_init__(self):
        for name, least in {"n_repeats": 1, "max_cells_per_type": FEWEST_FOR_MEANS}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, but must be {least} or more.")


@dataclass(frozen=True)
class Evaluation:
    """Scores of sets of cells, averaged over repeats; the floor is the first set.

    Attributes
    ----------
    overall
        `OverallScores` x sets, and ``f1_ratio``: F1 over that of the floor.
    by_type
        (set, cell_type) x `TypeScores`; without types of a single test cell.
    n_cells
        Cells at hand: cell types x ``test``, ``train`` and the generated sets.
    markers
        Marker genes by type, as column indices.
    test, judged, seed
        Cells and seed of the last repeat, the floor among ``judged``.
    """

    overall: pd.DataFrame
    by_type: pd.DataFrame
    n_cells: pd.DataFrame
    markers: dict[str, np.ndarray]
    test: Cells
    judged: dict[str, Cells]
    seed: int


# The matrices are small: more threads would wait for each other, and change the last digits.
@threadpool_limits.wrap(limits=1)
def evaluate(
    training: Cells,
    test: Cells,
    generated: dict[str, Cells],
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    seed: int = 0,
) -> Evaluation:
    """Judge sets of generated cells by test cells, and some training cells in the same way, as the floor."""
    markers, pair_genes = marker_genes(training), variable_genes(training)
    logger.info("Judging %s by %d test cells of %d types.", ", ".join(generated), len(test), len(test.n_by_type))
    judgements = defaultdict(list)
    for draw_seed in tqdm(seeds_of_draws(settings.n_repeats, seed=seed), desc="Judging", disable=None):
        trial = draw_trial(training, test, max_cells_per_type=settings.max_cells_per_type, seed=draw_seed)
        judged = {FLOOR: trial.floor, **generated}
        for name, cells in judged.items():
            known = trial.rest if name == FLOOR else training
            reference = Reference(trial.test, known, markers, pair_genes)
            judgements[name].append(judge(cells, reference, seed=draw_seed))
    return Evaluation(
        overall=overall_table(judgements),
        by_type=by_type_table(judgements),
        n_cells=n_cells_table({"test": test, "train": training, **generated}),
        markers=markers,
        test=trial.test,
        judged=judged,
        seed=draw_seed,
    )


def seeds_of_draws(n_repeats: int, *, seed: int) -> list[int]:
    """Give each repeat a seed that scikit-learn takes."""
    return np.random.default_rng(seed).integers(2**31, size=n_repeats).tolist()


def overall_table(judgements: dict[str, list[Judgement]]) -> pd.DataFrame:
    """Average overall scores over repeats."""
    table = pd.DataFrame(
        {
            name: pd.DataFrame([asdict(repeat.overall) for repeat in repeats]).mean()
            for name, repeats in judgements.items()
        }
    )
    ratio = (table.loc["f1"] / table.loc["f1", FLOOR]).to_frame("f1_ratio").T
    place = table.index.get_loc("f1") + 1
    return pd.concat([table[:place], ratio, table[place:]])


def by_type_table(judgements: dict[str, list[Judgement]]) -> pd.DataFrame:
    """Average scores by type over repeats."""
    rows = [
        {"set": name, "cell_type": cell_type, **asdict(scores)}
        for name, repeats in judgements.items()
        for repeat in repeats
        for cell_type, scores in repeat.by_type.items()
    ]
    return pd.DataFrame(rows).groupby(["set", "cell_type"], sort=False).mean()


def n_cells_table(sets: dict[str, Cells]) -> pd.DataFrame:
    """Count cells by type, types of most test cells first."""
    table = pd.DataFrame({name: cells.n_by_type for name, cells in sets.items()}).fillna(0).astype(int)
    return table.sort_values("test", ascending=False, kind="stable").rename_axis("cell_type")
