"""Make test cells of all cells of some donors, and of no others."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from anndata import AnnData

from bdm.data.prepare import read_prepared
from bdm.files import atomic_write
from bdm.seeds import numpy_generator

FRACTION = 0.2  # of the donors of each group


def donors_to_test(obs: pd.DataFrame, column: str, within: str | None, *, seed: int) -> list[str]:
    """Choose a fifth of the donors, and at least one, in each group of donors."""
    donors = obs.drop_duplicates(column).astype(str).sort_values(column)
    groups = donors.groupby(within)[column] if within else [("all", donors[column])]
    chosen = []
    for name, of_group in groups:
        size = max(1, round(FRACTION * len(of_group)))
        chosen += list(numpy_generator(seed, "hold out", str(name)).choice(of_group, size=size, replace=False))
    return sorted(chosen)


def held_out(adata: AnnData, column: str, within: str | None = None, *, seed: int) -> AnnData:
    """Split prepared cells by donor, without the cell types that a part has no cells of.

    Validation cells of the other donors stay validation cells, and their test cells become training cells.

    Parameters
    ----------
    column, within
        Columns of ``obs`` with the donor, and with the group of the donor, each of which is tested.
    """
    split = adata.obs["split"].astype(str).where(adata.obs["split"] != "test", "train")
    tested = adata.obs[column].astype(str).isin(donors_to_test(adata.obs, column, within, seed=seed))
    split = pd.Categorical(split.mask(tested, "test"), categories=["train", "validation", "test"])
    n_cells = pd.crosstab(adata.obs["cell_type"].astype(str), split)
    complete = n_cells.index[(n_cells > 0).all(axis=1)]
    whole = adata[np.isin(adata.obs["cell_type"], complete)].copy()
    whole.obs["split"] = split[np.isin(adata.obs["cell_type"], complete)]
    whole.obs["cell_type"] = whole.obs["cell_type"].cat.remove_unused_categories()
    return whole


def main(
    prepared: Path,
    out: Path,
    *,
    column: Annotated[str, typer.Option()],
    within: str | None = None,
    seed: int = 0,
) -> None:
    """Write prepared cells with another split."""
    cells = held_out(read_prepared(prepared), column, within, seed=seed)
    print(pd.crosstab(cells.obs[column].astype(str), cells.obs["split"]))
    with atomic_write(out) as path:
        cells.write_h5ad(path, compression="gzip")


if __name__ == "__main__":
    typer.run(main)
