"""Trees without a hierarchy: all populations separate at the highest noise level."""

from dataclasses import replace
from pathlib import Path

import typer

from bdm.autoencoder.latent import LatentCells, latent_cells, read_latent
from bdm.hierarchy.build import build_hierarchy
from bdm.hierarchy.files import save_hierarchy
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.settings import HierarchySettings


def flat_hierarchy(cells: LatentCells, *, seed: int) -> Hierarchy:
    """Give each population a branch of its own from the root."""
    tree = build_hierarchy(cells, HierarchySettings(n_bootstrap=0), seed=seed)
    root = Branch(tree.root.name, None, tree.sigma_max, int(cells.n_cells.sum()))
    populations = zip(cells.populations, cells.labels, cells.n_cells.tolist(), strict=True)
    leaves = (Branch(name, root.name, 0.0, n_cells, cell_type=label) for name, label, n_cells in populations)
    return replace(tree, branches=(root, *leaves))


def main(autoencoder: Path, out: Path, *, seed: int = 0) -> None:
    """Write the flat tree of an autoencoder, as `bdm hierarchy` writes a clustered one."""
    save_hierarchy(out, flat_hierarchy(latent_cells(read_latent(autoencoder)), seed=seed))


if __name__ == "__main__":
    typer.run(main)
