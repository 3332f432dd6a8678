from dataclasses import asdict, dataclass, field

import anndata as ad
import pandas as pd

from bdm.autoencoder.fit import AutoencoderSettings, fit_autoencoder
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.checkpoint import Checkpoint
from bdm.diffusion.fit import DenoiserSettings
from bdm.hierarchy.build import HierarchySettings, build_hierarchy
from bdm.hierarchy.topology import Clade
from bdm.latent.cells import encode, latent_cells
from bdm.model.fit import fit_model
from bdm.model.model import BranchedModel
from bdm.provenance import preparation, provenance


@dataclass(frozen=True)
class Checkpoints:
    """Where each training goes on from, if it was interrupted."""

    autoencoder: Checkpoint | None = None
    denoiser: Checkpoint | None = None


@dataclass(frozen=True)
class LearningSettings:
    """Settings of all that is learnt from prepared cells."""

    autoencoder: AutoencoderSettings = field(default=AutoencoderSettings())
    hierarchy: HierarchySettings = field(default=HierarchySettings())
    denoiser: DenoiserSettings = field(default=DenoiserSettings())


@dataclass(frozen=True)
class Fitted:
    """A fitted model, and how its trainings went.

    Attributes
    ----------
    history
        Tables of ``autoencoder`` and ``denoiser``: by step, the loss and, where there are validation cells, their loss.
    """

    model: BranchedModel
    history: dict[str, pd.DataFrame]


def learn(
    prepared: ad.AnnData,
    settings: LearningSettings,
    *,
    tree: Clade | None = None,
    seed: int,
    device: str = "auto",
    checkpoints: Checkpoints = Checkpoints(),
    **facts: str | None,
) -> Fitted:
    """Learn a model from prepared cells: autoencoder, hierarchy, denoiser.

    Parameters
    ----------
    tree
        Shape to use in place of the clustering's.
    facts
        More for the record of how the model was made.
    """
    fitted = fit_autoencoder(
        prepared, settings.autoencoder, seed=seed, device=device, checkpoint=checkpoints.autoencoder
    )
    record = provenance(seed=seed, settings=asdict(settings.autoencoder), **preparation(prepared))
    autoencoder = GeneAutoencoder.of(fitted, prepared.var, record)
    latent = encode(prepared, autoencoder)
    hierarchy = build_hierarchy(latent_cells(latent), settings.hierarchy, seed=seed, tree=tree)
    record = provenance(seed=seed, settings=asdict(settings.denoiser), **facts)
    model, history = fit_model(
        latent,
        autoencoder,
        hierarchy,
        settings.denoiser,
        seed=seed,
        device=device,
        checkpoint=checkpoints.denoiser,
        provenance=record,
    )
    return Fitted(model, {"autoencoder": fitted.history, "denoiser": history})
