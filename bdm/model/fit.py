from collections.abc import Callable
from typing import Any

import anndata as ad
import pandas as pd
import torch
from lightning.fabric import Fabric

from bdm.autoencoder.storage import GeneAutoencoder
from bdm.checkpoint import Checkpoint
from bdm.diffusion.denoiser import BranchedDenoiser, DenoiserShape
from bdm.diffusion.fit import DenoiserSettings, fit_denoiser
from bdm.diffusion.walk import TreeWalk
from bdm.errors import InputError
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import latent_cells
from bdm.latent.moments import type_moments
from bdm.latent.whitening import fit_whitening
from bdm.model.collapse import check_types
from bdm.model.model import BranchedModel, composition_of
from bdm.threads import using_threads


@using_threads()
def fit_model(
    latent: ad.AnnData,
    autoencoder: GeneAutoencoder,
    hierarchy: Hierarchy,
    settings: DenoiserSettings,
    *,
    seed: int,
    device: str | Fabric = "auto",
    checkpoint: Checkpoint | None = None,
    denoiser: Callable[[DenoiserShape], BranchedDenoiser] = BranchedDenoiser,
    provenance: dict[str, Any],
) -> tuple[BranchedModel, pd.DataFrame]:
    """Train the branched model on encoded cells.

    Parameters
    ----------
    latent
        Posteriors of the cells, as :func:`bdm.latent.cells.encode` gives them; test cells are left out.
    checkpoint
        Where training goes on from, if it was interrupted.
    denoiser
        Makes the network, see :func:`bdm.diffusion.fit.fit_denoiser`.

    Returns
    -------
    The model, and the history of its training.

    Raises
    ------
    InputError
        If the hierarchy is of other cell types than the cells.
    TrainingError
        If training goes wrong.
    """
    cells = latent_cells(latent)
    if set(hierarchy.cell_types) != set(cells.cell_types):
        other = sorted(set(hierarchy.cell_types) ^ set(cells.cell_types))
        raise InputError(
            f"The hierarchy and the cells differ in their types ({', '.join(other)}); make the hierarchy anew."
        )
    whitening = fit_whitening(cells)
    moments = type_moments(cells, whitening)
    fitted = fit_denoiser(
        cells,
        whitening,
        moments,
        hierarchy,
        settings,
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        denoiser=denoiser,
    )
    check_types(TreeWalk(fitted.network, hierarchy), cells, whitening, seed=seed)
    library_sizes = cells.mean[:, -1]
    model = BranchedModel(
        autoencoder=autoencoder,
        whitening=whitening,
        moments=moments,
        hierarchy=hierarchy,
        denoiser=fitted.network,
        composition=composition_of(latent.obs[latent.obs["split"] != "test"]),
        library_sizes=torch.stack([library_sizes.min(), library_sizes.max()]),
        provenance=provenance,
    )
    return model, fitted.history
