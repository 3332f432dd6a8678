"""Change cells of a data set: their counts, labels, split or numbers."""

from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from scipy import sparse

from bdm._core.files import atomic_write
from bdm._core.seeds import numpy_generator
from bdm.data.modalities import parts_of
from bdm.data.read import read_cells

app = typer.Typer()

# Blood cell types by log1p counts of surface proteins
GATES = {
    "CD4 T": "CD3 > 5 & CD4 > 6.5 & CD8a < 5.5",
    "CD8 T": "CD3 > 5 & CD8a > 6 & CD4 < 5.5",
    "B": "CD3 < 5 & CD19 > 4 & CD14 < 5",
    "NK": "CD3 < 5 & CD19 < 4 & CD56 > 4.5 & CD14 < 5",
    "CD14+ monocyte": "CD3 < 5 & CD19 < 4 & CD14 > 5.5",
    "CD16+ monocyte": "CD3 < 5 & CD19 < 4 & CD14 < 5.5 & CD16 > 5.5 & CD56 < 4.5",
}


def gated(adata: AnnData) -> pd.Series:
    """Type cells by their proteins; missing outside gates and in several gates."""
    proteins = parts_of(adata)["prot"]
    levels = pd.DataFrame(np.log1p(proteins.X.toarray()), adata.obs_names, proteins.var_names.str.split("_").str[0])
    inside = pd.DataFrame({name: levels.eval(gate) for name, gate in GATES.items()})
    return inside.idxmax(axis=1).where(inside.sum(axis=1) == 1)


def thinned(adata: AnnData, fraction: float, *, seed: int) -> AnnData:
    """Keep each count with probability ``fraction``, and drop empty cells and genes."""
    x = sparse.csr_matrix(adata.X, copy=True)
    x.data = numpy_generator(seed, "thin").binomial(x.data.astype(np.int64), fraction).astype(np.float32)
    x.eliminate_zeros()
    kept = AnnData(x, obs=adata.obs, var=adata.var)
    return kept[x.getnnz(axis=1) > 0, x.getnnz(axis=0) > 0].copy()


def made_rare(prepared: AnnData, cell_type: str, n_cells: int, *, seed: int) -> AnnData:
    """Keep ``n_cells`` training and validation cells of a type.

    All test cells stay.
    """
    learned = ((prepared.obs["cell_type"] == cell_type) & (prepared.obs["split"] != "test")).to_numpy()
    left_out = numpy_generator(seed, "make rare", cell_type).permutation(np.flatnonzero(learned))[n_cells:]
    return prepared[np.setdiff1d(np.arange(prepared.n_obs), left_out)].copy()


def held_out(prepared: AnnData, column: str, within: str | None = None, *, fraction: float = 0.2, seed: int) -> AnnData:
    """Split prepared cells by donor, without cell types missing from any split.

    For all other donors, validation cells keep their split, and test cells become training cells.

    Parameters
    ----------
    column, within
        Columns of ``obs``: the donor, and the donor's group.
    fraction
        Share of donors in each group, at least one donor, for the test cells.
    """
    obs = prepared.obs
    donors = obs.drop_duplicates(column).astype(str).sort_values(column)
    groups = donors.groupby(within)[column] if within else [("all", donors[column])]
    test_donors: list[str] = []
    for name, members in groups:
        size = max(1, round(fraction * len(members)))
        test_donors += list(numpy_generator(seed, "hold out", str(name)).choice(members, size=size, replace=False))
    split = obs["split"].astype(str).where(obs["split"] != "test", "train")
    split = split.mask(obs[column].astype(str).isin(test_donors), "test")
    split = pd.Categorical(split, categories=["train", "validation", "test"])
    n_cells = pd.crosstab(obs["cell_type"].astype(str), split)
    is_kept = np.isin(obs["cell_type"], n_cells.index[(n_cells > 0).all(axis=1)])
    kept = prepared[is_kept].copy()
    kept.obs["split"] = split[is_kept]
    kept.obs["cell_type"] = kept.obs["cell_type"].cat.remove_unused_categories()
    return kept


def write(cells: AnnData, out: Path) -> None:
    """Write cells to an h5ad file."""
    with atomic_write(out) as path:
        cells.write_h5ad(path, compression="gzip")


@app.command()
def thin(cells: Path, out: Path, *, fraction: float = 0.1, seed: int = 0) -> None:
    """Thin counts to a lower sequencing depth."""
    write(thinned(read_cells(cells), fraction, seed=seed), out)


@app.command()
def several(
    cells: Path, out: Path, *, n_cells: Annotated[int, typer.Option()], gate: bool = False, seed: int = 0
) -> None:
    """Sample cells of several modalities; ``--gate`` types them by proteins."""
    adata = read_cells(cells)
    if gate:
        adata.obs["cell_type"] = gated(adata)
        adata = adata[adata.obs["cell_type"].notna()]
    rows = numpy_generator(seed, "several").permutation(adata.n_obs)[:n_cells]
    write(adata[np.sort(rows)].copy(), out)


@app.command()
def leave_out(cells: Path, out: Path, *, cell_type: Annotated[str, typer.Option()], seed: int = 0) -> None:
    """Drop the cells of a type."""
    adata = ad.read_h5ad(cells)
    write(adata[adata.obs["cell_type"] != cell_type], out)


@app.command()
def join_labels(cells: Path, out: Path, *, column: Annotated[str, typer.Option()], seed: int = 0) -> None:
    """Join cell type and another column to labels TYPE|VALUE."""
    adata = ad.read_h5ad(cells)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str) + "|" + adata.obs[column].astype(str)
    write(adata, out)


@app.command()
def shuffle_positions(cells: Path, out: Path, *, seed: int = 0) -> None:
    """Permute the positions of all cells."""
    adata = ad.read_h5ad(cells)
    adata.obsm["spatial"] = numpy_generator(seed, "positions").permutation(adata.obsm["spatial"])
    write(adata, out)


@app.command()
def hold_out(
    prepared: Path,
    out: Path,
    *,
    column: Annotated[str, typer.Option()],
    within: str | None = None,
    fraction: float = 0.2,
    seed: int = 0,
) -> None:
    """Use all cells of some donors, and no other cells, as test cells."""
    write(held_out(ad.read_h5ad(prepared), column, within, fraction=fraction, seed=seed), out)


@app.command()
def make_rare(
    prepared: Path,
    out: Path,
    *,
    cell_type: Annotated[str, typer.Option()],
    n_cells: Annotated[int, typer.Option()],
    seed: int = 0,
) -> None:
    """Keep few training cells of a frequent type, and all its test cells."""
    write(made_rare(ad.read_h5ad(prepared), cell_type, n_cells, seed=seed), out)


if __name__ == "__main__":
    app()
