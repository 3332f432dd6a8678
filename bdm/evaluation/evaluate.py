import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from bdm.evaluation.cells import Cells, TypedCells, sample_at_most, set_name
from bdm.evaluation.genes import marker_genes, variable_genes
from bdm.evaluation.memorisation import QueryCells, memorisation_shares
from bdm.evaluation.resampling import FLOOR, SIZE_LIMITS, Repeat, SizeLimits, draw_repeats
from bdm.evaluation.scores import Reference, Scores, score_cells
from bdm.progress import progress
from bdm.settings import EvaluationSettings
from bdm.threads import using_threads

logger = logging.getLogger(__name__)

FEWEST_QUERY_CELLS = 500  # copies are sought among so many judged cells, however many training cells there are


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of sets of cells, averaged over repeats; the floor is the first set.

    Attributes
    ----------
    overall
        `OverallScores` x sets, with two rows more: ``f1_ratio``, F1 over that of the floor, and ``copying``, the share
        of cells nearer to training than to test cells, numbers being equal; 0.5 without copying.
    by_type
        (set, cell_type) x `TypeScores`; without types of a single test cell.
    n_cells
        Cells at hand: cell types x ``test``, ``train`` and the generated sets.
    markers
        Marker genes by type, as column indices.
    test, judged, seed
        Cells and seed of the last repeat, the floor among ``judged``.
    bounds
        Most cells that the steps of judging took.
    """

    overall: pd.DataFrame
    by_type: pd.DataFrame
    n_cells: pd.DataFrame
    markers: dict[str, np.ndarray]
    test: Cells
    judged: dict[str, Cells]
    seed: int
    bounds: SizeLimits

    def __repr__(self) -> str:
        n_test, n_types = int(self.n_cells["test"].sum()), len(self.n_cells)
        scores = self.overall.to_string(float_format="{:.3f}".format)
        return f"Evaluation by {n_test:,} test cells of {n_types} types\n{scores}"

    @property
    def n_compared(self) -> pd.DataFrame:
        """Cells compared at a time: cell types x ``test``, the floor and the generated sets."""
        compared = {name: cells.n_by_type for name, cells in {"test": self.test, **self.judged}.items()}
        return pd.DataFrame(compared, index=self.n_cells.index).fillna(0).astype(int)


@using_threads()
def evaluate(
    training: TypedCells,
    test: TypedCells,
    generated: Mapping[str, TypedCells],
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    bounds: SizeLimits = SIZE_LIMITS,
    seed: int = 0,
) -> Evaluation:
    """Judge sets of generated cells by test cells, and some training cells in the same way, as the floor."""
    names = ", ".join(map(set_name, generated))
    logger.info("Comparing %s with %d test cells of %d types.", names, len(test), len(test.n_by_type))
    repeats = draw_repeats(
        training,
        test,
        generated,
        seeds_of_draws(settings.n_repeats, seed=seed),
        max_cells_per_type=settings.max_cells_per_type,
        max_cells=bounds.compared,
    )
    marking = sample_at_most(training, most=bounds.marking, seed=seed)
    markers, pair_genes = marker_genes(marking), variable_genes(marking)
    del marking

    judgements = defaultdict(list)
    for repeat in progress(repeats, total=len(repeats), doing="judging", unit="draw"):
        reference = Reference(repeat.test, markers, pair_genes, bounds)
        for name, cells in repeat.judged.items():
            judgements[name].append(score_cells(cells, reference, seed=repeat.seed))
    return Evaluation(
        overall=overall_table(judgements, memorisation_by_set(repeats, training, pairs=bounds.pairs)),
        by_type=by_type_table(judgements),
        n_cells=n_cells_table({"test": test, "train": training, **generated}),
        markers=markers,
        test=repeats[-1].test,
        judged=repeats[-1].judged,
        seed=repeats[-1].seed,
        bounds=bounds,
    )


def seeds_of_draws(n_repeats: int, *, seed: int) -> list[int]:
    """Give each repeat a seed that scikit-learn takes."""
    return list(map(int, np.random.default_rng(seed).integers(2**31, size=n_repeats)))


def memorisation_by_set(repeats: list[Repeat], training: TypedCells, *, pairs: int) -> pd.Series:
    """Average over repeats the share of cells that are nearer to training than to test cells."""
    most = max(pairs // len(training), FEWEST_QUERY_CELLS)
    names, suspects = [], []
    for repeat in repeats:
        for name, cells in repeat.judged.items():
            own_rows = repeat.floor_rows if name == FLOOR else None
            names.append(name)
            suspects.append(QueryCells.of(cells, repeat.test, own_rows, most=most, seed=repeat.seed))
    return pd.Series(memorisation_shares(suspects, training)).groupby(names, sort=False).mean()


def overall_table(judgements: dict[str, list[Scores]], copying: pd.Series) -> pd.DataFrame:
    """Average overall scores over repeats, and put two more behind F1."""
    table = pd.DataFrame(
        {
            name: pd.DataFrame([asdict(repeat.overall) for repeat in repeats]).mean()
            for name, repeats in judgements.items()
        }
    )
    more = pd.DataFrame({"f1_ratio": table.loc["f1"] / table.loc["f1", FLOOR], "copying": copying}).T[table.columns]
    place = table.index.get_loc("f1") + 1
    return pd.concat([table[:place], more, table[place:]])


def by_type_table(judgements: dict[str, list[Scores]]) -> pd.DataFrame:
    """Average scores by type over repeats."""
    rows = [
        {"set": name, "cell_type": cell_type, **asdict(scores)}
        for name, repeats in judgements.items()
        for repeat in repeats
        for cell_type, scores in repeat.by_type.items()
    ]
    return pd.DataFrame(rows).groupby(["set", "cell_type"], sort=False).mean()


def n_cells_table(sets: dict[str, TypedCells]) -> pd.DataFrame:
    """Count cells by type, types of most test cells first."""
    table = pd.DataFrame({name: cells.n_by_type for name, cells in sets.items()}).fillna(0).astype(int)
    return table.sort_values("test", ascending=False, kind="stable").rename_axis("cell_type")
