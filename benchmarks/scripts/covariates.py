"""Generate left-out cells at intermediate covariate values, by bdm and baselines.

Genes are the 1,000 most variable in all cells, left-out cells included.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from distances import N_NEAREST, Rows, sample_rows, scored
from scipy.sparse import csr_matrix
from sklearn.linear_model import PoissonRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer

from bdm._core.seeds import numpy_generator
from bdm.api import BranchedDiffusion
from bdm.settings import PrepareSettings, Settings

PSEUDOTIME = "diffusion_pseudotime"


@dataclass(frozen=True)
class Task:
    """Left-out and remaining cells of a type, with their covariate values."""

    cell_type: str
    real: AnnData
    remaining: AnnData
    at: np.ndarray  # of ``real``
    known: np.ndarray  # of ``remaining``

    def nearest(self, side: slice) -> np.ndarray:
        """Return rows of cells nearest to the left-out median: below, above or both."""
        away = (self.known - np.median(self.at))[:, None] * np.array([-1, 1])
        away = np.where(away > 0, away, np.inf)[:, side].min(axis=1)
        return np.argsort(away, kind="stable")[: min(N_NEAREST, int(np.isfinite(away).sum()))]


BELOW, ABOVE, BOTH = slice(0, 1), slice(1, 2), slice(0, 2)


def with_pseudotime(cells: AnnData, label_key: str, root: str) -> AnnData:
    """Add diffusion pseudotime from the cell nearest to the mean of a type."""
    scaled = cells.copy()
    sc.pp.normalize_total(scaled, target_sum=1e4)
    sc.pp.log1p(scaled)
    sc.pp.pca(scaled, n_comps=30, random_state=0)
    sc.pp.neighbors(scaled, n_neighbors=15, random_state=0)
    sc.tl.diffmap(scaled, random_state=0)
    rows = np.flatnonzero((cells.obs[label_key] == root).to_numpy())
    x = scaled.obsm["X_pca"][rows]
    scaled.uns["iroot"] = int(rows[((x - x.mean(axis=0)) ** 2).sum(axis=1).argmin()])
    sc.tl.dpt(scaled)
    cells.obs[PSEUDOTIME] = scaled.obs["dpt_pseudotime"].to_numpy(float)
    return cells[np.isfinite(cells.obs[PSEUDOTIME])].copy()


def nearest_cells(task: Task, seed: int) -> AnnData:
    """Sample real cells of the type at the nearest values."""
    return task.remaining[sample_rows(task.nearest(BOTH), task.real.n_obs, numpy_generator(seed, "nearest"))]


def mixture(task: Task, seed: int) -> AnnData:
    """Sample real cells of the type, half from below, half from above."""
    generator, n = numpy_generator(seed, "mixture"), task.real.n_obs // 2
    below = sample_rows(task.nearest(BELOW), n, generator)
    above = sample_rows(task.nearest(ABOVE), task.real.n_obs - n, generator)
    return task.remaining[np.concatenate([below, above])]


def splines(task: Task, seed: int) -> AnnData:
    """Sample negative binomial counts around a Poisson spline of each gene.

    Genes are independent.
    """
    generator = numpy_generator(seed, "splines")
    counts = task.remaining.X.toarray().astype(float)
    size = counts.sum(axis=1)
    log_size = np.interp(task.at, *sorted_pair(task.known, np.log(size)))
    spread = float(np.std(np.log(size)))
    new_size = np.exp(log_size + spread * generator.standard_normal(len(task.at)))
    model = make_pipeline(SplineTransformer(4, knots="quantile", include_bias=False), PoissonRegressor(alpha=1e-3))
    rate, dispersion = np.zeros((len(task.at), counts.shape[1])), np.full(counts.shape[1], 1e-3)
    for gene in np.flatnonzero(counts.sum(axis=0) > 0):
        model.fit(task.known[:, None], counts[:, gene] / size * 1e3, poissonregressor__sample_weight=size / size.mean())
        fitted = model.predict(task.known[:, None]) * size / 1e3
        excess = ((counts[:, gene] - fitted) ** 2 - fitted).sum() / (fitted**2).sum()
        rate[:, gene], dispersion[gene] = model.predict(task.at[:, None]), max(excess, 1e-3)
    mean = rate * new_size[:, None] / 1e3
    sampled = generator.poisson(generator.standard_gamma(1 / dispersion, mean.shape) * dispersion * mean)
    return AnnData(csr_matrix(sampled.astype(np.float32)), var=task.real.var)


def sorted_pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort by x, and smooth y by a running mean over a fifth."""
    order, width = np.argsort(x, kind="stable"), max(len(x) // 5, 1)
    smooth = pd.Series(y[order]).rolling(width, center=True, min_periods=1).mean()
    return x[order], smooth.to_numpy()


METHODS: dict[str, Callable[[Task, int], AnnData]] = {
    "nearest": nearest_cells,
    "mixture": mixture,
    "splines": splines,
}


def without_middles(cells: AnnData, cell_types: list[str], *, time_key: str, label_key: str, seed: int) -> Rows:
    """Score cells generated for the middle third of each type.

    The middle thirds of all types are left out together.
    """
    value, cell_type = cells.obs[time_key].to_numpy(float), cells.obs[label_key].astype(str).to_numpy()
    left_out = {}
    for name in cell_types:
        low, high = np.quantile(value[cell_type == name], [1 / 3, 2 / 3])
        left_out[name] = (cell_type == name) & (value >= low) & (value <= high)
    kept = ~np.any(list(left_out.values()), axis=0)
    model = fitted(cells[kept], label_key=label_key, covariate_key=time_key, seed=seed)
    rows: Rows = []
    for name, is_left_out in left_out.items():
        is_known = kept & (cell_type == name)
        task = Task(name, cells[is_left_out].copy(), cells[is_known].copy(), value[is_left_out], value[is_known])
        request = pd.DataFrame({"cell_type": name, "n_cells": 1, time_key: task.at})
        generated = {"bdm": model.generate(request, seed=seed)} | {
            name: method(task, seed) for name, method in METHODS.items()
        }
        rows += [{"left_out": name, "score": "types"} | row for row in scored(generated, task.real, seed)]
    return rows


def fitted(cells: AnnData, *, label_key: str | None, covariate_key: str | None, seed: int) -> BranchedDiffusion:
    """Fit a model to all genes of the cells."""
    settings = Settings(prepare=PrepareSettings(genes="all", min_cells_per_gene=0, seed=seed))
    model = BranchedDiffusion(
        cells.copy(), label_key=label_key, covariate_key=covariate_key, settings=settings, seed=seed
    )
    return model.fit()
