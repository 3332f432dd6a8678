"""Commands `train` and `generate` of an ablation, with its prior or sampler."""

from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Annotated

import typer

from bdm._core.files import atomic_write
from bdm.data.prepare import read_prepared
from bdm.generation.generate import generated_cells, write_cells
from bdm.generation.request import numbers_of, request_cells
from bdm.hierarchy.files import load_hierarchy
from bdm.model.fit_model import EncodedCells, fit_model
from bdm.model.model import load_model, save_model
from bdm.prior.base import LatentPrior, Sampler
from bdm.settings import GenerationSettings, TrainSettings


def run(
    *, sampler: Callable[[LatentPrior], Sampler] = methodcaller("sampler"), prior: str = TrainSettings.prior
) -> None:
    """Run the command line of an ablation.

    Parameters
    ----------
    sampler
        Makes the sampler from the prior.
    prior
        Name of the prior.
    """
    app = typer.Typer()

    @app.command()
    def train(
        autoencoder: Path,
        hierarchy: Path,
        model: Path,
        *,
        n_steps: int = TrainSettings.n_steps,
        width: int = TrainSettings.width,
        seed: int = 0,
    ) -> None:
        """Train on the latents of an autoencoder."""
        settings = TrainSettings(prior=prior, n_steps=n_steps, width=width)
        with atomic_write(model, folder_of="model.json") as folder:
            fitted, tables = fit_model(EncodedCells.load(autoencoder), load_hierarchy(hierarchy), settings, seed=seed)
            save_model(folder, fitted)
            for name, table in tables.items():
                table.to_csv(folder / f"{name}.csv", index=False)

    @app.command()
    def generate(model: Path, out: Path, *, cells_like: Annotated[Path, typer.Option()], seed: int = 0) -> None:
        """Generate as many cells of each type as another file has."""
        loaded, settings = load_model(model), GenerationSettings()
        request = request_cells(loaded, numbers_of(loaded, read_prepared(cells_like, on_disk=True).obs))
        cells = generated_cells(loaded, request, settings, seed=seed, sampler=sampler(loaded.prior))
        with atomic_write(out) as path:
            write_cells(path, cells, {})

    app()
