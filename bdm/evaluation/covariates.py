"""Scores of cells by bins of their covariates, and the expression of genes along these."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bdm.evaluation.cells import MIN_CELLS_FOR_MEANS, Cells, ResampledCells, TypedCells
from bdm.evaluation.metrics import PairDistances, joint_components

N_BINS, N_STEPS = 4, 10  # of equal numbers of test cells: for scores, and for the expression of genes
N_GENES = 12  # genes that vary most along a covariate, whose expression is tabulated
KEYS = ["covariate", "low", "high", "set"]
BIN_COLUMNS = [*KEYS, "n_cells", "n_test", "energy", "relative_energy"]
ALONG_COLUMNS = ["covariate", "gene", "value", "set", "mean", "error"]


def bins_of(test: TypedCells, n: int) -> dict[str, np.ndarray]:
    """Divide each covariate into bins of about the same numbers of test cells; returns their ends."""
    table = pd.DataFrame() if test.covariates is None else test.covariates
    ends = {str(name): np.unique(np.quantile(values, np.linspace(0, 1, n + 1))) for name, values in table.items()}
    return {name: of for name, of in ends.items() if len(of) > 1}


def bin_of(cells: Cells, name: str, ends: np.ndarray) -> np.ndarray:
    """Find the number of the bin of each cell; cells beyond the ends are in the first or the last one."""
    assert cells.covariates is not None
    return np.asarray(np.digitize(cells.covariates[name].to_numpy(), ends[1:-1]))


def score_bins(resamples: list[ResampledCells], bins: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Score each set in each bin of each covariate: energy distance to test cells, averaged over types and resamples.

    A type counts in a bin where five of its cells, and five of its test cells or more are; types weigh by their test
    cells.
    """
    rows = [row for of in resamples for name, cells in of.query.items() for row in scores_of_set(name, cells, of, bins)]
    if not rows:
        return pd.DataFrame({name: pd.Series(dtype=object if name in KEYS else float) for name in BIN_COLUMNS})
    return pd.DataFrame(rows)[BIN_COLUMNS].groupby(KEYS, sort=False).mean().reset_index()


def scores_of_set(
    name: str, cells: Cells, resample: ResampledCells, bins: Mapping[str, np.ndarray]
) -> list[dict[str, object]]:
    """Score a set in a resample, a row for each bin of each covariate that it has."""
    test, rows = resample.test, []
    if cells.covariates is None or not bins:
        return []
    x, y = joint_components(cells.expression, test.expression, seed=resample.seed)
    for covariate, ends in bins.items():
        if covariate not in cells.covariates:
            continue
        of_cells, of_test = bin_of(cells, covariate, ends), bin_of(test, covariate, ends)
        for number in range(len(ends) - 1):
            found = []
            for cell_type in test.n_by_type.index:
                here = (of_cells == number) & (cells.cell_type == cell_type)
                there = (of_test == number) & (test.cell_type == cell_type)
                if min(here.sum(), there.sum()) >= MIN_CELLS_FOR_MEANS:
                    distances = PairDistances.between(x[here], y[there])
                    found.append((there.sum(), distances.energy, distances.energy / distances.spread))
            weight, energy, relative = np.array(found, dtype=float).reshape(-1, 3).T
            rows.append(
                {
                    "covariate": covariate,
                    "low": ends[number],
                    "high": ends[number + 1],
                    "set": name,
                    "n_cells": (of_cells == number).sum(),
                    "n_test": (of_test == number).sum(),
                    "energy": weight @ energy / weight.sum() if len(weight) else np.nan,
                    "relative_energy": weight @ relative / weight.sum() if len(weight) else np.nan,
                }
            )
    return rows


def expression_along(sets: Mapping[str, Cells], test: Cells, genes: pd.Index) -> pd.DataFrame:
    """Tabulate the mean ``log1p(CP10k)`` of genes in each set (and ``test``), in bins of each covariate.

    ``value`` is the mean of the covariate in the test cells of a bin, and ``error`` the standard error of the mean. The
    genes are those that vary most between bins of test cells, in standard errors.
    """
    rows = []
    for covariate, ends in bins_of(test, N_STEPS).items():
        having = {name: of for name, of in sets.items() if of.covariates is not None and covariate in of.covariates}
        means = {name: means_by_bin(of, bin_of(of, covariate, ends), len(ends) - 1) for name, of in having.items()}
        means["test"] = means_by_bin(test, bin_of(test, covariate, ends), len(ends) - 1)
        assert test.covariates is not None
        values = test.covariates[covariate].groupby(bin_of(test, covariate, ends)).mean()
        mean, error = means["test"]
        varying = np.nan_to_num(np.nanvar(mean, axis=0) / np.nanmean(error**2 + 1e-6, axis=0))
        for gene in np.argsort(-varying, kind="stable")[:N_GENES]:
            for name, (mean, error) in means.items():
                for number, value in values.items():
                    rows.append((covariate, genes[gene], value, name, mean[number, gene], error[number, gene]))
    numbers = ALONG_COLUMNS[4:]
    table = pd.DataFrame(rows, columns=ALONG_COLUMNS)
    return table.astype(dict.fromkeys(["value", *numbers], float))


def means_by_bin(cells: Cells, number: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean expression in each bin and its standard error, bins x genes; NaN in bins of fewer than two cells."""
    mean, error = np.full((2, n_bins, cells.counts.shape[1]), np.nan)
    for i in range(n_bins):
        expression = cells.expression[number == i].toarray()
        if len(expression) > 1:
            mean[i], error[i] = expression.mean(axis=0), expression.std(axis=0, ddof=1) / np.sqrt(len(expression))
    return mean, error
