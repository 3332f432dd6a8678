"""Score the same predicted means as counts, shifted cells or dense values."""

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from predicted_cells import PREDICTED, score_predicted
from scipy import sparse
from sklearn.decomposition import PCA
from tidy import tidy, write_rows

from bdm._core.seeds import numpy_generator
from bdm.data.prepare import read_prepared

N_STEPS, N_SIMULATED = 20, 300  # iterations to match the predicted means, and cells per iteration
N_COMPONENTS = 30
MIN_COUNTS = 100  # for estimating a gene's dispersion; genes with fewer counts have the median
DISPERSION = (0.05, 2)


def log_cp10k(counts: np.ndarray) -> np.ndarray:
    """Return ``log1p(CP10k)`` of dense counts."""
    return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def as_counts(counts: np.ndarray, mean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sample negative binomial counts with a mean of ``log1p(CP10k)``.

    Library sizes and dispersions come from ``counts``. Shares of genes are fitted by simulation, with the same random
    numbers in each iteration.
    """
    size = counts.sum(axis=1, keepdims=True)
    expected = size * counts.sum(axis=0) / counts.sum()
    excess = ((counts - expected) ** 2 - expected).sum(axis=0) / np.maximum((expected**2).sum(axis=0), 1e-12)
    is_known = counts.sum(axis=0) >= MIN_COUNTS
    dispersion = np.clip(np.where(is_known, excess, np.median(excess[is_known])), *DISPERSION)

    def sampled(share: np.ndarray, size: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        rate = generator.gamma(1 / dispersion, dispersion, (len(size), len(share)))
        return generator.poisson(size * share * rate)

    share, seed = np.expm1(mean) / np.expm1(mean).sum(), int(generator.integers(2**31))
    many = np.resize(size, (max(len(size), N_SIMULATED), 1))
    for _ in range(N_STEPS):
        simulated = log_cp10k(sampled(share, many, np.random.default_rng(seed))).mean(axis=0)
        share *= np.divide(mean, simulated, out=np.ones_like(mean), where=simulated > 0).clip(1 / 3, 3)
        share /= share.sum()
    return sampled(share, size, generator)


def as_shifted(counts: np.ndarray, mean: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Shift log-normalised cells to the mean of each gene."""
    values = log_cp10k(counts)
    return np.maximum(values + mean - values.mean(axis=0), 0)


def as_dense(counts: np.ndarray, mean: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Shift principal components of log-normalised cells, without counting noise."""
    values = log_cp10k(counts)
    pca = PCA(min(N_COMPONENTS, len(values) - 1), svd_solver="full").fit(values)
    smooth = pca.inverse_transform(pca.transform(values))
    return np.maximum(smooth + mean - smooth.mean(axis=0), 0)


FORMS = {"counts": as_counts, "control cells, shifted": as_shifted, "dense values": as_dense}


def means_by_type(counts: dict[str, np.ndarray], real: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Predict means: real means, and control means plus mean change elsewhere."""
    before = {cell_type: log_cp10k(cells).mean(axis=0) for cell_type, cells in counts.items()}
    after = {cell_type: log_cp10k(cells).mean(axis=0) for cell_type, cells in real.items()}
    changes = {
        cell_type: np.mean([after[name] - before[name] for name in before if name != cell_type], axis=0)
        for cell_type in before
    }
    common = {cell_type: np.maximum(before[cell_type] + change, 0) for cell_type, change in changes.items()}
    return {"of real cells": after, "by the common response": common}


def by_type(adata: AnnData, cell_types: list[str]) -> dict[str, np.ndarray]:
    """Return counts by type."""
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    return {cell_type: adata.X[labels == cell_type].toarray().astype(float) for cell_type in cell_types}


def predicted_cells(
    counts: dict[str, np.ndarray], means: dict[str, np.ndarray], form: str, generator: np.random.Generator
) -> AnnData:
    """Generate cells of all types with the predicted means."""
    parts = [FORMS[form](cells, means[cell_type], generator) for cell_type, cells in counts.items()]
    values = sparse.csr_matrix(np.concatenate(parts), dtype=np.float32)
    cell_type = np.repeat(list(counts), [len(part) for part in parts])
    return AnnData(values, obs=pd.DataFrame({"cell_type": cell_type}, index=map(str, range(len(cell_type)))))


def main(
    prepared: Path,
    out: Path,
    *,
    control: str = "CTRL",
    min_cells: int = 60,
    n_top_genes: int = 100,
    n_repeats: int = 3,
    seed: int = 0,
) -> None:
    """Write scores of each form on the top genes, as means over cell types.

    Types need ``min_cells`` cells in both conditions. ``control`` is the ``obs["condition"]`` of control cells.
    """
    adata = read_prepared(prepared)
    is_control = (adata.obs["condition"].astype(str) == control).to_numpy()
    numbers = pd.crosstab(adata.obs["cell_type"].astype(str), is_control)
    cell_types = list(numbers.index[(numbers >= min_cells).all(axis=1)])
    before, after = adata[is_control], adata[~is_control]
    counts, real = by_type(before, cell_types), by_type(after, cell_types)
    numbers, rows = {"n_top_genes": n_top_genes, "n_repeats": n_repeats, "seed": seed}, []
    for name, means in means_by_type(counts, real).items():
        for form in FORMS:
            predicted = predicted_cells(counts, means, form, numpy_generator(seed, name, form))
            predicted.var_names = adata.var_names
            sets = score_predicted(before, after, predicted, **numbers).groupby("set", sort=False).mean()
            is_shown = (sets.index == PREDICTED) | (len(rows) == 0)  # all other sets are equal in all evaluations
            rows.append(sets[is_shown].rename({PREDICTED: form}).rename_axis("method").reset_index().assign(means=name))
    table = pd.concat(rows)
    write_rows(tidy(table, ["method", "means"]), out)


if __name__ == "__main__":
    typer.run(main)
