"""Simulate trees of cell types, conditions, lineages, atlases and continuous cells."""

from pathlib import Path
from typing import Annotated

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import typer
from scipy import sparse
from simulated_responses import evolved
from spatial_fields import simulate_fields
from synthetic_cells import SyntheticSettings, count_blocks, sample_truth, shares, synthesise

from bdm._core.files import atomic_write
from bdm._core.seeds import numpy_generator
from bdm.applications.relations.lineage_tree import read_lineage_tree
from bdm.data.matrix import appended_rows

N_GENES_OF_MANY = 2100  # 2,020 differ between 500 types
N_GENES_OF_ATLAS = 2000
LIBRARY_SIZE_OF_ATLAS = 150  # about 6% of genes detected

# Cells without clusters
N_GENES = 500
N_AXES = 4  # dimensions of the curve
N_FACTORS = 2  # variation around the curve
LIBRARY_SIZE = 1500  # median
BRANCH_POINT = 0.4  # pseudotime, from 0 to 1
SHARE_OF_FIRST = 0.6

# A lineage of eleven nodes, with first and last minute of each
LINEAGE = "(((a1,a2)a,(b1,b2)b)ab,(c1,c2)c)root_cell;"
LEAVES = ("a1", "a2", "b1", "b2", "c1", "c2")
BEGIN = {"root_cell": 0, "ab": 20, "c": 20, "a": 40, "b": 40, **dict.fromkeys(LEAVES, 60)}
END = {"root_cell": 20, "ab": 40, "c": 60, "a": 60, "b": 60, **dict.fromkeys(LEAVES, 100)}

app = typer.Typer()


def many_types(n_types: int, n_cells: int) -> SyntheticSettings:
    """Return settings for types of equal size with few, large changes."""
    return SyntheticSettings(
        n_types=n_types,
        n_genes=N_GENES_OF_MANY,
        balanced=True,
        min_cells=n_cells,
        max_cells=n_cells,
        library_size=6000,
        module_size=2,
        min_log2_fold_change=2.0,
    )


@app.command()
def types(out: Path, *, n_types: int = 500, n_cells: int = 40, seed: int = 0) -> None:
    """Write ``n_cells`` cells for each of many types."""
    with atomic_write(out) as path:
        synthesise(many_types(n_types, n_cells), seed=seed).adata.write_h5ad(path, compression="gzip")


@app.command()
def atlas(out: Path, *, n_types: int = 100, n_cells: int = 1_000_000, seed: int = 0) -> None:
    """Write shuffled cells of all types in blocks, with bounded memory."""
    settings = SyntheticSettings(
        n_types=n_types, n_genes=N_GENES_OF_ATLAS, balanced=True, library_size=LIBRARY_SIZE_OF_ATLAS, module_size=8
    )
    cell_types = tuple(f"type {i + 1:03}" for i in range(n_types))
    _, _, population = sample_truth(cell_types, settings, seed=seed)
    cell_type = numpy_generator(seed, "types").integers(n_types, size=n_cells)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(cell_type, cell_types)}, index=[f"cell {i}" for i in range(n_cells)]
    )
    var = pd.DataFrame(index=[f"gene {i + 1}" for i in range(settings.n_genes)])
    n_entries = n_cells * settings.n_genes
    with atomic_write(out) as path:
        ad.AnnData(obs=obs, var=var).write_h5ad(path)
        with (
            h5py.File(path, "r+") as file,
            appended_rows(file, "X", n_columns=settings.n_genes, max_entries=n_entries) as append,
        ):
            for block in count_blocks(population, cell_type, settings, seed=seed):
                append(block)


def positions(shape: str, n_cells: int, generator: np.random.Generator) -> np.ndarray:
    """Sample positions at uniform pseudotimes, cells x ``N_AXES``."""
    time = generator.random(n_cells)
    if shape == "curve":  # three quarters of a circle, and one and a half turns of a second circle
        angle = 1.5 * np.pi * time
        return np.stack([2 * np.cos(angle), 2 * np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], axis=1)
    after = np.maximum(time - BRANCH_POINT, 0)  # two bending branches
    first = generator.random(n_cells) < SHARE_OF_FIRST
    x = np.zeros((n_cells, N_AXES))
    x[:, 0] = 4 * np.minimum(time, BRANCH_POINT)
    x[:, 1] = np.where(first, 5, -3) * after
    x[:, 2] = np.where(first, 6, 0) * after**2
    x[:, 3] = np.where(first, 0, 8) * after**2
    return x


def continuous(shape: str, n_cells: int, *, seed: int) -> ad.AnnData:
    """Sample negative binomial counts along a shape.

    Genes depend on the seed, and not on the number of cells.
    """
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
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)


@app.command()
def curve(out: Path, *, n_cells: int = 5000, seed: int = 0) -> None:
    """Write cells along a curve in log expression."""
    with atomic_write(out) as path:
        continuous("curve", n_cells, seed=seed).write_h5ad(path, compression="gzip")


@app.command()
def branching(out: Path, *, n_cells: int = 5000, seed: int = 0) -> None:
    """Write cells along a branching curve."""
    with atomic_write(out) as path:
        continuous("branching", n_cells, seed=seed).write_h5ad(path, compression="gzip")


@app.command()
def conditions(
    out: Path,
    *,
    shared: Annotated[float, typer.Option(help="Share of the variance between responses that follows the tree.")],
    n_types: int = 7,
    n_conditions: int = 1,
    n_genes: int = 150,
    n_cells: int = 120,
    features: Annotated[Path | None, typer.Option(help="Table to write, with sets that respond alike.")] = None,
    seed: int = 0,
) -> None:
    """Write ``n_cells`` cells for each type and condition.

    Responses follow a tree of types. With ``features``, each set has five conditions.
    """
    generator, counts, obs = numpy_generator(seed, "conditions"), [], []
    n_sets, of_set = -(-n_conditions // 5), dict[int, np.ndarray]()
    profile = generator.standard_normal(n_genes) + 0.7 * evolved(n_types, n_genes, generator)
    for condition in range(n_conditions + 1):
        common = 0.5 * generator.standard_normal(n_genes) * (generator.random(n_genes) < 0.5)
        own = generator.standard_normal((n_types, n_genes))
        response = common + 0.6 * (np.sqrt(shared) * evolved(n_types, n_genes, generator) + np.sqrt(1 - shared) * own)
        if features is not None and condition:
            response = 0.9 * of_set.setdefault(condition % n_sets, response) + 0.4 * response
        share = shares(profile + (condition > 0) * response)
        name = f"condition {condition}" if condition else "control"
        for number in range(n_types):
            library_size = LIBRARY_SIZE * generator.lognormal(0, 0.3, (n_cells, 1))
            rate = generator.gamma(5, 1 / 5, (n_cells, n_genes)) * library_size * share[number]
            counts.append(sparse.csr_matrix(generator.poisson(rate), dtype=np.float32))
            obs += [(f"type {number + 1:03}", name)] * n_cells
    table = pd.DataFrame(obs, columns=["cell_type", "condition"], index=[f"cell {i + 1}" for i in range(len(obs))])
    var = pd.DataFrame(index=[f"gene {i + 1}" for i in range(n_genes)])
    with atomic_write(out) as path:
        ad.AnnData(sparse.vstack(counts, format="csr"), obs=table, var=var).write_h5ad(path, compression="gzip")
    if features is not None:
        member = np.eye(n_sets, dtype=int)[np.arange(1, n_conditions + 1) % n_sets]
        names = [f"condition {number + 1}" for number in range(n_conditions)]
        sets = pd.DataFrame(member, names, [f"set {number + 1}" for number in range(n_sets)])
        sets.rename_axis("condition").to_csv(features)


def simulated_lineage(*, seed: int, n_cells: int = 80) -> tuple[ad.AnnData, dict[str, np.ndarray]]:
    """Simulate cells of eleven nodes, with a random walk of log expression.

    Returns
    -------
    The cells, and the walk of each node, minutes x genes.
    """
    rng, tree, n_genes = np.random.default_rng(seed), read_lineage_tree(LINEAGE), 120
    walk: dict[str, np.ndarray] = {}
    for node, mother in zip(tree.nodes, tree.mother, strict=True):
        start = rng.normal(0, 1, n_genes) if mother < 0 else walk[tree.nodes[mother]][-1]
        steps = rng.normal(0, 0.12, (END[node] - BEGIN[node] + 1, n_genes))
        walk[node] = start + np.cumsum(steps, axis=0)
    counts, obs = [], []
    for node in tree.nodes:
        for _ in range(n_cells):
            minute = int(rng.integers(BEGIN[node], END[node]))
            rate = np.exp(walk[node][minute - BEGIN[node]])
            size = rng.lognormal(7, 0.3)
            counts.append(rng.poisson(rate / rate.sum() * size * rng.gamma(5, 1 / 5, n_genes)))
            obs.append((node, float(minute)))
    table = pd.DataFrame(obs, columns=["cell_type", "minutes"], index=[f"cell {i}" for i in range(len(obs))])
    names = pd.DataFrame(index=[f"gene {i}" for i in range(n_genes)])
    return ad.AnnData(sparse.csr_matrix(np.array(counts, dtype=np.float32)), obs=table, var=names), walk


@app.command()
def lineage(out: Path, *, seed: int = 0) -> None:
    """Write cells of all nodes and minutes of a lineage."""
    with atomic_write(out) as path:
        simulated_lineage(seed=seed)[0].write_h5ad(path, compression="gzip")


@app.command()
def fields(out: Path, *, n_cells: int = 2000, n_genes: int = 120, n_types: int = 4, seed: int = 0) -> None:
    """Write cells in space with known fields of expression."""
    with atomic_write(out) as path:
        simulate_fields(n_cells, n_genes, n_types, seed=seed).write_h5ad(path, compression="gzip")


if __name__ == "__main__":
    app()
