"""What learning would take, measured on this machine by a few steps of the real thing."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from bdm.api import BranchedDiffusion
from bdm.autoencoder.fit import FittedAutoencoder, fit_autoencoder
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.commands.told import peak_memory
from bdm.hierarchy.build import build_hierarchy
from bdm.latent.cells import encode, latent_cells
from bdm.model.fit import fit_model
from bdm.progress import duration

FEW, MORE = 10, 40  # steps
LEFT_OUT = "without the types' own decoders"


def seconds_of(run: Callable[[int], object], n_steps: int) -> float:
    """Foretell the seconds that a training of ``n_steps`` takes, from two short ones.

    Parameters
    ----------
    run
        Trains for so many steps.
    """
    few, more = (timed(run, n) for n in (FEW, MORE))
    each = max(more - few, 0) / (MORE - FEW)
    return few + (n_steps - FEW) * each


def timed(run: Callable[[int], object], n_steps: int) -> float:
    """Measure the seconds of a training."""
    start = time.monotonic()
    run(n_steps)
    return time.monotonic() - start


def print_foretold(out: Path, obs: pd.DataFrame, n_genes: int, seconds: dict[str, float]) -> None:
    """Tell what would be learnt from, and the time and memory that it would take."""
    n_learnt, n_types = int((obs["split"] == "train").sum()), obs["cell_type"].nunique()
    print(f"would write {out}, learning from {n_learnt:,} cells of {n_types} types x {n_genes:,} genes")
    for what, number in seconds.items():
        print(f"about {duration(number)} for {what}")
    print(f"about {peak_memory() / 1e9:.1f} GB of memory")


def foretold_fit(model: BranchedDiffusion) -> dict[str, float]:
    """Foretell the seconds of both trainings; the denoiser's by the latent space of a few steps."""
    adata, settings, how = model.prepared, model.settings, {"seed": model.seed, "device": model.device}

    def autoencoder(steps: int) -> FittedAutoencoder:
        return fit_autoencoder(adata, replace(settings.autoencoder, shared_decoder=True, n_steps=steps), **how)

    seconds = {f"the autoencoder, {LEFT_OUT}": seconds_of(autoencoder, settings.autoencoder.n_steps)}
    trained = GeneAutoencoder.of(autoencoder(1), adata.var, {})
    latent = encode(adata, trained)
    shape = replace(settings.hierarchy, n_bootstrap=0)
    tree = build_hierarchy(latent_cells(latent), shape, seed=model.seed, tree=model.tree)

    def denoiser(steps: int) -> None:
        fit_model(latent, trained, tree, replace(settings.denoiser, n_steps=steps), **how, provenance={})

    return {**seconds, "the denoiser": seconds_of(denoiser, settings.denoiser.n_steps)}
