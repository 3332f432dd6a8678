"""Estimates of the time and memory that a fit takes, from a few steps on this machine."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from bdm.api import BranchedDiffusion
from bdm.autoencoder.cells import batch_codes, evidence_lower_bounds, type_codes
from bdm.autoencoder.fit import N_HELD_OUT, FittedAutoencoder, fit_autoencoder
from bdm.autoencoder.fit_adapters import fit_portion, list_portions, read_portions, rows_by_population
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.commands.base import peak_memory
from bdm.data.matrix import take_cells
from bdm.donors.effects import fit_donors
from bdm.hierarchy.build import build_hierarchy
from bdm.latent.cells import BLOCK, encode, latent_cells
from bdm.model.fit import fit_model
from bdm.progress import duration
from bdm.settings import AutoencoderSettings, Settings
from bdm.text import counted
from bdm.threads import chosen_threads
from bdm.training import Loop

FEW, MORE = 5, 25  # steps
NEAR = 1.2  # times the least time below which the most is not worth printing


@dataclass(frozen=True)
class Seconds:
    """How long something takes: at least, on a machine that does nothing else, and at most, beside what runs now."""

    least: float
    most: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.least + other.least, self.most + other.most)

    def __mul__(self, times: float) -> "Seconds":
        return Seconds(self.least * times, self.most * times)

    def __str__(self) -> str:
        least, most = duration(self.least), duration(self.most)
        return least if self.most < NEAR * self.least or least == most else f"{least} to {most}"

    @classmethod
    def of(cls, processor: float, wall: float) -> "Seconds":
        """Take the time of the processor, in all threads, and that which has passed."""
        wall = max(wall, processor / chosen_threads())  # no less than that, unless it was measured badly
        return cls(min(processor, wall), max(processor, wall))


def seconds_of(run: Callable[[int], object], n_steps: int) -> Seconds:
    """Estimate how long a training of ``n_steps`` takes, from two short ones.

    Parameters
    ----------
    run
        Trains for so many steps.
    """
    run(1)  # loads and sets up what a process does once
    few, more = (timed(partial(run, n)) for n in (FEW, MORE))
    each = (more - few).clip(min=0) / (MORE - FEW)
    return Seconds.of(*(few + max(n_steps - FEW, 0) * each))


def timed(run: Callable[[], object]) -> np.ndarray:
    """Measure the seconds of the processor, and those that have passed."""
    start = time.process_time(), time.monotonic()
    run()
    return np.array([time.process_time(), time.monotonic()]) - start


def side_by_side(run: Callable[[], object], n_times: float) -> Seconds:
    """Estimate how long many runs take, in as many threads as there are, from one run."""
    return Seconds.of(*timed(run)) * max(1, n_times / chosen_threads())


def print_estimate(out: Path, obs: pd.DataFrame, n_genes: int, seconds: dict[str, Seconds]) -> None:
    """Print what the model would be fitted on, and how much time and memory that takes."""
    n_cells, n_types = int((obs["split"] == "train").sum()), obs["cell_type"].nunique()
    print(f"would write {out}, fitted on {n_cells:,} cells of {counted(n_types, 'type')} x {n_genes:,} genes")
    for what, number in seconds.items():
        print(f"about {number} for {what}")
    print(f"about {peak_memory() / 1e9:.1f} GB of memory")


def estimate_autoencoder(adata: ad.AnnData, settings: AutoencoderSettings, *, seed: int, device: str) -> Seconds:
    """Estimate the training of the autoencoder, with type-specific decoders if any, and the encoding of cells."""
    found: list[FittedAutoencoder] = []

    short = replace(settings, shared_decoder=True, sub_populations="none")

    def run(n_steps: int) -> None:
        found.append(fit_autoencoder(adata, replace(short, n_steps=n_steps), seed=seed, device=device))

    seconds = seconds_of(run, settings.n_steps)
    if settings.sub_populations != "none":
        seconds += Seconds(0, seconds.most)  # it is trained a second time if types have sub-populations
        divided = replace(short, n_steps=1, sub_populations=settings.sub_populations)
        with_them = timed(partial(fit_autoencoder, adata, divided, seed=seed, device=device))
        seconds += Seconds.of(*(with_them - timed(partial(run, 1))).clip(min=0))
    fitted = found[-1]
    split = adata.obs["split"].to_numpy()
    n_looks = math.ceil(settings.n_steps / Loop.validate_every) - 1  # more than the short trainings had
    if n_looks and (split == "validation").any():
        rows = np.flatnonzero(split == "validation")[:N_HELD_OUT]
        cells = take_cells(adata, rows[:BLOCK])
        codes = type_codes(cells, fitted.cell_types), batch_codes(cells, fitted.batches)
        look = side_by_side(
            lambda: evidence_lower_bounds(fitted.network, cells, *codes, seed=seed), len(rows) / len(cells.obs)
        )
        seconds += look * n_looks
    if not settings.shared_decoder:
        seconds += estimate_adapters(fitted, adata, seed=seed)
    cells = take_cells(adata, np.arange(min(adata.n_obs, BLOCK)))
    trained = GeneAutoencoder.of(fitted, adata.var, {})
    return seconds + side_by_side(lambda: encode(cells, trained), adata.n_obs / cells.n_obs)


def estimate_adapters(fitted: FittedAutoencoder, adata: ad.AnnData, *, seed: int) -> Seconds:
    """Estimate the fit of type-specific decoders, from the one of the types with about the median number of cells."""
    rows = rows_by_population(adata.obs.assign(sub_population=adata.obs["cell_type"]), fitted.cell_types, seed=seed)
    portions = list_portions(rows)
    if not portions:
        return Seconds(0, 0)
    [portion] = read_portions(adata, [portions[len(portions) // 2]], rows, fitted.batches)
    return side_by_side(lambda: fit_portion(fitted.network, fitted.cell_types, portion, seed=seed), len(portions))


def estimate_fit(model: BranchedDiffusion, settings: Settings) -> dict[str, Seconds]:
    """Estimate both trainings; the denoiser's by the latent space of few steps."""
    adata: ad.AnnData = model.prepared
    seed, device = model.seed, model.device
    seconds = {"the autoencoder": estimate_autoencoder(adata, settings.autoencoder, seed=seed, device=device)}
    short = replace(settings.autoencoder, shared_decoder=True, n_steps=1)
    trained = GeneAutoencoder.of(fit_autoencoder(adata, short, seed=seed, device=device), adata.var, {})
    latent = encode(adata, trained)
    shape = replace(settings.hierarchy, n_bootstrap=0)
    tree = build_hierarchy(latent_cells(latent), shape, seed=seed, tree=model.tree)
    donors = fit_donors(adata, latent, trained)

    def denoiser(n_steps: int) -> None:
        short = replace(settings.denoiser, n_steps=n_steps)
        fit_model(latent, trained, tree, short, seed=seed, device=device, donors=donors, provenance={})

    return {**seconds, "the denoiser": seconds_of(denoiser, settings.denoiser.n_steps)}
