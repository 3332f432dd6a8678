"""Compare variation between generated donors with left-out real donors."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import typer
from scipy import sparse
from tidy import tidy, write_rows

from bdm.api import BranchedDiffusion
from bdm.data.prepare import read_prepared

MIN_CELLS = 5  # per donor and type
EXPRESSED = 1.0  # minimum counts per 10,000 of compared genes


def by_donor(adata: ad.AnnData, cell_type: str, genes: pd.Index) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return counts and donor indices of cells of a type.

    Donors with few cells are left out.
    """
    cells = adata[(adata.obs["cell_type"] == cell_type).to_numpy(), genes]
    counts, donor = sparse.csr_matrix(cells.X, dtype=float), cells.obs["donor"].astype(str)
    enough = (donor.map(donor.value_counts()) >= MIN_CELLS).to_numpy() & (counts.getnnz(axis=1) > 0)
    return counts[enough], pd.factorize(donor[enough])[0]


def summed(values: sparse.csr_matrix | np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sum the rows of each group."""
    member = sparse.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))))
    total = member @ values
    return np.asarray(total.todense() if sparse.issparse(total) else total)


def between_and_within(values: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate variances between and within groups by analysis of variance."""
    size = np.bincount(group).astype(float)
    means = summed(values, group) / size[:, None]
    n_groups, n = len(size), len(values)
    among = (size[:, None] * (means - values.mean(axis=0)) ** 2).sum(axis=0) / (n_groups - 1)
    inside = ((values - means[group]) ** 2).sum(axis=0) / (n - n_groups)
    effective = (n - (size**2).sum() / n) / (n_groups - 1)
    return np.maximum((among - inside) / effective, 0), inside


def differences(adata: ad.AnnData, cell_type: str, genes: pd.Index) -> dict[str, np.ndarray]:
    """Measure differences between donors in a cell type.

    Returns
    -------
    pseudobulk
        Variance between donors of log pseudobulks (counts per 10,000, plus 0.5), by gene.
    intraclass
        Share of variance between donors in log-normalised cells, by gene.
    depth
        Share of variance between donors in log library sizes.
    first
        Share of the first principal component in the variance of pseudobulks.
    """
    counts, donor = by_donor(adata, cell_type, genes)
    sums, size = summed(counts, donor), np.asarray(counts.sum(axis=1))
    bulk = np.log(1e4 * sums / sums.sum(axis=1, keepdims=True) + 0.5)
    between, within = between_and_within(np.log1p(counts.toarray() * (1e3 / size)), donor)
    between_size, within_size = between_and_within(np.log(size), donor)
    spread = np.linalg.svd(bulk - bulk.mean(axis=0), compute_uv=False) ** 2
    return {
        "pseudobulk": bulk.var(axis=0, ddof=1),
        "intraclass": between / np.maximum(between + within, 1e-12),
        "depth": between_size / (between_size + within_size),
        "first": spread[:1] / spread.sum(),
    }


def composition(adata: ad.AnnData, cell_types: list[str]) -> float:
    """Average over types the standard deviation of their shares between donors."""
    numbers = pd.crosstab(adata.obs["donor"].astype(str), adata.obs["cell_type"].astype(str))
    numbers = numbers.reindex(columns=cell_types, fill_value=0)
    return float(numbers.div(numbers.sum(axis=1), axis=0).std().mean())


def scores(adata: ad.AnnData, real: ad.AnnData, cell_types: list[str]) -> dict[str, float]:
    """Compare differences between donors with real donors.

    Scores are ratios, and correlations over genes (``_r``).
    """
    rows = []
    for cell_type in cell_types:
        cells = real[(real.obs["cell_type"] == cell_type).to_numpy()]
        mean = np.asarray(cells.X.sum(axis=0)).ravel()
        genes = real.var_names[1e4 * mean / mean.sum() > EXPRESSED]
        measured, expected = (differences(cells, cell_type, genes) for cells in (adata, real))
        row = {
            name: measured[name].mean() / expected[name].mean()
            for name in ("pseudobulk", "intraclass", "depth", "first")
        }
        for name in ("pseudobulk", "intraclass"):
            row[f"{name}_r"] = np.corrcoef(np.sqrt(measured[name]), np.sqrt(expected[name]))[0, 1]
        rows.append(row)
    ratio = composition(adata, cell_types) / composition(real, cell_types)
    return pd.DataFrame(rows).mean().to_dict() | {"composition": ratio}


def types_with_donors(real: ad.AnnData, training: ad.AnnData) -> list[str]:
    """List cell types with several donors with enough cells in both sets."""

    def enough(adata: ad.AnnData) -> set[str]:
        numbers = pd.crosstab(adata.obs["donor"].astype(str), adata.obs["cell_type"].astype(str))
        return set(numbers.columns[(numbers >= 2 * MIN_CELLS).sum() >= 4])

    return sorted(enough(real) & enough(training))


def new_donors(
    model: BranchedDiffusion, n_donors: int, n_cells: int, *, variation: float | str, seed: int
) -> ad.AnnData:
    """Generate ``n_cells`` cells for each new donor.

    Donors differ as learned, or with ``variation`` 0 not at all.
    """
    samples = {"donors": n_donors, "cells": n_cells, "variation": variation}
    composition = {"concentration": "learned" if variation == "learned" else "none"}
    return model.simulate({"samples": samples, "composition": composition}, seed=seed)


def main(prepared: Path, model: Path, out: Path, *, seed: int = 0) -> None:
    """Write scores of new donors, and of donors without differences.

    Test cells come from left-out donors. The floor is the training donors.
    """
    cells, fitted = read_prepared(prepared), BranchedDiffusion.load(model)
    is_test = (cells.obs["split"] == "test").to_numpy()
    left_out, training = cells[is_test].copy(), cells[~is_test].copy()
    n_donors = left_out.obs["donor"].nunique()
    n_cells = round(left_out.n_obs / n_donors)
    sets = {
        "floor": training,
        "learned": new_donors(fitted, n_donors, n_cells, variation="learned", seed=seed),
        "alike": new_donors(fitted, n_donors, n_cells, variation=0, seed=seed),
    }
    cell_types = types_with_donors(left_out, training)
    rows = [{"method": name, **scores(donors, left_out, cell_types)} for name, donors in sets.items()]
    write_rows(tidy(pd.DataFrame(rows), ["method"]), out)


if __name__ == "__main__":
    typer.run(main)
