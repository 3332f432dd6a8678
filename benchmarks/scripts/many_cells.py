"""Simulate many cell types, that come from each other by branches, as cells to learn from."""

from pathlib import Path

import typer
from synthetic_cells import SyntheticSettings, synthesise

from bdm.files import write_json
from bdm.hierarchy.tree import Clade

N_GENES = 2100  # 500 types change 2,020 of them


def nested(clade: Clade) -> str | list:
    """Tree as nested lists, which bdm reads."""
    return [nested(child) for child in clade.children] if clade.children else clade.name


def main(cells: Path, tree: Path, *, n_types: int = 500, n_cells: int = 40, seed: int = 0) -> None:
    """Write cells, ``n_cells`` of every type, and the tree that they were made from."""
    settings = SyntheticSettings(
        n_types=n_types,
        n_genes=N_GENES,
        balanced=True,
        min_cells=n_cells,
        max_cells=n_cells,
        library_size=6000,
        module_size=2,
        min_log2_fold_change=2.0,
    )
    simulated = synthesise(settings, seed=seed)
    simulated.adata.write_h5ad(cells, compression="gzip")
    write_json(tree, nested(simulated.tree))


if __name__ == "__main__":
    typer.run(main)
