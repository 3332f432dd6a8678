"""Ablation: `bdm` with the network on all branches, trained for all steps, whatever validation cells gain by it."""

from dataclasses import replace
from typing import Any

import ablation
import pandas as pd
from anndata import AnnData

from bdm.autoencoder.storage import GeneAutoencoder
from bdm.hierarchy.tree import Hierarchy
from bdm.model.fit import fit_model
from bdm.model.model import BranchedModel
from bdm.settings import DenoiserSettings


def fit_everywhere(
    latent: AnnData, autoencoder: GeneAutoencoder, hierarchy: Hierarchy, settings: DenoiserSettings, **how: Any
) -> tuple[BranchedModel, dict[str, pd.DataFrame]]:
    """Fit a model without an early end, and use its network on all branches."""
    model, tables = fit_model(latent, autoencoder, hierarchy, replace(settings, patience=settings.n_steps), **how)
    model.denoiser.learned.fill_(True)
    return model, tables


if __name__ == "__main__":
    ablation.run(fit=fit_everywhere)
