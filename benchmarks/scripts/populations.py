"""Populations of unlabelled cells by bdm and Leiden, with reference labels."""

from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import typer
from scipy import sparse
from sklearn.neighbors import KNeighborsTransformer
from tidy import LABEL

from bdm._core.files import atomic_write
from bdm.autoencoder.latent import read_latent
from bdm.data.prepare import read_prepared

BDM = "bdm"
MIN_APPROXIMATE = 8192  # cells; scanpy's default is then approximate, and fails with recent scikit-learn


class Neighbours(KNeighborsTransformer):
    """Exact nearest neighbours as a transformer for scanpy."""

    def fit_transform(self, cells: np.ndarray) -> sparse.csr_matrix:
        """Return distances to the nearest neighbours, as a sparse matrix."""
        return sparse.csr_matrix(super().fit_transform(cells))


def clusters(counts: ad.AnnData, resolutions: list[float], *, seed: int) -> pd.DataFrame:
    """Cluster cells by scanpy's standard steps at each resolution.

    References
    ----------
    Traag et al. 2019, https://doi.org/10.1038/s41598-019-41695-z
    """
    cells = ad.AnnData(counts.X.copy(), obs=pd.DataFrame(index=counts.obs_names))
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, random_state=seed)
    exact = None if cells.n_obs < MIN_APPROXIMATE else Neighbours(n_neighbors=15)
    sc.pp.neighbors(cells, transformer=exact, random_state=seed)
    for resolution in resolutions:
        options = {"flavor": "igraph", "n_iterations": 2, "directed": False}
        sc.tl.leiden(cells, resolution, key_added=f"leiden {resolution:g}", random_state=seed, **options)
    return cells.obs


def labels_of(obs: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return columns of labels, from NAME_input if ``bdm prepare`` replaced NAME."""
    columns = {name: obs.get(f"{name}_input", obs.get(name)) for name in names}
    return pd.DataFrame({f"{LABEL}{name}": column.astype(str) for name, column in columns.items()})


def main(
    prepared: Path,
    autoencoder: Path,
    out: Path,
    *,
    label: Annotated[list[str], typer.Option()],
    resolution: Annotated[list[float], typer.Option()],
    seed: int = 0,
) -> None:
    """Write labels and clusterings, cells x columns."""
    cells, latent = read_prepared(prepared), read_latent(autoencoder)
    populations = latent.obs["sub_population"].astype(str).rename(BDM)
    table = pd.concat([labels_of(cells.obs, label), populations, clusters(cells, resolution, seed=seed)], axis=1)
    with atomic_write(out) as path:
        table.to_csv(path, index_label="cell")


if __name__ == "__main__":
    typer.run(main)
