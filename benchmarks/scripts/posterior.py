"""What is lost as posteriors are stored without covariances between latent dimensions, for each population."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from bdm.arrays import to_tensor
from bdm.autoencoder.cells import batch_codes
from bdm.autoencoder.storage import GeneAutoencoder, load_autoencoder
from bdm.data.prepare import read_prepared
from bdm.latent.cells import latent_cells, read_latent
from bdm.latent.moments import N_SHRINK, fit_whitening, population_moments

BLOCK = 256  # cells that are encoded together


@torch.no_grad()
def mean_covariance(autoencoder: GeneAutoencoder, population: str, counts: np.ndarray, batches: Tensor) -> Tensor:
    """Return the mean covariance of the posteriors of cells of a population, latent dimensions squared."""
    network, code, total = autoencoder.network_of(population), autoencoder.type_code(population), torch.zeros(1)
    for rows in torch.arange(len(counts)).split(BLOCK):
        types = torch.full((len(rows),), code)
        factor = network.encode(to_tensor(counts[rows]), types, batches[rows]).factor
        total = total + torch.cholesky_inverse(factor).sum(dim=0)
    return total / len(counts)


def main(prepared: Path, folder: Path, out: Path) -> None:
    """Write how the covariance of each population in whitened space would change with the whole posteriors."""
    cells, autoencoder, encoded = read_prepared(prepared), load_autoencoder(folder), read_latent(folder)
    latent = latent_cells(encoded)
    whitening = fit_whitening(latent)
    moments = population_moments(latent, whitening)
    fitted = (cells.obs["split"] != "test").to_numpy()
    names = encoded.obs["sub_population"].astype(str).to_numpy()
    rows = []
    for population, stored in zip(moments.populations, moments.covariance, strict=True):
        of_population = cells[fitted & (names == population)]
        codes = batch_codes(of_population, autoencoder.batches)
        covariance = mean_covariance(autoencoder, population, of_population.X.toarray(), codes)
        left_out = torch.zeros_like(stored)
        left_out[:-1, :-1] = covariance - torch.diag(covariance.diagonal())  # the last dimension is the library size
        share = of_population.n_obs / (of_population.n_obs + N_SHRINK)
        whole = stored + share * whitening.linear(whitening.linear(left_out).T).T
        inverse = torch.linalg.inv(torch.linalg.cholesky(stored))
        ratio = torch.linalg.eigvalsh(inverse @ whole @ inverse.T)
        rows.append(
            {
                "population": population,
                "n_cells": of_population.n_obs,
                "of_posterior": float(left_out.norm() / covariance.norm()),
                "of_population": float((whole - stored).norm() / whole.norm()),
                "smallest_ratio": float(ratio.min()),
                "largest_ratio": float(ratio.max()),
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(out, index=False, float_format="%.4g")
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
