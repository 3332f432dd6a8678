"""Score cells at left-out times: nodes of a lineage, and types."""

from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import pandas as pd
import typer
from covariates import PSEUDOTIME, with_pseudotime, without_middles
from distances import variable_genes
from lineages import without_nodes
from simulated import LINEAGE
from tidy import write_rows

from bdm.applications.relations.lineage_tree import read_lineage_tree
from bdm.data.counts import raw_counts
from bdm.settings import LineageSettings


def main(
    cells: Path,
    out: Path,
    *,
    time_key: str = PSEUDOTIME,
    label_key: str = "cell_type",
    root: Annotated[str | None, typer.Option(help="Type at the start of diffusion pseudotime.")] = None,
    tree: Annotated[str, typer.Option(help="Lineage tree in Newick.")] = LINEAGE,
    node: Annotated[list[str], typer.Option(help="NODE, or NODE:time for the middle third of its times.")] = [],  # noqa: B006
    cell_type: Annotated[list[str], typer.Option(help="Type with its middle third left out.")] = [],  # noqa: B006
    seed: int = 0,
) -> None:
    """Leave out nodes and types, and score the generated cells."""
    counts, rows = raw_counts(ad.read_h5ad(cells)), []
    settings, lineage = LineageSettings(label_key=label_key, time_key=time_key), read_lineage_tree(tree)
    if node:
        rows += without_nodes(counts, node, settings, lineage, seed)
    counts = counts[:, np.sort(variable_genes(counts))].copy()
    counts = counts[np.asarray(counts.X.sum(axis=1)).ravel() > 0].copy()
    if root is not None:
        counts = with_pseudotime(counts, label_key, root)
    if cell_type:
        rows += without_middles(counts, cell_type, time_key=time_key, label_key=label_key, seed=seed)
    write_rows(pd.DataFrame(rows)[["left_out", "n_cells", "method", "score", "value"]], out)


if __name__ == "__main__":
    typer.run(main)
