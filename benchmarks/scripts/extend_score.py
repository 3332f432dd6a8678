"""Score models that were extended by another cell type, by type."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from anndata import AnnData
from threadpoolctl import threadpool_limits

from bdm.evaluation.cells import FEWEST_FOR_MEANS, FLOOR, Cells, RealCells, match
from bdm.evaluation.distances import energy_distance
from bdm.evaluation.evaluate import resampling_seeds
from bdm.evaluation.metrics import cross_validated_probabilities, forest, joint_components
from bdm.evaluation.resampling import draw_resample
from bdm.evaluation.scores import auc
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.model.model import BranchedModel
from bdm.settings import EvaluationSettings, SamplerSettings


def scores_by_set(
    real: RealCells,
    sets: dict[str, Cells],
    cell_types: Iterable[str],
    *,
    with_floor: bool = True,
    with_auc: bool = False,
    n_repeats: int,
    seed: int,
) -> pd.DataFrame:
    """Score sets of cells of some types, as `bdm evaluate` does: means over draws of cells.

    Returns
    -------
    Table with ``set``, ``cell_type``, ``n_test``, ``energy`` and, if requested, ``forest_auc``; of types with enough
    test cells.
    """
    training, test = (only(cells, cell_types) for cells in (real.training, real.test))
    most, rows = EvaluationSettings().max_cells_per_type, []
    for draw_seed in resampling_seeds(n_repeats, seed=seed):
        trial = draw_resample(training, test, max_cells_per_type=most, seed=draw_seed)
        floor = {FLOOR: trial.floor} if with_floor else {}
        for name, cells in {**floor, **sets}.items():
            table = scores(only(cells, cell_types), trial.test, with_auc=with_auc, seed=draw_seed)
            rows.append(table.assign(set=name))
    means = pd.concat(rows).groupby(["set", "cell_type"], sort=False).mean().reset_index()
    n_test = means["cell_type"].map(test.n_by_type)
    return means.assign(n_test=n_test)[n_test >= FEWEST_FOR_MEANS]


@threadpool_limits.wrap(limits=1)
def scores(cells: Cells, test: Cells, *, with_auc: bool, seed: int) -> pd.DataFrame:
    """Energy distance, and AUC of the random forest, of each type in the space of all."""
    matched = match(cells, test, seed=seed)
    components = joint_components(matched.query.expression, matched.test.expression, seed=seed)
    chances = cross_validated_probabilities(forest(seed=seed), *components, seed=seed) if with_auc else None
    rows = []
    for cell_type in np.unique(matched.test.cell_type):
        places = matched.query.cell_type == cell_type, matched.test.cell_type == cell_type
        row = {"cell_type": cell_type, "energy": energy_distance(*at(components, places))}
        rows.append(row | ({"forest_auc": auc(*at(chances, places))} if chances else {}))
    return pd.DataFrame(rows)


def at(pair: tuple[np.ndarray, np.ndarray], places: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Take rows of both of a pair."""
    return [values[where] for values, where in zip(pair, places, strict=True)]


def generated(model: BranchedModel, n_by_type: pd.Series, *, seed: int) -> AnnData:
    """Generate the requested number of cells of each type of the model."""
    wanted = {name: int(n_by_type[name]) for name in model.cell_types}
    return generate_cells(model, request_cells(model, wanted), SamplerSettings(), seed=seed)


def check_unchanged(before: AnnData, after: AnnData) -> None:
    """Stop if cells of known types are not the same to the last bit after a type was added."""
    known = after[: before.n_obs]
    same_names = (known.obs["cell_type"].astype(str) == before.obs["cell_type"].astype(str)).all()
    same_counts = (known.X != before.X).nnz == 0
    if not (same_names and same_counts and (known.obsm["latent"] == before.obsm["latent"]).all()):
        raise SystemExit("Cells of known types changed with the extension.")


def only(cells: Cells, cell_types: Iterable[str]) -> Cells:
    """Take the cells of the given types."""
    return cells[np.isin(cells.cell_type, list(cell_types))]


def types_by_size(real: RealCells) -> list[str]:
    """Name all types, most training cells first."""
    return real.training.n_by_type.sort_values(ascending=False, kind="stable").index.tolist()


def scored_types(real: RealCells) -> list[str]:
    """Name the types with enough test cells, most training cells first."""
    enough = set(real.test.types(fewest=FEWEST_FOR_MEANS))
    return [name for name in types_by_size(real) if name in enough]
