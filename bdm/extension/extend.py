"""Extension of a model by new cell types, or from scratch with all cells."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from annotated_types import Ge

from bdm.autoencoder.fit_adapters import AdapterSettings, TypeCells, fit_gaining, likelihood
from bdm.extension.fit import batch_offsets, fit_embedding, initial_adapter, with_replayed_cells
from bdm.extension.new_cells import NewCells
from bdm.hierarchy.grow import AttachmentPoint, attachment_point
from bdm.latent.cells import LatentCells, encode, latent_cells
from bdm.latent.moments import Normal, type_moments
from bdm.model.extension import Extension
from bdm.model.fit import check_collapse, fit
from bdm.model.model import BranchedModel, extended, with_branch
from bdm.schema import StageSettings
from bdm.seeds import numpy_generator
from bdm.settings import AutoencoderSettings, DenoiserSettings, FitSettings, HierarchySettings
from bdm.threads import using_threads

MIN_GAIN = -1  # of the decoder of a new type, in standard errors; the initial one has the mean of the type alone


@dataclass(frozen=True, kw_only=True)
class ExtendSettings(StageSettings):
    """Settings of an extension.

    Attributes
    ----------
    n_replayed
        Most generated cells that stand for the training cells of a known type when it is updated.
    """

    adapter: AdapterSettings = field(default=AdapterSettings())
    branch: DenoiserSettings = field(default=DenoiserSettings(n_steps=200))
    n_bootstrap: Annotated[int, Ge(0)] = HierarchySettings.n_bootstrap
    n_replayed: Annotated[int, Ge(1)] = 1000


@dataclass(frozen=True)
class FittedExtension:
    """An extended model, and how a type joined it.

    Attributes
    ----------
    distance
        From the type's mean to the mean of each known type, in whitened space, by name, nearest first, see
        :func:`distances`; of an updated type, to its former mean too.
    before, after
        Evidence lower bound of each held-out cell, before the extension and with the type-specific decoder.
    n_counts
        Mean counts of these cells.
    """

    model: BranchedModel
    extension: Extension
    distance: pd.Series
    before: np.ndarray
    after: np.ndarray
    n_counts: float


def extend_all(
    model: BranchedModel, new: NewCells, settings: ExtendSettings, *, seed: int, provenance: dict[str, Any]
) -> Iterator[FittedExtension]:
    """Add types one after the other; the last model has them all. New batches come with the first type."""
    batches = batch_offsets(new.known, model.autoencoder, new.batches)
    for cell_type, cells in new.by_type.items():
        fitted = extend(model, cells, cell_type, settings, seed=seed, provenance=provenance, batches=batches)
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
) -> FittedExtension:
    """Add a cell type to a model, or update a known one, without a change to any other.

    Parameters
    ----------
    cells
        Prepared cells of the type, with the model's genes in its order.
    batches
        Offsets of batches that the model does not have.
    """
    autoencoder = model.autoencoder.with_batches(batches or {})
    known = cell_type in model.cell_types
    fitted_cells = with_replayed_cells(cells, model, cell_type, settings.n_replayed, seed=seed) if known else cells
    first = initial_adapter(fitted_cells[fitted_cells.obs["split"] == "train"], cell_type, autoencoder)
    least_gain = 0 if known else MIN_GAIN
    of_type = TypeCells.of(cell_type, fitted_cells, autoencoder.batches)
    gaining = fit_gaining(first, autoencoder.network, [of_type], settings.adapter, least_gain=least_gain, seed=seed)
    adapter = first.joined(gaining)
    latent = latent_cells(encode(fitted_cells, autoencoder.with_adapters(adapter)))
    x, moments = model.whitening(latent.mean).numpy(), type_moments(latent, model.whitening)
    normal = Normal(moments.mean[0], moments.covariance[0])
    variance = float(moments.mean_variance[0])
    attachment = support = None
    if not known:
        attachment = attachment_of(model, x.mean(axis=0), variance)
        support = attachment_support(model, x, variance, attachment, n_bootstrap=settings.n_bootstrap, seed=seed)
    embedding = _embedding_of_branch(model, cell_type, attachment, normal, latent, settings, seed=seed)
    extension = Extension(
        cell_type=cell_type,
        attachment=attachment,
        support=support,
        adapter=adapter,
        normal=normal,
        mean_variance=variance,
        embedding=embedding,
        library_sizes=latent.library_size_range,
        composition=n_cells_by_batch(cells.obs[cells.obs["split"] != "test"]),
        batches=batches or {},
        provenance=provenance,
    )
    grown = extended(model, extension)
    check_collapse(grown.sampler(), latent, model.whitening, seed=seed)
    held_out = held_out_cells(cells)
    networks = (found.network(cell_type, autoencoder.network) for found in (first, adapter))
    before, after = (likelihood(network, held_out, autoencoder.batches, seed=seed) for network in networks)
    n_counts = float(held_out.X.sum() / held_out.n_obs)
    return FittedExtension(grown, extension, distances(model, x.mean(axis=0), variance), before, after, n_counts)


def _embedding_of_branch(
    model: BranchedModel,
    cell_type: str,
    attachment: AttachmentPoint | None,
    normal: Normal,
    latent: LatentCells,
    settings: ExtendSettings,
    *,
    seed: int,
) -> torch.Tensor:
    """Fit the embedding of a type's branch, from the embedding of the branch that it leaves."""
    neighbour = attachment.branch if attachment else cell_type
    denoiser = with_branch(model.denoiser, normal, embedding_of(model, neighbour))
    highest = attachment.level if attachment else model.hierarchy.segment(cell_type).high
    embedding, _ = fit_embedding(denoiser, latent, model.whitening, highest, settings.branch, seed=seed)
    return embedding


def squared_distances(model: BranchedModel, mean: np.ndarray, variance: float) -> pd.Series:
    """Squared distance of a mean in whitened space to the mean of each type of the model, without the noise of both.

    Parameters
    ----------
    variance
        Sampling variance of the mean, see :func:`bdm.latent.moments.sampling_variance`.
    """
    measured = ((model.moments.mean.numpy() - mean) ** 2).sum(axis=1)
    return pd.Series(measured - model.moments.mean_variance.numpy() - variance, index=model.populations)


def distances(model: BranchedModel, mean: np.ndarray, variance: float) -> pd.Series:
    """Distances of :func:`squared_distances`, nearest first; 0 where noise explains all of the distance."""
    return squared_distances(model, mean, variance).sort_values().clip(lower=0) ** 0.5


def attachment_of(model: BranchedModel, mean: np.ndarray, variance: float) -> AttachmentPoint:
    """Return the attachment point of a mean in whitened space."""
    return attachment_point(model.hierarchy, squared_distances(model, mean, variance).to_dict())


def attachment_support(
    model: BranchedModel, x: np.ndarray, variance: float, attachment: AttachmentPoint, *, n_bootstrap: int, seed: int
) -> float:
    """Share of resamples of a new type's cells (cells x dimensions) that leave the same branch.

    The mean of a resample has the noise of the measured mean, and the noise of resampling.
    """
    generator = numpy_generator(seed, "place")
    noise = variance + float(x.var(axis=0).sum()) / len(x)
    means = (x[generator.integers(len(x), size=len(x))].mean(axis=0) for _ in range(n_bootstrap))
    return float(np.mean([attachment_of(model, mean, noise).branch == attachment.branch for mean in means]))


def embedding_of(model: BranchedModel, branch: str) -> torch.Tensor:
    """Embedding of a branch in the denoiser."""
    return model.denoiser.branch.weight[model.hierarchy.denoiser_branches[branch]].detach().cpu().clone()


def held_out_cells(cells: ad.AnnData) -> ad.AnnData:
    """Take the cells that no parameter is fitted to, or all where there are none."""
    chosen = cells[cells.obs["split"] != "train"]
    return chosen if chosen.n_obs else cells


def n_cells_by_batch(obs: pd.DataFrame) -> pd.Series:
    """Count cells in each batch, most first; in one row ``n_cells`` where there are no batches."""
    batch = obs["batch"].astype(str) if "batch" in obs else pd.Series("n_cells", index=obs.index)
    return batch.value_counts()


def refit(model: BranchedModel, cells: ad.AnnData, *, seed: int, device: str, **facts: Any) -> BranchedModel:
    """Fit a new model to the cells of all types, with the settings of the model.

    The cells that it generates of known types change too, and it has no extensions.

    Parameters
    ----------
    cells
        Prepared cells of all types, known and new.
    """
    settings = FitSettings(
        autoencoder=known_settings(AutoencoderSettings, model.autoencoder.provenance),
        hierarchy=HierarchySettings(threshold=model.hierarchy.threshold),
        denoiser=known_settings(DenoiserSettings, model.provenance),
    )
    return fit(cells, settings, seed=seed, device=device, **facts).model


def known_settings(kind: type, record: dict[str, Any]) -> Any:
    """Return the settings of a kind that a record has."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in record["settings"].items() if name in names})
