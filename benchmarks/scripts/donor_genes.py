"""List the genes of a data set without those in which donors differ most."""

from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import pandas as pd
import typer
from donors_scores import of_type, types_with_donors

from bdm.files import atomic_write


def intraclass(adata: ad.AnnData) -> pd.Series:
    """Share of the variance of log-normalised cells that is between donors, by gene: the mean over cell types."""
    genes, cell_types = adata.var_names, types_with_donors(adata, adata)
    return pd.Series(np.mean([of_type(adata, name, genes)["intraclass"] for name in cell_types], axis=0), genes)


def main(cells: Path, out: Path, *, share: Annotated[float, typer.Option()]) -> None:
    """Write the names of all genes, without a share of them that has the largest intraclass correlations."""
    adata = ad.read_h5ad(cells)
    by_gene = intraclass(adata).sort_values(ascending=False, kind="stable")
    left_out = set(by_gene.index[: round(share * len(by_gene))])
    with atomic_write(out) as path:
        path.write_text("".join(f"{name}\n" for name in adata.var_names if name not in left_out), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
