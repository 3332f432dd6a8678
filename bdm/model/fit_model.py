"""Fit models: all stages from prepared cells, or stage by stage."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import anndata as ad
import numpy as np
import pandas as pd
import torch

from bdm._core.errors import InputError, TrainingError
from bdm._core.files import provenance
from bdm._core.parallel import using_threads
from bdm._core.seeds import derive, numpy_generator, torch_generator
from bdm._core.store import checksum_of, load, save
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.fit_autoencoder import fit_autoencoder
from bdm.autoencoder.latent import LatentCells, encode, latent_cells, library_size_range, read_latent, save_latent
from bdm.autoencoder.moments import Whitening, fit_whitening, population_moments
from bdm.autoencoder.protein_levels import ProteinLevels, mean_count, quantiles
from bdm.data.filters import is_fitted
from bdm.data.prepare import preparation
from bdm.effects.effect import CellsToFit, Effect, fit_all_effects
from bdm.hierarchy.build import build_hierarchy
from bdm.hierarchy.files import Tree
from bdm.hierarchy.tree import Clade, Hierarchy
from bdm.model.model import (
    BranchedModel,
    composition_of,
    expected_counts,
    generated_noise,
    learned_effects,
)
from bdm.prior.base import PriorData, Sampler
from bdm.settings import PRIORS, AutoencoderSettings, FitSettings, HierarchySettings, TrainSettings

N_CELLS = 2048  # cells to generate for the protein levels of a population
N_CHECKED_CELLS = 100  # cells to generate for the check of a population
MIN_SPREAD = 0.1  # smallest variance of generated cells relative to training cells; about 1 in a good model
MAX_DISTANCE = 3  # largest distance between means of generated and training cells, in radii; about 0.1 in a good model


@dataclass(frozen=True)
class Effects:
    """Effects by name, as saved."""

    by_name: dict[str, Effect]


@dataclass(frozen=True)
class EncodedCells:
    """Fitted autoencoder with the latents of its cells, and effects, which are taken out of the latents."""

    autoencoder: GeneAutoencoder
    latent: ad.AnnData
    effects: dict[str, Effect]

    @property
    def learned(self) -> dict[str, str]:
        """What each effect has learned, by name, for reports."""
        return learned_effects(self.autoencoder, self.effects)

    def save(self, folder: Path) -> None:
        """Write a folder for :meth:`load`."""
        checksum = save(folder, "autoencoder", self.autoencoder)
        save_latent(folder, self.latent, of=checksum)
        save(folder, "effects", Effects(self.effects), autoencoder=checksum)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that :meth:`save` wrote."""
        effects = load(folder, "effects", Effects, autoencoder=checksum_of(folder, "autoencoder"))
        return cls(load(folder, "autoencoder", GeneAutoencoder), read_latent(folder), effects.by_name)


def fit(
    prepared: ad.AnnData,
    settings: FitSettings,
    *,
    tree: Clade | None = None,
    seed: int,
    device: str = "auto",
    **facts: str | None,
) -> tuple[BranchedModel, dict[str, pd.DataFrame]]:
    """Fit a model to prepared cells: autoencoder, hierarchy (clustered without ``tree``), and prior.

    Returns also tables of the training by name: ``autoencoder`` with training and validation losses by step, and the
    tables of :class:`bdm.prior.base.FittedPrior`. ``facts`` are added to the provenance of the model.
    """
    encoded, losses = fit_and_encode(prepared, settings.autoencoder, seed=seed, device=device)
    hierarchy = fit_hierarchy(encoded.latent, settings.hierarchy, seed=seed, tree=tree)
    model, history = fit_model(encoded, hierarchy, settings.train, seed=seed, device=device, **facts)
    return model, {"autoencoder": losses, **history}


def fit_and_encode(
    prepared: ad.AnnData, settings: AutoencoderSettings, *, seed: int, device: str = "auto", **facts: str | None
) -> tuple[EncodedCells, pd.DataFrame]:
    """Train the count autoencoder, encode all cells, and fit effects of donors, covariates and positions.

    Returns also the training and validation losses by step. ``facts`` are added to the provenance of the autoencoder.
    """
    record = provenance(seed=seed, settings=asdict(settings), **facts, **preparation(prepared))
    autoencoder, losses = fit_autoencoder(prepared, settings, seed=seed, device=device, provenance=record)
    encoded = fit_all_effects(CellsToFit(prepared, encode(prepared, autoencoder), autoencoder, seed))
    return EncodedCells(autoencoder, encoded.latent, dict(encoded.effects)), losses


def fit_hierarchy(latent: ad.AnnData, settings: HierarchySettings, *, seed: int, tree: Tree | None = None) -> Hierarchy:
    """Build the hierarchy of encoded cells.

    Its provenance names the autoencoder of the latents, and the file of the tree.
    """
    hierarchy = build_hierarchy(latent_cells(latent), settings, seed=seed, tree=tree)
    record: dict[str, Any] = {}
    if "autoencoder" in latent.uns:
        record["autoencoder"] = latent.uns["autoencoder"]
    if isinstance(tree, Path):
        record["tree"] = tree.name
    return replace(hierarchy, provenance=record | hierarchy.provenance)


@using_threads()
def fit_model(
    encoded: EncodedCells,
    hierarchy: Hierarchy,
    settings: TrainSettings,
    *,
    seed: int,
    device: str = "auto",
    **facts: str | None,
) -> tuple[BranchedModel, dict[str, pd.DataFrame]]:
    """Fit the prior to encoded cells, and assemble the model.

    Returns also the tables of :class:`bdm.prior.base.FittedPrior`. ``facts`` are added to the provenance of the model.
    """
    autoencoder, latent = encoded.autoencoder, encoded.latent
    cells = latent_cells(latent)
    check_hierarchy(hierarchy, cells, autoencoder=latent.uns.get("autoencoder"))
    whitening = fit_whitening(cells)
    moments = population_moments(cells, whitening)
    split = latent.obs.loc[is_fitted(latent.obs), "split"]
    data = PriorData(cells, whitening, moments, hierarchy, torch.tensor((split == "validation").to_numpy()))
    fitted = PRIORS.find(settings.prior).fit(data, settings, seed=seed, device=device)
    check_collapse(fitted.prior.sampler(), cells, whitening, seed=seed)
    model = BranchedModel(
        autoencoder=autoencoder,
        whitening=whitening,
        moments=moments,
        prior=fitted.prior,
        composition=composition_of(latent.obs[is_fitted(latent.obs)]),
        library_sizes=library_size_range(latent),
        provenance=provenance(seed=seed, settings=asdict(settings), **facts),
        effects=encoded.effects,
    )
    return replace(model, levels=measure_protein_levels(model, autoencoder.levels, seed=seed)), fitted.history


@torch.no_grad()
def measure_protein_levels(model: BranchedModel, populations: Iterable[str], *, seed: int) -> dict[str, ProteinLevels]:
    """Measure protein levels of generated cells, before mapping to training cells."""
    autoencoder, sampler, levels = model.autoencoder, model.sampler(), {}
    proteins = np.arange(autoencoder.genes.shape[0])[autoencoder.proteins]
    for population in populations:
        x = sampler.sample(population, N_CELLS, torch_generator(seed, "levels", population))
        generator = numpy_generator(seed, "generated levels", population)
        at = pd.DataFrame(index=range(N_CELLS))
        for effect in model.effects.values():
            at = effect.complete(at, population, derive(seed, "generated levels"))
        share = model.composition.loc[population].to_numpy(dtype=float)
        n_cells = int(share.sum())
        batch = generator.choice(model.composition.columns, N_CELLS, p=share / n_cells)
        at = at.assign(batch=batch) if autoencoder.batches else at
        mean = expected_counts(model, model.moved(x, population, at), at, population)[:, proteins]
        observation = generated_noise(model, population).of_genes(proteins)
        before = quantiles(observation.sample(mean, generator).toarray(), generator, n_cells=n_cells)
        log_factor = (mean_count(autoencoder.levels[population]) / mean_count(before)).log().float()
        counts = observation.sample(mean * log_factor.exp().numpy(), generator)
        levels[population] = ProteinLevels(log_factor, quantiles(counts.toarray(), generator, n_cells=n_cells))
    return levels


def check_collapse(sampler: Sampler, cells: LatentCells, whitening: Whitening, *, seed: int) -> None:
    """Reject a model that generates nearly identical or misplaced cells."""
    for code, population in enumerate(cells.populations):
        rows = torch.nonzero(cells.population == code).squeeze(1)
        x = whitening(
            cells.sample(rows.repeat(math.ceil(N_CHECKED_CELLS / len(rows))), torch_generator(seed, "look", code))
        )
        generated = sampler.sample(population, N_CHECKED_CELLS, torch_generator(seed, "look", population))
        spread, distance = spread_and_distance(generated, x)
        if not (spread >= MIN_SPREAD and distance <= MAX_DISTANCE):
            problem = (
                f"have {spread:.2g} times the spread of the training cells"
                if spread < MIN_SPREAD
                else f"are {distance:.2g} times their radius away from the training cells"
            )
            raise TrainingError(
                f"Training went wrong: generated cells of {population!r} {problem}; "
                "check these cells, or try another seed or more steps."
            )


def spread_and_distance(generated: torch.Tensor, training: torch.Tensor) -> tuple[float, float]:
    """Return the ratio of variances, and the distance of means in radii."""
    variance, expected = (x.double().var(dim=0, correction=0).sum() for x in (generated, training))
    radius = expected.clamp(min=training.shape[1]).sqrt()
    distance = (generated.mean(dim=0) - training.mean(dim=0)).norm() / radius
    return float(variance / expected), float(distance)


def check_hierarchy(hierarchy: Hierarchy, cells: LatentCells, *, autoencoder: str | None) -> None:
    """Reject a hierarchy with other populations, or from another autoencoder."""
    if unshared := sorted(set(hierarchy.populations) ^ set(cells.populations)):
        raise InputError(
            f"The hierarchy and the cells have different populations ({', '.join(unshared)}); make the hierarchy again."
        )
    recorded = hierarchy.provenance.get("autoencoder")
    if recorded is not None and autoencoder is not None and recorded != autoencoder:
        raise InputError("The hierarchy and the cells have different autoencoders; make it again with bdm hierarchy.")
