from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from bdm.arrays import to_tensor
from bdm.autoencoder.cells import batch_codes, type_codes
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.checksums import read_checksummed_json
from bdm.data.h5ad import write_h5ad
from bdm.data.matrix import blocks_of_rows
from bdm.data.read import read_cells
from bdm.errors import InputError
from bdm.store import FORMAT
from bdm.threads import threads

BLOCK = 512  # cells that are encoded at a time


@dataclass(frozen=True)
class LatentCells:
    """Cells as the autoencoder sees them: a normal posterior over y = (latent, log library size) each.

    Attributes
    ----------
    mean, scale
        Of the posterior, cells x (latent dimensions + 1); the library size is known, so its scale is 0.
    cell_type
        Index of each cell's type among ``cell_types``.
    """

    mean: Tensor
    scale: Tensor
    cell_type: Tensor
    cell_types: tuple[str, ...]

    @property
    def n_cells(self) -> Tensor:
        """Number of cells of each type."""
        return torch.bincount(self.cell_type, minlength=len(self.cell_types))

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Draw y of the cells ``index`` from their posteriors, len(index) x (latent dimensions + 1)."""
        noise = torch.randn(len(index), self.mean.shape[1], generator=generator)
        return self.mean[index] + self.scale[index] * noise


def encode(adata: ad.AnnData, autoencoder: GeneAutoencoder) -> ad.AnnData:
    """Encode prepared counts, in memory or on disk, some cells after the others.

    Returns
    -------
    AnnData with the posterior mean of (latent, log library size) in ``X`` and its standard deviation in
    ``layers['scale']``, both cells x (latent dimensions + 1), and the ``obs`` of ``adata``.
    """
    cell_type = adata.obs["cell_type"].astype(str).to_numpy()
    types, codes = type_codes(adata, autoencoder.cell_types), batch_codes(adata, autoencoder.batches)
    types[np.isin(cell_type, list(autoencoder.own))] = 0  # the only type that a network of its own knows
    n_latent = autoencoder.network.shape.n_latent
    mean = torch.empty(adata.n_obs, n_latent + 1)
    scale = torch.zeros(adata.n_obs, n_latent + 1)

    def portions() -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
        for read, counts in blocks_of_rows(adata.X):
            for cells in cells_by_network(cell_type[read], autoencoder):
                for first in range(0, len(cells), BLOCK):
                    some = cells[first : first + BLOCK]
                    yield read.start + some, counts[some]

    @torch.no_grad()  # holds for the thread that it is said in
    def posterior(portion: tuple[np.ndarray, sparse.csr_matrix]) -> tuple[np.ndarray, Tensor, Tensor]:
        rows, counts = portion
        dense = to_tensor(counts.toarray())
        found = autoencoder.network_of(cell_type[rows[0]]).encode(dense, types[rows], codes[rows])
        return rows, torch.cat([found.mean, dense.sum(dim=1, keepdim=True).log()], dim=1), found.scale

    with threads() as run:
        for rows, of_rows, scale_of_rows in run(posterior, portions()):
            mean[rows], scale[rows, :-1] = of_rows, scale_of_rows
    names = [f"latent_{k}" for k in range(n_latent)] + ["log_library_size"]
    return ad.AnnData(
        mean.numpy(),
        obs=adata.obs,
        var=pd.DataFrame(index=names),
        layers={"scale": scale.numpy()},
    )


def cells_by_network(cell_type: np.ndarray, autoencoder: GeneAutoencoder) -> list[np.ndarray]:
    """Group cells by the network that encodes them: indices of those of the shared one, then of each type's own."""
    own = {name: np.flatnonzero(cell_type == name) for name in autoencoder.own}
    shared = np.flatnonzero(~np.isin(cell_type, list(own)))
    return [cells for cells in (shared, *own.values()) if len(cells)]


def latent_cells(adata: ad.AnnData, *, held_out: bool = False) -> LatentCells:
    """Take the cells to learn from (or the held-out test cells) from an AnnData made by :func:`encode`."""
    chosen = (adata.obs["split"] == "test").to_numpy() == held_out
    cell_type = adata.obs["cell_type"].cat
    return LatentCells(
        to_tensor(np.asarray(adata.X[chosen])),
        to_tensor(np.asarray(adata.layers["scale"][chosen])),
        to_tensor(cell_type.codes.to_numpy()[chosen].astype(np.int64)),
        tuple(cell_type.categories),
    )


def save_latent(folder: Path, latent: ad.AnnData, *, of: str) -> None:
    """Write latents into the folder of their autoencoder, whose checksum is ``of``."""
    latent.uns["autoencoder"] = of
    write_h5ad(Path(folder) / "latent.h5ad", latent)


def read_latent(folder: Path) -> ad.AnnData:
    """Read the latents in an autoencoder's folder.

    Raises
    ------
    InputError
        If there are none, or the file is not such, or of another autoencoder.
    """
    path = Path(folder) / "latent.h5ad"
    adata = read_cells(path)
    if "scale" not in adata.layers or not {"cell_type", "split"} <= set(adata.obs):
        raise InputError(f"{path} was not made by bdm autoencoder; run it first.")
    of = adata.uns.get("autoencoder")
    autoencoder = path.with_name("autoencoder.json")
    if of is not None and of != read_checksummed_json(autoencoder, "autoencoder", version=FORMAT)["checksum"]:
        raise InputError(f"{path} is of another autoencoder than the folder's; run bdm autoencoder anew.")
    return adata
