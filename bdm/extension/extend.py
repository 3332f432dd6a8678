"""Extension of a model by new cell types."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from annotated_types import Ge

from bdm._core.parallel import using_threads
from bdm.autoencoder.adapters import Adapters, PopulationCells, fit_gaining, likelihood
from bdm.autoencoder.softmax import AdapterSettings
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.covariates.effects import CovariateEffects, fit_effects, with_residuals
from bdm.errors import counted
from bdm.extension.fit import (
    Attached,
    NewType,
    attached,
    batch_offsets,
    distances,
    find_populations,
    initial_adapter,
)
from bdm.extension.new_cells import NewCells
from bdm.hierarchy.clustering import MeasuredMeans
from bdm.latent.cells import LatentCells, encode, latent_cells
from bdm.latent.moments import PopulationMoments, population_moments
from bdm.model.fit import check_collapse
from bdm.model.model import BranchedModel, Extension, composition_of, extended
from bdm.prior.base import PriorData
from bdm.schema import StageSettings
from bdm.settings import AutoencoderSettings, HierarchySettings, PrepareSettings, PriorSettings

MIN_HELD_OUT = 5  # test cells, for a gain to be measured with them, and cells for it to be compared with chance
MIN_GAIN = -1  # of the decoder of a new type, in standard errors; the initial one has the mean of the type alone


@dataclass(frozen=True, kw_only=True)
class ExtendSettings(StageSettings):
    """Settings of an extension."""

    adapter: AdapterSettings = field(default=AdapterSettings())
    branch: PriorSettings = field(default=PriorSettings(n_steps=200))
    n_bootstrap: Annotated[int, Ge(0)] = HierarchySettings.n_bootstrap


@dataclass(frozen=True, repr=False)
class FittedExtension:
    """An extended model, and how a type joined it."""

    model: BranchedModel
    extension: Extension
    distance: pd.Series  # to the cell types of the model before, nearest first
    held_out: str  # split of the held-out cells
    before: np.ndarray  # evidence lower bound of each held-out cell, without a type-specific decoder
    after: np.ndarray  # with it
    n_counts: float  # mean counts of these cells

    def __repr__(self) -> str:
        cells = counted(self.extension.n_cells, "cell")
        return f"FittedExtension({self.extension.name}: {cells}, nearest to {self.distance.index[0]})"


def extend_all(
    model: BranchedModel, new: NewCells, settings: ExtendSettings, *, seed: int, provenance: dict[str, Any]
) -> Iterator[FittedExtension]:
    """Add types one after the other; the last model has them all. New batches come with the first type."""
    batches = batch_offsets(new.known, model.autoencoder, new.batches)
    how: dict[str, Any] = {"seed": seed, "provenance": provenance}
    for cell_type, cells in new.by_type.items():
        fitted = extend(model, cells, cell_type, settings, batches=batches, taken=new.by_type, **how)
        model, batches = fitted.model, {}
        yield fitted


@using_threads()
def extend(
    model: BranchedModel,
    cells: ad.AnnData,
    cell_type: str,
    settings: ExtendSettings,
    *,
    seed: int,
    provenance: dict[str, Any],
    batches: dict[str, torch.Tensor] | None = None,
    taken: Collection[str] = (),
) -> FittedExtension:
    """Add a cell type to a model, with its sub-populations, without a change to any other.

    A type-specific decoder is fitted to all cells of the type. Sub-populations are found in the latents that it
    encodes, with the settings of the model, and have decoders of their own where these gain. There are none if the
    model has a fewest number of donors of a sub-population, as the donors of the new cells are not known. No
    sub-population has a name in ``taken``.
    """
    autoencoder = model.autoencoder.with_batches(batches or {})
    first = initial_adapter(cells[cells.obs["split"] == "train"], cell_type, autoencoder)
    decoder = fitted_decoder(first, cells, autoencoder, settings, seed=seed)
    recorded, known = autoencoder.provenance["settings"], {field.name for field in fields(AutoencoderSettings)}
    of_autoencoder = AutoencoderSettings(**{name: value for name, value in recorded.items() if name in known})
    if model.preparation.get("min_donors", PrepareSettings.min_donors) > 1:  # donors of the new cells are not known
        of_autoencoder = replace(of_autoencoder, sub_populations="none")
    taken = {*taken, *model.cell_types, *model.hierarchy.by_name}
    found = find_populations(cells, decoder, autoencoder, of_autoencoder, taken=taken, seed=seed)
    encoded = encode(cells, autoencoder.with_type(cell_type, found.adapters, found.sub_populations))
    covariates = covariates_of_type(model, encoded)
    latent, moments = cells_and_moments(model, with_residuals(encoded, covariates))
    where = attached(model, latent, moments, n_bootstrap=settings.n_bootstrap, seed=seed)
    fitted = Joining(cell_type, cells, encoded.obs, first, found, latent, moments, where, covariates)
    return joined(model, fitted, settings.branch, seed=seed, provenance=provenance, batches=batches or {})


@dataclass(frozen=True)
class Joining:
    """A cell type that is ready to join a model."""

    cell_type: str
    cells: ad.AnnData  # prepared
    obs: pd.DataFrame  # with the population of each in ``sub_population``
    first: Adapters  # decoder before the fit
    decoders: NewType
    latent: LatentCells  # of cells that the branches are fitted to
    moments: PopulationMoments
    where: Attached
    covariates: CovariateEffects | None = None  # of a new type


def covariates_of_type(model: BranchedModel, encoded: ad.AnnData) -> CovariateEffects | None:
    """Learn how the cells of a new type depend on the covariates of a model; None if it or they have none."""
    known = model.covariates
    if known is None or encoded.obs[list(known.names)].isna().any(axis=None):
        return None
    return fit_effects(known.names, known.stepwise, encoded)


def fitted_decoder(
    first: Adapters,
    cells: ad.AnnData,
    autoencoder: GeneAutoencoder,
    settings: ExtendSettings,
    *,
    seed: int,
) -> Adapters:
    """Fit the type-specific decoder of a type, and keep the initial one where it gains too little."""
    (name,) = first
    chosen = [PopulationCells.from_cells(name, cells, autoencoder.batches)]
    gaining = fit_gaining(first, autoencoder.network, chosen, settings.adapter, least_gain=MIN_GAIN, seed=seed)
    return first.updated(gaining)


def cells_and_moments(model: BranchedModel, encoded: ad.AnnData) -> tuple[LatentCells, PopulationMoments]:
    """Take the cells to fit from the latents of one type, and the moments of their populations."""
    encoded.obs["sub_population"] = encoded.obs["sub_population"].cat.remove_unused_categories()
    latent = latent_cells(encoded)
    return latent, population_moments(latent, model.whitening)


def joined(
    model: BranchedModel,
    fitted: Joining,
    settings: PriorSettings,
    *,
    seed: int,
    provenance: dict[str, Any],
    batches: dict[str, torch.Tensor],
) -> FittedExtension:
    """Extend a model, check the cells that it generates of the populations, and score held-out cells."""
    where, moments = fitted.where, fitted.moments
    added = PriorData(fitted.latent, model.whitening, moments, where.tree)
    extension = Extension(
        cell_type=fitted.cell_type,
        attachment=where.attachment,
        support=where.support,
        tree=where.tree,
        adapters=fitted.decoders.adapters,
        sub_populations=fitted.decoders.sub_populations,
        moments=moments,
        prior_state=model.prior.fit_added(added, where.attachment.branch, settings, seed=seed),
        library_sizes=fitted.latent.library_size_range,
        composition=composition_of(fitted.obs[fitted.obs["split"] != "test"]),
        covariates=fitted.covariates,
        batches=batches,
        provenance=provenance,
    )
    extended_model = extended(model, extension)
    check_collapse(extended_model.sampler(), fitted.latent, model.whitening, seed=seed)
    network, names = extended_model.autoencoder.network, fitted.obs["sub_population"].astype(str).to_numpy()
    split, chosen = held_out_rows(fitted.obs)
    held_out, names = fitted.cells[chosen], names[chosen]
    how: dict[str, Any] = {"batches": extended_model.autoencoder.batches, "seed": seed}
    before = likelihood(fitted.first.network(extension.name, network), held_out, **how)
    after = np.empty(len(before))
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        after[rows] = likelihood(extension.adapters.network(name, network), held_out[rows], **how)
    distance = distances(model, MeasuredMeans.from_moments(moments))
    n_counts = float(held_out.X.sum() / held_out.n_obs)
    return FittedExtension(extended_model, extension, distance, split, before, after, n_counts)


def held_out_rows(obs: pd.DataFrame) -> tuple[str, np.ndarray]:
    """Find the cells that a decoder is scored with, and the name of their split.

    Test cells, if there are enough. Otherwise validation cells, which also chose the decoder, or else training cells.
    """
    rows = {split: np.flatnonzero(obs["split"] == split) for split in ("test", "validation", "train")}
    enough = [split for split in rows if len(rows[split]) >= (MIN_HELD_OUT if split == "test" else 1)]
    return enough[0], rows[enough[0]]
