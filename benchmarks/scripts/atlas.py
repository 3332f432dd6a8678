"""Simulate an atlas on disk: many cells of many types with a planted hierarchy, of which few are ever in memory."""

from pathlib import Path
from typing import Annotated

import anndata as ad
import h5py
import pandas as pd
import typer
from synthetic_cells import SyntheticSettings, count_blocks, sample_truth

from bdm.data.matrix import appended_rows
from bdm.files import atomic_write
from bdm.seeds import numpy_generator


def main(
    out: Path,
    *,
    n_cells: int = 1_000_000,
    n_types: int = 100,
    n_genes: int = 2000,
    library_size: Annotated[float, typer.Option(help="Median; 150 counts are of some 5% of 2,000 genes.")] = 150,
    seed: int = 0,
) -> None:
    """Write an AnnData file with counts in X and types in obs; cells of all types are mixed."""
    settings = SyntheticSettings(
        n_types=n_types, n_genes=n_genes, balanced=True, library_size=library_size, module_size=8
    )
    cell_types = tuple(f"type {i + 1:03}" for i in range(n_types))
    _, _, population = sample_truth(cell_types, settings, seed=seed)
    cell_type = numpy_generator(seed, "types").integers(n_types, size=n_cells)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(cell_type, cell_types)}, index=[f"cell {i}" for i in range(n_cells)]
    )
    var = pd.DataFrame(index=[f"gene {i + 1}" for i in range(n_genes)])
    with atomic_write(out) as path:
        ad.AnnData(obs=obs, var=var).write_h5ad(path)
        with (
            h5py.File(path, "r+") as file,
            appended_rows(file, "X", n_columns=n_genes, max_entries=n_cells * n_genes) as append,
        ):
            for block in count_blocks(population, cell_type, settings, seed=seed):
                append(block)


if __name__ == "__main__":
    typer.run(main)
