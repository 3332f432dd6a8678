"""Simulate cells with continuous structure, without clusters."""

from enum import StrEnum
from pathlib import Path

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from scipy import sparse
from synthetic_cells import shares

from bdm.files import atomic_write
from bdm.seeds import numpy_generator

N_GENES = 500
N_AXES = 4  # in which cells are on a curve
N_FACTORS = 2  # that vary around it
LIBRARY_SIZE = 1500  # median of cells
BRANCH_POINT = 0.4  # of a pseudotime from 0 to 1
SHARE_OF_FIRST = 0.6


class Shape(StrEnum):
    """Where cells are in log expression."""

    curve = "curve"
    branching = "branching"


def positions(shape: Shape, n_cells: int, generator: np.random.Generator) -> np.ndarray:
    """Positions of cells whose pseudotime is uniform, cells x ``N_AXES``."""
    time = generator.random(n_cells)
    if shape is Shape.curve:  # three quarters of a circle, and one and a half of another
        angle = 1.5 * np.pi * time
        return np.stack([2 * np.cos(angle), 2 * np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], axis=1)
    after = np.maximum(time - BRANCH_POINT, 0)  # two branches, both of which bend
    first = generator.random(n_cells) < SHARE_OF_FIRST
    x = np.zeros((n_cells, N_AXES))
    x[:, 0] = 4 * np.minimum(time, BRANCH_POINT)
    x[:, 1] = np.where(first, 5, -3) * after
    x[:, 2] = np.where(first, 6, 0) * after**2
    x[:, 3] = np.where(first, 0, 8) * after**2
    return x


def simulate(shape: Shape, n_cells: int, *, seed: int) -> AnnData:
    """Sample negative binomial counts of cells along a shape; the genes of a seed are the same for any number."""
    genes, cells = numpy_generator(seed, "genes"), numpy_generator(seed, "cells")
    base, loadings = genes.standard_normal(N_GENES), 0.5 * genes.standard_normal((N_AXES, N_GENES))
    factors = 0.2 * genes.standard_normal((N_FACTORS, N_GENES))
    inverse_dispersion = 5 * np.exp(0.5 * genes.standard_normal(N_GENES))
    x = positions(shape, n_cells, cells)
    library_size = LIBRARY_SIZE * np.exp(0.4 * cells.standard_normal((n_cells, 1)))
    mean = library_size * shares(base + x @ loadings + cells.standard_normal((n_cells, N_FACTORS)) @ factors)
    counts = cells.poisson(mean * cells.gamma(inverse_dispersion, size=mean.shape) / inverse_dispersion)
    obs = pd.DataFrame(index=[f"cell {i + 1}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"gene {i + 1}" for i in range(N_GENES)])
    return AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)


def main(shape: Shape, out: Path, *, cells: int = 5000, seed: int = 0) -> None:
    """Write simulated cells."""
    with atomic_write(out) as path:
        simulate(shape, cells, seed=seed).write_h5ad(path, compression="gzip")


if __name__ == "__main__":
    typer.run(main)
