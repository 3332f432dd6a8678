"""Levels of proteins: quantiles of counts in each population, and the map that gives counts these quantiles."""

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
CELLS_OF_QUANTILE = 10  # at least: of fewer cells, quantiles would be their counts, and disclose who they are


@dataclass(frozen=True)
class Levels:
    """What the decoder expects of the proteins in a population, before they get the quantiles of training cells."""

    log_factor: Tensor  # by which means of the decoder differ from those of training cells, proteins
    quantiles: Tensor  # of log levels at means that have this factor, quantiles x proteins


def protein_columns(var: pd.DataFrame) -> slice:
    """Columns of the features that have levels, as they are no shares of a library size; none in RNA alone."""
    return next((modality.features for modality in modalities_of(var) if not modality.normalised), slice(0, 0))


def training_levels(cells: ad.AnnData, columns: slice, *, seed: int) -> dict[str, Tensor]:
    """Quantiles of the proteins, by their columns, in each population of cells; nothing where there are none."""
    if columns.start == columns.stop:
        return {}
    rows = cells.obs.groupby(cells.obs["sub_population"].astype(str)).indices
    return {
        name: quantiles(
            cells.X[chosen][:, columns].toarray(), numpy_generator(seed, "levels", name), n_cells=len(chosen)
        )
        for name, chosen in rows.items()
    }


def log_levels(counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Logarithms of counts that are spread over the unit intervals above them, so that no two are the same."""
    return np.asarray(np.log(counts + generator.uniform(1e-9, 1, counts.shape)))


def quantiles(counts: np.ndarray, generator: np.random.Generator, *, n_cells: int) -> Tensor:
    """Quantiles of the log levels of counts (cells x proteins), as many as ``n_cells`` have; quantiles x proteins.

    They are interpolated between the means of equal parts of the sorted levels.
    """
    n_parts = min(max(n_cells // CELLS_OF_QUANTILE, 1), N_QUANTILES)
    parts = np.array_split(np.sort(log_levels(counts, generator), axis=0), n_parts)
    middle, probability = ((np.arange(number) + 0.5) / number for number in (n_parts, N_QUANTILES))
    means = np.stack([part.mean(axis=0) for part in parts])
    return torch.from_numpy(np.stack([np.interp(probability, middle, column) for column in means.T], axis=1))


def mean_count(quantiles_of_levels: Tensor) -> Tensor:
    """Mean counts of proteins whose log levels have these quantiles."""
    return (quantiles_of_levels.exp() - 0.5).mean(dim=0).clamp(min=0.01)


def mapped(counts: np.ndarray, before: Tensor, after: Tensor, generator: np.random.Generator) -> np.ndarray:
    """Map counts (cells x proteins) whose quantiles are ``before`` to counts whose quantiles are ``after``.

    Between quantiles, log levels are interpolated; beyond them, counts change by the factor of the outermost quantile.
    """
    levels = [
        np.interp(x, old, new) + np.minimum(x - old[0], 0) + np.maximum(x - old[-1], 0)
        for x, old, new in zip(log_levels(counts, generator).T, before.numpy().T, after.numpy().T, strict=True)
    ]
    return np.asarray(np.floor(np.exp(np.stack(levels, axis=1))))
