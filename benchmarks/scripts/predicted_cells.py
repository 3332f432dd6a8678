"""Scores of cells that any method predicts in a condition."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.stats import ttest_ind
from sklearn.metrics import euclidean_distances

from bdm._core.seeds import numpy_generator
from bdm.data.cells import FLOOR, UNCHANGED, Cells
from bdm.data.gene_tests import Agreement
from bdm.evaluation.metrics import energy_distance

PREDICTED, COMMON_RESPONSE = "predicted", "common_response"  # sets of cells, besides the floor and unchanged cells
MIN_CELLS = 10  # of a type in either condition, to take part in the common response
MAX_CELLS = 1000  # of a type in a comparison; half of them in each set


@dataclass(frozen=True)
class LogCells:
    """Log-normalised expression of labelled cells."""

    values: sparse.csr_matrix  # cells x genes
    cell_type: np.ndarray

    @classmethod
    def from_adata(cls, adata: AnnData) -> "LogCells":
        """Normalise counts to ``log1p(CP10k)``; keep log-normalised values."""
        values, cell_type = sparse.csr_matrix(adata.X, dtype=np.float32), adata.obs["cell_type"].to_numpy(str)
        is_count = (values.data == np.rint(values.data)).all()
        return cls(Cells(values, cell_type).expression if is_count else values, cell_type)

    def mean(self, cell_type: str) -> np.ndarray:
        """Compute the mean expression of a type, by gene."""
        return np.asarray(self.values[self.cell_type == cell_type].mean(axis=0)).ravel()

    def sampled(self, cell_type: str, generator: np.random.Generator) -> np.ndarray:
        """Sample cells of a type, in random order."""
        rows = generator.permutation(np.flatnonzero(self.cell_type == cell_type))[:MAX_CELLS]
        return self.values[rows].toarray().astype(float)

    def types(self) -> set[str]:
        """Return the types with enough cells."""
        types, numbers = np.unique(self.cell_type, return_counts=True)
        return set(types[numbers >= MIN_CELLS].tolist())


def score_predicted(
    control: AnnData, real: AnnData, predicted: AnnData, *, n_top_genes: int = 100, n_repeats: int = 5, seed: int
) -> pd.DataFrame:
    """Score predicted cells on the genes that change most, (cell_type, set) x scores.

    ``X`` of all has raw counts or log-normalised values of the same genes. Each repeat splits the real cells of a type
    at random into two halves: the first is the reference, and the second is the floor. All sets have as many cells. The
    ``position`` is the E-distance, rescaled: the floor is 0, and unchanged cells are 1.
    """
    cells = [LogCells.from_adata(adata[:, control.var_names]) for adata in (control, real, predicted)]
    before, after, _ = cells
    changes = {name: after.mean(name) - before.mean(name) for name in sorted(before.types() & after.types())}
    rows = []
    for cell_type in np.unique(cells[2].cell_type).tolist():
        common = np.mean([change for name, change in changes.items() if name != cell_type], axis=0)
        for repeat in range(n_repeats):
            generator = numpy_generator(seed, cell_type, repeat)
            sampled = [part.sampled(cell_type, generator) for part in cells]
            rows += [{"cell_type": cell_type, **row} for row in score_sets(*sampled, common, n_top_genes)]
    scores = pd.DataFrame(rows).groupby(["cell_type", "set"], sort=False).mean()
    distance = scores["edistance"].unstack("set")
    position = distance.sub(distance[FLOOR], axis=0).div(distance[UNCHANGED] - distance[FLOOR], axis=0)
    return scores.assign(position=position.stack(future_stack=True))


def score_sets(
    control: np.ndarray, real: np.ndarray, predicted: np.ndarray, common_change: np.ndarray, n_top: int
) -> Iterator[dict[str, str | float]]:
    """Score the sets of one type, log-normalised, cells x genes.

    - ``common_degs``: share of top genes that a set has in common with real cells, as in scPerturBench;
    - ``pearson_delta``: correlation of mean changes from control cells;
    - ``edistance``: unbiased energy distance: 0 on average for cells of one distribution, so it may be negative.
    """
    first, second = np.array_split(real, 2)
    n = min(len(second), len(control) // 2, len(predicted))
    shifted = np.maximum(control[:n] + common_change, 0)
    sets = {FLOOR: second[:n], PREDICTED: predicted[:n], COMMON_RESPONSE: shifted, UNCHANGED: control[:n]}
    top, top_of_half = (top_genes(part, control, n_top) for part in (real, first))
    before, reference = control[:, top].mean(axis=0), first[:, top]
    for name, query in sets.items():
        of_top = query[:, top]
        distances = euclidean_distances(np.concatenate([of_top, reference]))
        yield {
            "set": name,
            "common_degs": len(np.intersect1d(top_genes(query, control, n_top), top_of_half)) / n_top,
            "pearson_delta": Agreement(of_top.mean(axis=0) - before, reference.mean(axis=0) - before).correlation,
            "edistance": energy_distance(distances, len(of_top)),
        }


def top_genes(cells: np.ndarray, control: np.ndarray, number: int) -> np.ndarray:
    """Select genes by absolute t-statistic (Welch's test), as column indices."""
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings(action="ignore"):
        statistic = np.nan_to_num(ttest_ind(cells, control, equal_var=False).statistic)
    return np.argsort(-np.abs(statistic), kind="stable")[:number]
