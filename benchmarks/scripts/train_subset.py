"""Train models on a subset of the cells, in one process."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from anndata import AnnData

from bdm.autoencoder.fit import fit_autoencoder
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.hierarchy.build import build_hierarchy
from bdm.latent.cells import encode, latent_cells
from bdm.model.fit import fit_model
from bdm.model.model import BranchedModel
from bdm.provenance import preparation
from bdm.settings import AutoencoderSettings, DenoiserSettings, HierarchySettings


@dataclass(frozen=True)
class Encoded:
    """Cells in the latent space of an autoencoder that was trained on them."""

    autoencoder: GeneAutoencoder
    latent: AnnData


def cells_of_types(prepared: AnnData, cell_types: Iterable[str]) -> AnnData:
    """Take the cells of the given types."""
    cells = prepared[prepared.obs["cell_type"].isin(list(cell_types))].copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.remove_unused_categories()
    return cells


def encoded(cells: AnnData, settings: AutoencoderSettings, *, seed: int) -> Encoded:
    """Train an autoencoder, and encode the cells."""
    record = {"settings": asdict(settings), **preparation(cells)}
    autoencoder, _ = fit_autoencoder(cells, settings, seed=seed, provenance=record)
    return Encoded(autoencoder, encode(cells, autoencoder))


def with_shared_decoder_only(of: Encoded, cells: AnnData) -> Encoded:
    """Encode the cells anew, by the decoder of all types alone."""
    autoencoder = replace(of.autoencoder, adapters=of.autoencoder.adapters.subset(()))
    return Encoded(autoencoder, encode(cells, autoencoder))


def fit_model_of(
    of: Encoded, hierarchy: HierarchySettings, denoiser: DenoiserSettings, *, everywhere: bool = False, seed: int
) -> BranchedModel:
    """Make the hierarchy of encoded cells, and train the model, with its network on all branches if asked to."""
    tree = build_hierarchy(latent_cells(of.latent), hierarchy, seed=seed)
    return fit_model(of.latent, of.autoencoder, tree, denoiser, everywhere=everywhere, seed=seed, provenance={})[0]
