"""Protein levels: quantiles in each population, and quantile mapping of counts."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.seeds import numpy_generator
from bdm.data.modalities import modalities_of

N_QUANTILES = 32
CELLS_OF_QUANTILE = 10  # minimum cells per quantile; with fewer, quantiles would disclose the counts of single cells


@dataclass(frozen=True)
class ProteinLevels:
    """Protein levels in a population as the decoder generates them, before quantile mapping."""

    log_factor: Tensor  # log ratio of mean counts in training cells to means of the decoder, proteins
    quantiles: Tensor  # quantiles of log levels, after scaling the means by this factor, quantiles x proteins


def protein_columns(var: pd.DataFrame) -> slice:
    """Return the columns of proteins (features without a library size); may be empty."""
    return next((modality.features for modality in modalities_of(var) if not modality.normalised), slice(0, 0))


def training_levels(cells: ad.AnnData, columns: slice, *, seed: int) -> dict[str, Tensor]:
    """Compute quantiles of the proteins in each population; empty without proteins."""
    if columns.start == columns.stop:
        return {}
    members = cells.obs.groupby(cells.obs["sub_population"].astype(str)).indices
    return {
        name: quantiles(cells.X[rows][:, columns].toarray(), numpy_generator(seed, "levels", name), n_cells=len(rows))
        for name, rows in members.items()
    }


def log_levels(counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the log of counts plus uniform noise in (0, 1), which breaks ties."""
    return np.asarray(np.log(counts + generator.uniform(1e-9, 1, counts.shape)))


def quantiles(counts: np.ndarray, generator: np.random.Generator, *, n_cells: int) -> Tensor:
    """Compute quantiles of log levels by interpolation between means of equal parts.

    Returns ``N_QUANTILES`` x proteins. ``n_cells`` is the number of real cells behind ``counts`` (cells x proteins);
    each part has at least ``CELLS_OF_QUANTILE`` of them.
    """
    n_parts = min(max(n_cells // CELLS_OF_QUANTILE, 1), N_QUANTILES)
    parts = np.array_split(np.sort(log_levels(counts, generator), axis=0), n_parts)
    middle, probability = ((np.arange(n) + 0.5) / n for n in (n_parts, N_QUANTILES))
    means = np.stack([part.mean(axis=0) for part in parts])
    return torch.from_numpy(np.stack([np.interp(probability, middle, column) for column in means.T], axis=1))


def mean_count(quantiles_of_levels: Tensor) -> Tensor:
    """Return the mean count of each protein, given quantiles of its log level."""
    return (quantiles_of_levels.exp() - 0.5).mean(dim=0).clamp(min=0.01)


def map_quantiles(counts: np.ndarray, before: Tensor, after: Tensor, generator: np.random.Generator) -> np.ndarray:
    """Map counts (cells x proteins) from the quantiles ``before`` to the quantiles ``after``.

    Log levels are interpolated between quantiles. Beyond them, counts change by the factor of the outermost quantile.
    """
    levels = [
        np.interp(x, old, new) + np.minimum(x - old[0], 0) + np.maximum(x - old[-1], 0)
        for x, old, new in zip(log_levels(counts, generator).T, before.numpy().T, after.numpy().T, strict=True)
    ]
    return np.asarray(np.floor(np.exp(np.stack(levels, axis=1))))
