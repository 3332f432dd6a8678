"""Gain of type-specific decoders where there is none to be had: cells that the shared decoder of a model generates."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
import typer
from scipy import sparse

from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.fit_adapters import KNOWN_POPULATIONS, PopulationCells, fit_together, likelihood
from bdm.autoencoder.storage import GeneAutoencoder, load_autoencoder
from bdm.data.prepare import read_prepared
from bdm.seeds import numpy_generator, torch_generator

NUMBERS = ({"train": 60, "validation": 8, "test": 200}, {"train": 300, "validation": 40, "test": 200})


@torch.no_grad()
def simulated(
    autoencoder: GeneAutoencoder, population: str, library_size: np.ndarray, numbers: dict[str, int], *, seed: int
) -> ad.AnnData:
    """Generate cells of a population by the shared decoder, with the noise of its own dispersion."""
    network, generator = autoencoder.network, numpy_generator(seed, "null", population)
    n_cells = sum(numbers.values())
    rows = torch.full((n_cells,), autoencoder.rows.index(population))
    noise = torch.randn(n_cells, network.shape.n_latent, generator=torch_generator(seed, "null", population))
    log_expression = network.decode(network.prior_mean[rows] + noise, torch.zeros(n_cells, dtype=torch.long))
    inverse_dispersion = network.log_inverse_dispersion(rows).exp().numpy()
    mean = generator.choice(library_size, n_cells)[:, None] * log_expression.exp().numpy()
    counts = generator.poisson(mean * generator.gamma(inverse_dispersion, 1 / inverse_dispersion))
    obs = pd.DataFrame({"split": np.repeat(list(numbers), list(numbers.values()))}).set_axis(map(str, range(n_cells)))
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs)[counts.sum(axis=1) > 0]


def gains(autoencoder: GeneAutoencoder, population: str, cells: ad.AnnData, *, seed: int) -> dict[str, float]:
    """Fit a decoder to the training cells, and return its gain in nats for validation cells and for test cells."""
    network, split = autoencoder.network, cells.obs["split"].to_numpy()
    start = Adapters.of_shared(network, [population], [autoencoder.rows.index(population)])
    of_fit = PopulationCells.of(population, cells[split != "test"], autoencoder.batches)
    fitted = fit_together(start, network, [of_fit], KNOWN_POPULATIONS, seed=seed)
    found = {}
    for name in ("validation", "test"):
        before, after = (
            likelihood(of.network(population, network), cells[split == name], autoencoder.batches, seed=seed)
            for of in (start, fitted)
        )
        gain = after - before
        found |= {name: float(gain.mean()), f"{name}_error": float(gain.std(ddof=1) / np.sqrt(len(gain)))}
    return found


def main(prepared: Path, autoencoder: Path, out: Path, *, n_repeats: int = 3, seed: int = 0) -> None:
    """Write the gain of each population of an autoencoder, for few and for many training cells."""
    fitted = load_autoencoder(autoencoder)
    library_size = np.asarray(read_prepared(prepared).X.sum(axis=1)).ravel()
    rows = []
    for repeat in range(n_repeats):
        for population in fitted.rows:
            for numbers in NUMBERS:
                cells = simulated(fitted, population, library_size, numbers, seed=seed + repeat)
                row = gains(fitted, population, cells, seed=seed + repeat)
                rows.append({"population": population, "n_train": numbers["train"], "repeat": repeat, **row})
    table = pd.DataFrame(rows)
    table["kept"] = table["validation"] >= 0
    table.to_csv(out, index=False, float_format="%.4g")
    print(table.groupby("n_train")[["validation", "validation_error", "test", "test_error", "kept"]].mean().to_string())


if __name__ == "__main__":
    typer.run(main)
