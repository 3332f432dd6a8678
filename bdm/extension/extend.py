from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

from bdm.diffusion.fit import DenoiserSettings
from bdm.extension.adapt import Adapted, AdapterSettings, adapted
from bdm.extension.branch import fit_embedding
from bdm.hierarchy.grow import Place, find_place
from bdm.latent.cells import encode, latent_cells
from bdm.latent.moments import Normal, type_moments
from bdm.model.extension import Extension
from bdm.model.model import BranchedModel, extended, with_branch
from bdm.seeds import numpy_generator


@dataclass(frozen=True)
class ExtendSettings:
    """Settings of an extension."""

    adapter: AdapterSettings = field(default=AdapterSettings())
    branch: DenoiserSettings = field(default=DenoiserSettings(n_steps=200))
    n_bootstrap: int = 100


@dataclass(frozen=True)
class Extended:
    """An extended model, and how the new type came into it.

    Attributes
    ----------
    distance
        From the new type's mean to that of each known one, in whitened space, by name, nearest first.
    """

    model: BranchedModel
    extension: Extension
    adapted: Adapted
    distance: pd.Series


def extend(
    model: BranchedModel,
    cells: ad.AnnData,
    cell_type: str,
    settings: ExtendSettings,
    *,
    seed: int,
    provenance: dict[str, Any],
) -> Extended:
    """Add a cell type to a model, without a change to any other.

    Parameters
    ----------
    cells
        Prepared cells of the type, with the model's genes in its order.
    """
    found = adapted(cells, model.autoencoder, settings.adapter, seed=seed)
    autoencoder = model.autoencoder
    with_own = autoencoder.with_own(cell_type, found.network)
    latent = encode(cells, with_own)
    of_type = latent_cells(latent)
    moments = type_moments(of_type, model.whitening)
    normal = Normal(moments.mean[0], moments.covariance[0])
    x = model.whitening(of_type.mean).numpy()
    known = model.moments.mean.numpy()
    place = place_of(model, x.mean(axis=0), known)
    support = place_support(model, x, known, place, n_bootstrap=settings.n_bootstrap, seed=seed)
    embedding = start_embedding(model, place)
    denoiser = with_branch(model.denoiser, normal, embedding)
    embedding, _ = fit_embedding(denoiser, of_type, model.whitening, place.level, settings.branch, seed=seed)
    library_sizes = of_type.mean[:, -1]
    extension = Extension(
        cell_type=cell_type,
        place=place,
        support=support,
        autoencoder=found.network,
        normal=normal,
        embedding=embedding,
        library_sizes=torch.stack([library_sizes.min(), library_sizes.max()]),
        composition=composition_of(cells),
        provenance=provenance,
    )
    distance = pd.Series(np.linalg.norm(known - x.mean(axis=0), axis=1), index=model.cell_types).sort_values()
    return Extended(extended(model, extension), extension, found, distance)


def extend_all(
    model: BranchedModel,
    added: dict[str, ad.AnnData],
    settings: ExtendSettings,
    *,
    seed: int,
    provenance: dict[str, Any],
) -> Iterator[Extended]:
    """Add cell types one after the other, given the prepared cells of each; the last model has them all."""
    for cell_type, cells in added.items():
        found = extend(model, cells, cell_type, settings, seed=seed, provenance=provenance)
        model = found.model
        yield found


def place_of(model: BranchedModel, mean: np.ndarray, known: np.ndarray) -> Place:
    """Find where a mean in whitened space belongs in the tree."""
    distance = np.linalg.norm(known - mean, axis=1)
    return find_place(model.hierarchy, dict(zip(model.cell_types, distance.tolist(), strict=True)))


def place_support(
    model: BranchedModel, x: np.ndarray, known: np.ndarray, place: Place, *, n_bootstrap: int, seed: int
) -> float:
    """Share of resamples of the type's cells (cells x dimensions) that leave the same branch."""
    generator = numpy_generator(seed, "place")
    drawn = (x[generator.integers(len(x), size=len(x))].mean(axis=0) for _ in range(n_bootstrap))
    return float(np.mean([place_of(model, mean, known).branch == place.branch for mean in drawn]))


def start_embedding(model: BranchedModel, place: Place) -> torch.Tensor:
    """Embedding of the branch that the type leaves."""
    runner = model.hierarchy.by_name[place.branch].runner
    return model.denoiser.branch.weight[model.hierarchy.runners.index(runner)].detach().cpu().clone()


def composition_of(cells: ad.AnnData) -> pd.Series:
    """Cells to learn from in each batch; ``""`` where there are no batches."""
    learnt = cells.obs[cells.obs["split"] != "test"]
    batch = learnt["batch"].astype(str) if "batch" in learnt else pd.Series("", index=learnt.index)
    return batch.value_counts()
