from dataclasses import fields
from typing import Any

import anndata as ad

from bdm.autoencoder.fit import AutoencoderSettings
from bdm.diffusion.fit import DenoiserSettings
from bdm.hierarchy.build import HierarchySettings
from bdm.model.learn import LearningSettings, learn
from bdm.model.model import BranchedModel


def refit(model: BranchedModel, cells: ad.AnnData, *, seed: int, device: str, **facts: Any) -> BranchedModel:
    """Learn everything anew, as the model was learnt, from the cells of all types.

    What it generates of known types changes too, and it remembers no extensions.

    Parameters
    ----------
    cells
        Prepared cells of all types, known and new.
    """
    settings = LearningSettings(
        known(AutoencoderSettings, model.autoencoder.provenance),
        HierarchySettings(threshold=model.hierarchy.threshold),
        known(DenoiserSettings, model.provenance),
    )
    return learn(cells, settings, seed=seed, device=device, **facts).model


def known(kind: type, record: dict[str, Any]) -> Any:
    """Find the settings of a kind in a record."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in record["settings"].items() if name in names})
