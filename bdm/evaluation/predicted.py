"""Evaluation of cells that any method predicted for a condition."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.stats import ttest_ind
from sklearn.metrics import euclidean_distances, r2_score

from bdm._core.errors import InputError, abbreviated
from bdm._core.files import provenance, write_table
from bdm._core.parallel import using_threads
from bdm._core.progress import progress
from bdm._core.schema import checked
from bdm._core.seeds import numpy_generator
from bdm._core.store import Result
from bdm.data.cell_sets import read_column
from bdm.data.cells import FLOOR, MIN_CELLS_FOR_MEANS, UNCHANGED, Cells
from bdm.data.gene_tests import Agreement
from bdm.data.read import rna_in
from bdm.evaluation.metrics import PairDistances
from bdm.settings import PredictedEvaluationSettings

logger = logging.getLogger(__name__)

DEFAULTS = PredictedEvaluationSettings()
PREDICTED, COMMON_RESPONSE = "predicted", "common_response"  # sets of cells, besides the floor and unchanged cells
TOP, ALL = "top", "all"  # genes
POOLED = "cells of all types"  # label of all cells without a column of cell types
COUNTS, LOG_NORMALISED = "raw counts", "log-normalised values"
MIN_CELLS = {"control": 2 * MIN_CELLS_FOR_MEANS, "real": 2 * MIN_CELLS_FOR_MEANS, "predicted": MIN_CELLS_FOR_MEANS}
MAX_LOG = 20  # maximum of log-normalised values; log1p of a million is 14
MAX_SCALE = 1.5  # maximum ratio of totals on one scale
LEVEL = 0.01  # false positive rate of the test for a response


@dataclass(frozen=True, repr=False)
class PredictedEvaluation(Result):
    """Scores of predicted cells of a condition, averaged over repeats.

    Each repeat splits the real cells at random into halves.

    Attributes
    ----------
    scores
        (cell_type, set, genes) x ``n_cells`` and scores, see :func:`bdm.evaluation.predicted.score`. Sets are
        ``floor`` (half of the real cells), ``predicted``, ``common_response`` (control cells, shifted by the mean
        change of other types; absent without other types), and ``unchanged`` (control cells). Genes are ``top`` (those
        that change most) or ``all``. Without a column of cell types, the only type is ``cells of all types``.
    n_top_genes
        Number of the top genes.
    values
        Whether ``X`` of each file was read as raw counts or log-normalised values.
    without_response
        Types without a significant response of real cells, by the energy distance on all genes.
    provenance
        Version, packages, seed, settings, and checksums of the files.
    """

    kind = "predicted"

    scores: pd.DataFrame
    n_top_genes: int
    values: dict[str, str]
    without_response: tuple[str, ...]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        return str(self.overall.to_string(float_format="{:.3f}".format))

    @property
    def overall(self) -> pd.DataFrame:
        """Scores averaged over cell types, (genes, score) x sets."""
        means = self.scores.drop(columns="n_cells").groupby(["genes", "set"], sort=False).mean()
        tables = {genes: means.loc[genes].T.dropna(how="all") for genes in (TOP, ALL)}
        return pd.concat(tables, names=["genes", "score"])

    @property
    def positions(self) -> pd.DataFrame:
        """E-distances on the top genes, rescaled, cell types x sets.

        The floor is 0, and unchanged cells are 1.
        """
        distances = self.scores["edistance"].xs(TOP, level="genes").unstack("set")
        return distances.apply(rescale, axis=1)[list(self.scores.index.unique("set"))]

    @property
    def verdict(self) -> str:
        """Summary of the E-distance of predicted cells, in one sentence."""
        if len(self.without_response) == len(self.positions):
            return (
                "there is no response to predict: real cells of the condition are as near to control cells as by chance"
            )
        distances = self.overall.loc[(TOP, "edistance")]
        by_type = self.positions[PREDICTED].drop([*self.without_response]).sort_values()
        shown = {name: f"{max(position, 0):.0%}" for name, position in rescale(distances).items()}
        lowest, highest = (f"{max(by_type.iloc[i], 0):.0%} ({by_type.index[i]})" for i in (0, -1))
        parts = [
            f"E-distance {distances[PREDICTED]:z.2f} on the {self.n_top_genes} genes that change most",
            f"from {lowest} to {highest}" if len(by_type) > 1 else "",
            f"the common response of the other types: {shown[COMMON_RESPONSE]}"
            if COMMON_RESPONSE in shown
            else "no common response to compare with, as there are no other types",
            f"no response was seen in {abbreviated(sorted(self.without_response))}" if self.without_response else "",
        ]
        return (
            f"predicted cells are {shown[PREDICTED]} of the way from real cells ({distances[FLOOR]:z.2f}) to unchanged "
            f"control cells ({distances[UNCHANGED]:.2f}): {'; '.join(filter(None, parts))}"
        )

    def _write_tables(self, folder: Path) -> None:
        write_table(self.scores, folder / "scores.csv", index=True)


def rescale(distances: pd.Series) -> pd.Series:
    """Rescale the distances of sets: 0 for the floor, 1 for unchanged cells."""
    return (distances - distances[FLOOR]) / (distances[UNCHANGED] - distances[FLOOR])


@checked
@using_threads()
def evaluate_predicted(
    control: AnnData,
    real: AnnData,
    predicted: AnnData,
    settings: PredictedEvaluationSettings = DEFAULTS,
    *,
    seed: int = 0,
) -> PredictedEvaluation:
    """Compare predicted cells of a condition with real and with unchanged cells.

    Counts are normalised to ``log1p(CP10k)`` over the common genes; log-normalised values are used as they are. Each
    repeat splits the real cells of a type at random into two halves: the first is the reference, and the second is the
    floor. All sets have the same number of cells: the smallest of the second half, half of the control cells, and the
    predicted cells.

    Parameters
    ----------
    control
        Real cells without the condition, cells x genes, with raw counts or log-normalised values in ``X``.
    real
        Real cells in the condition, which the method was not fitted to.
    predicted
        Predicted cells in the condition; their cell types are scored.
    settings
        Column of cell types, number of top genes, repeats and cells.
    seed
        Seed of all random numbers.

    Returns
    -------
    Scores by cell type, set and genes.

    Raises
    ------
    InputError
        If there are too few common genes, cells or types, or values that are neither counts nor log-normalised.
    """
    inputs = {"control": rna_in(control), "real": rna_in(real), "predicted": rna_in(predicted)}
    if settings.label_key is None:
        logger.warning("No column of cell types is named by `settings.label_key=`, so %s are compared as one.", POOLED)
    cells = normalise_all(inputs, settings)
    cell_types, rows = select_types(cells), list[dict[str, Any]]()
    before, after = cells["control"], cells["real"]
    common = sorted(before.types(fewest=MIN_CELLS["control"]) & after.types(fewest=MIN_CELLS["real"]))
    changes = {cell_type: after.mean(cell_type) - before.mean(cell_type) for cell_type in common}
    for cell_type in progress(cell_types, total=len(cell_types), doing="scoring", unit="cell type"):
        other_changes = [change for name, change in changes.items() if name != cell_type]
        common_change = np.mean(other_changes, axis=0) if other_changes else None
        rows += score_type(cells, cell_type, common_change, settings, seed=seed)
    scores = pd.DataFrame(rows).groupby(["cell_type", "set", "genes"], sort=False).mean()
    return PredictedEvaluation(
        scores=scores,
        n_top_genes=settings.n_top_genes,
        values={name: normalised.kind for name, normalised in cells.items()},
        without_response=tuple(name for name in cell_types if not responds(cells, name, settings, seed=seed)),
        provenance=provenance(seed=seed, settings=asdict(settings)),
    )


# ---- cells


@dataclass(frozen=True)
class NormalisedCells:
    """Log-normalised expression of labelled cells."""

    values: sparse.csr_matrix  # cells x genes
    cell_type: np.ndarray
    kind: str  # of the input: COUNTS or LOG_NORMALISED

    def mean(self, cell_type: str) -> np.ndarray:
        """Compute the mean expression of a type, by gene."""
        return np.asarray(self.values[self.cell_type == cell_type].mean(axis=0)).ravel()

    def sampled(self, cell_type: str, *, most: int, generator: np.random.Generator) -> np.ndarray:
        """Sample at most ``most`` cells of a type, in random order."""
        rows = generator.permutation(np.flatnonzero(self.cell_type == cell_type))[:most]
        return self.values[rows].toarray().astype(float)

    def types(self, *, fewest: int) -> set[str]:
        """Return the types with at least ``fewest`` cells."""
        types, numbers = np.unique(self.cell_type, return_counts=True)
        return set(types[numbers >= fewest].tolist())


def normalise_all(cells: Mapping[str, AnnData], settings: PredictedEvaluationSettings) -> dict[str, NormalisedCells]:
    """Restrict all inputs to their common genes, and log-normalise them."""
    names = [adata.var_names for adata in cells.values()]
    for name, own in zip(cells, names, strict=True):
        if len(repeated := own[own.duplicated()]):
            raise InputError(f"{name} repeats the genes {abbreviated(repeated)}; make their names unique.")
    genes = names[0][names[0].isin(names[1]) & names[0].isin(names[2])]
    if len(genes) <= settings.n_top_genes:
        examples = ", ".join(f"{own[0]} in {name}" for name, own in zip(cells, names, strict=True) if len(own))
        raise InputError(
            f"There are {len(genes)} common genes ({examples}), too few for `n_top_genes={settings.n_top_genes}`; name "
            "genes consistently, or reduce the number."
        )
    if len(missing := reduce(pd.Index.union, names).difference(genes, sort=False)):
        logger.info("%d genes are compared; not all files have %s.", len(genes), abbreviated(missing))
    normalised = {name: normalise(adata, name, genes, settings.label_key) for name, adata in cells.items()}
    logger.info("X was taken as %s.", ", ".join(f"{part.kind} ({name})" for name, part in normalised.items()))
    totals = {name: np.median(np.asarray(part.values.expm1().sum(axis=1))) for name, part in normalised.items()}
    for name, total in totals.items():
        if max(total, totals["control"]) > MAX_SCALE * min(total, totals["control"]):
            logger.warning(
                "Cells of %s have %.0f counts before log1p, control cells %.0f; normalise all alike, or give counts.",
                *(name, total, totals["control"]),
            )
    return normalised


def normalise(adata: AnnData, name: str, genes: pd.Index, label_key: str | None) -> NormalisedCells:
    """Normalise counts to ``log1p(CP10k)``; keep log-normalised values."""
    if adata.X is None or not adata.n_obs:
        raise InputError(f"{name} has no cells with values in X; put raw counts or log-normalised values there.")
    values = sparse.csr_matrix(adata[:, genes].X, dtype=np.float32)
    is_count = values.data == np.rint(values.data)
    is_valid = np.isfinite(values.data) & (values.data >= 0)
    if values.data.max(initial=0) > MAX_LOG:
        is_valid &= is_count
    if not is_valid.all():
        at = is_valid.argmin()
        cell = adata.obs_names[np.searchsorted(values.indptr, at, side="right") - 1]
        raise InputError(
            f"{name} has {values.data[at]:g} for gene {genes[values.indices[at]]} in cell {cell}, which is neither a "
            "count nor log-normalised; give raw counts, or non-negative values of log1p(CP10k)."
        )
    if label_key is None:
        cell_type = np.full(adata.n_obs, POOLED)
    else:
        labels = read_column(adata.obs, name, label_key, label_key, strict=True, remedy="name another by `label_key=`")
        cell_type = labels.to_numpy(dtype=str)
    if not is_count.all():
        return NormalisedCells(values, cell_type, LOG_NORMALISED)
    return NormalisedCells(Cells(values, cell_type).expression, cell_type, COUNTS)


def select_types(cells: Mapping[str, NormalisedCells]) -> list[str]:
    """Return the predicted types with enough predicted, real and control cells."""
    types = cells["predicted"].types(fewest=1)
    for name in ("control", "real"):
        if lacking := sorted(types - cells[name].types(fewest=1)):
            raise InputError(
                f"predicted has cells of types that {name} lacks: {abbreviated(lacking)}; use the same "
                "names of types, and leave out others."
            )
    enough = types.intersection(*(cells[name].types(fewest=fewest) for name, fewest in MIN_CELLS.items()))
    needed = ", ".join(f"{fewest} of {name}" for name, fewest in MIN_CELLS.items())
    few = f"too few cells of {abbreviated(sorted(types - enough))}; a type needs {needed}"
    if not enough:
        raise InputError(f"There are {few}.")
    if types - enough:
        logger.warning("Some types are not scored, as there are %s.", few)
    if unpredicted := sorted(cells["real"].types(fewest=1) - types):
        logger.info("Not scored, as there are no predicted cells: %s.", abbreviated(unpredicted))
    return sorted(enough)


# ---- scores


def responds(
    cells: Mapping[str, NormalisedCells], cell_type: str, settings: PredictedEvaluationSettings, *, seed: int
) -> bool:
    """Test whether real cells of the condition differ from control cells."""
    generator, most = numpy_generator(seed, cell_type), settings.max_cells_per_type
    control, real = (cells[name].sampled(cell_type, most=most, generator=generator) for name in ("control", "real"))
    pairs = PairDistances(euclidean_distances(np.concatenate([control, real])), len(control))
    return bool(pairs.energy > pairs.energy_chance.largest(LEVEL))


def score_type(
    cells: Mapping[str, NormalisedCells],
    cell_type: str,
    common_change: np.ndarray | None,
    settings: PredictedEvaluationSettings,
    *,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Score the sets of one type.

    Yields a row per repeat, set and choice of genes. ``common_degs`` is the share of top genes that a set has in common
    with real cells, as in scPerturBench.
    """
    most, n_top = 2 * settings.max_cells_per_type, settings.n_top_genes
    for repeat in range(settings.n_repeats):
        generator = numpy_generator(seed, cell_type, repeat)
        control, real, predicted = (part.sampled(cell_type, most=most, generator=generator) for part in cells.values())
        first, second = np.array_split(real, 2)
        n = min(len(second), len(control) // 2, len(predicted))
        sets = {FLOOR: second[:n], PREDICTED: predicted[:n]}
        if common_change is not None:
            sets[COMMON_RESPONSE] = np.maximum(control[:n] + common_change, 0)
        sets[UNCHANGED] = control[:n]
        top, top_of_half = (top_genes(part, control, n_top) for part in (real, first))
        for name, query in sets.items():
            common_degs = len(np.intersect1d(top_genes(query, control, n_top), top_of_half)) / n_top
            for genes, columns, extra in ((TOP, top, {"common_degs": common_degs}), (ALL, slice(None), {})):
                scores = score(query[:, columns], first[:, columns], control[:, columns].mean(axis=0))
                yield {"cell_type": cell_type, "set": name, "genes": genes, "n_cells": n, **extra, **scores}


def score(query: np.ndarray, real: np.ndarray, control_mean: np.ndarray) -> dict[str, float]:
    """Score cells against real cells of the condition, both log-normalised, cells x genes.

    - ``pearson_delta``: correlation of mean changes from control cells;
    - ``mse``, ``mae``, ``r2_mean``: agreement of means; ``r2_var``: agreement of variances;
    - ``edistance``: unbiased energy distance: 0 on average for cells of one distribution, so it may be negative;
    - ``mmd``: with a Gaussian kernel; pertpy's, with a linear kernel, is ``mse`` times the number of genes;
    - ``direction_match``: share of the genes that change in real cells with a predicted change of the same sign.
    """
    mean, real_mean = query.mean(axis=0), real.mean(axis=0)
    change, real_change = mean - control_mean, real_mean - control_mean
    pairs = PairDistances(euclidean_distances(np.concatenate([query, real])), len(query))
    return {
        "pearson_delta": Agreement(change, real_change).correlation,
        "edistance": pairs.energy,
        "mmd": pairs.maximum_mean_discrepancy,
        "direction_match": float((np.sign(change) == np.sign(real_change))[real_change != 0].mean()),
        "r2_mean": float(r2_score(real_mean, mean)),
        "r2_var": float(r2_score(real.var(axis=0), query.var(axis=0))),
        "mse": float(np.mean((mean - real_mean) ** 2)),
        "mae": float(np.mean(np.abs(mean - real_mean))),
    }


def top_genes(cells: np.ndarray, control: np.ndarray, number: int) -> np.ndarray:
    """Select genes by absolute t-statistic (Welch's test), as column indices."""
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings(action="ignore"):
        statistic = np.nan_to_num(ttest_ind(cells, control, equal_var=False).statistic)
    return np.argsort(-np.abs(statistic), kind="stable")[:number]
