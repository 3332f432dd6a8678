"""Measure what a network adds to the mixtures by the number of cells, its width and its training steps."""

from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from paper import Real, energies, selected
from tidy import write_rows

from bdm._core.seeds import torch_generator
from bdm.autoencoder.latent import latent_cells
from bdm.autoencoder.moments import fit_whitening
from bdm.model.fit_model import EncodedCells
from bdm.prior.diffusion import DiffusionPrior
from bdm.prior.mixture import GaussianMixturePrior
from bdm.settings import TrainSettings

HELD_OUT = 0.3  # share of the cells
NETWORKS = {  # by name
    "network": TrainSettings(prior="diffusion"),
    "more steps": TrainSettings(prior="diffusion", n_steps=10_000),
    "wider": TrainSettings(prior="diffusion", n_steps=10_000, width=384),
}


def scores(real: Real, n_cells: int, *, seed: int) -> Iterator[tuple[str, str, float]]:
    """Yield method, score and value of priors of ``n_cells`` training cells, sampled at random."""
    order = torch.randperm(len(real.training.population), generator=torch_generator(seed, "cells"))
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[:n_cells]] = True
    data = selected(real, chosen, seed=seed)
    populations = [name for name in real.types if name in data.cells.populations]
    training = Real(data.cells, real.held_out, real.whitening, seed)
    posteriors = [training.energy(training.sampled(data.cells, name), name) for name in populations]
    yield "posterior samples", "energy", float(np.mean(posteriors))
    mixture = GaussianMixturePrior.from_moments(data.moments, data.hierarchy)
    yield "mixture", "energy", energies(mixture, real, populations)
    for name, settings in NETWORKS.items():
        start = process_time()
        fitted = DiffusionPrior.fit(data, settings, seed=seed, device="cpu")
        decision = fitted.history["decision"].iloc[0]
        yield name, "seconds", process_time() - start
        yield name, "kept", float(decision["kept"])
        yield name, "gain", float(decision["gain"])
        yield name, "lower loss", 1 - float(decision["network"] / decision["closed_form"])
        yield name, "energy", energies(fitted.prior, real, populations)


def main(
    prepared: Path,
    autoencoder: Path,
    out: Path,
    *,
    n_cells: Annotated[list[int], typer.Option()] = [1_000, 3_000, 10_000, 30_000, 100_000],  # noqa: B006
    seed: int = 0,
) -> None:
    """Write the gain of held-out cells in standard errors, and energy distances to cells that are held out."""
    cells = latent_cells(EncodedCells.load(autoencoder).latent, with_test=True)
    is_held_out = torch.rand(len(cells.population), generator=torch_generator(seed, "held out")) < HELD_OUT
    training, held_out = (cells.subset(torch.nonzero(mask).squeeze(1)) for mask in (~is_held_out, is_held_out))
    real, rows = Real(training, held_out, fit_whitening(training), seed), []
    for number in n_cells:
        if number <= len(training.population):
            for method, score, value in scores(real, number, seed=seed):
                rows.append((method, number, score, value))
    write_rows(pd.DataFrame(rows, columns=["method", "n_cells", "score", "value"]), out)


if __name__ == "__main__":
    typer.run(main)
