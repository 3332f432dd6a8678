from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bdm.autoencoder.storage import GeneAutoencoder, table_from_json, table_to_json
from bdm.diffusion.denoiser import BranchedDenoiser, DenoiserShape
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.moments import TypeMoments
from bdm.latent.whitening import Whitening
from bdm.store import Bundle, read_bundle, refused_if_damaged, write_bundle


@dataclass(frozen=True)
class BranchedModel:
    """Everything that generates cells: decoder, whitened space, hierarchy, denoiser, and what the data were made of.

    Attributes
    ----------
    composition
        Cells of each type (rows) in each batch (columns; one column ``""`` where no batch enters).
    library_sizes
        Smallest and largest log library size of the cells it was trained on, which generated cells keep within.
    provenance
        How it was made: versions, seeds, settings, hash of the data.
    """

    autoencoder: GeneAutoencoder
    whitening: Whitening
    moments: TypeMoments
    hierarchy: Hierarchy
    denoiser: BranchedDenoiser
    composition: pd.DataFrame
    library_sizes: Tensor
    provenance: dict[str, Any]

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Cell types that the model generates."""
        return self.moments.cell_types

    @property
    def label_key(self) -> str:
        """Column of ``obs`` that held the cell types of the data."""
        return self.autoencoder.provenance["prepare"]["label_key"]


def save_model(folder: Path, model: BranchedModel) -> None:
    """Write a model into its folder: ``model.json`` and safetensors."""
    content = {
        "autoencoder": model.autoencoder.content(),
        "denoiser": asdict(model.denoiser.shape),
        "hierarchy": model.hierarchy.to_json(),
        "cell_types": list(model.cell_types),
        "composition": table_to_json(model.composition),
        "provenance": model.provenance,
    }
    tensors = {
        "autoencoder": model.autoencoder.network.state_dict(),
        "denoiser": model.denoiser.state_dict(),
        "space": {
            "centre": model.whitening.centre,
            "covariance": model.whitening.covariance,
            "type_mean": model.moments.mean,
            "type_covariance": model.moments.covariance,
            "type_weight": model.moments.weight,
            "library_sizes": model.library_sizes,
        },
    }
    write_bundle(folder, "model", Bundle(content, tensors))


def load_model(folder: Path, *, device: str | torch.device = "cpu") -> BranchedModel:
    """Read a model from its folder; the denoiser goes to ``device``.

    Raises
    ------
    InputError
        If it is not the folder of a model, or is damaged.
    """
    bundle = read_bundle(folder, "model")
    with refused_if_damaged(folder):
        return _restore(bundle, device)


def _restore(bundle: Bundle, device: str | torch.device) -> BranchedModel:
    content, space = bundle.content, bundle.tensors["space"]
    denoiser = BranchedDenoiser(DenoiserShape(**content["denoiser"]))
    denoiser.load_state_dict(bundle.tensors["denoiser"])
    return BranchedModel(
        autoencoder=GeneAutoencoder.restore(content["autoencoder"], bundle.tensors["autoencoder"]),
        whitening=Whitening(space["centre"], space["covariance"]),
        moments=TypeMoments(
            tuple(content["cell_types"]),
            space["type_mean"],
            space["type_covariance"],
            space["type_weight"],
        ),
        hierarchy=Hierarchy.from_json(content["hierarchy"]),
        denoiser=denoiser.eval().to(device),
        composition=table_from_json(content["composition"]),
        library_sizes=space["library_sizes"],
        provenance=content["provenance"],
    )
