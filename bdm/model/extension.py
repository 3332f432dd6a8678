from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from bdm.autoencoder.network import AutoencoderShape, CountAutoencoder
from bdm.hierarchy.grow import Place
from bdm.latent.moments import Normal
from bdm.store import Bundle, read_bundle, refused_if_damaged, write_bundle


@dataclass(frozen=True)
class Extension:
    """All that a model needs to generate one more cell type, and nothing that other types use.

    Attributes
    ----------
    place
        Where the type leaves the tree of the model that is extended.
    support
        Share of resamples of its cells that have this place.
    autoencoder
        Of this type alone, in the model's latent space.
    normal
        Moments of its cells in whitened space.
    embedding
        Of its branch in the denoiser.
    library_sizes
        Smallest and largest log library size of its cells.
    composition
        Its cells in each batch.
    provenance
        How it was made; ``ancestor_sha256`` is that of the model that was extended.
    """

    cell_type: str
    place: Place
    support: float
    autoencoder: CountAutoencoder
    normal: Normal
    embedding: Tensor
    library_sizes: Tensor
    composition: pd.Series
    provenance: dict[str, Any]


def save_extension(folder: Path, extension: Extension) -> None:
    """Write an extension into a folder: ``extension.json`` and safetensors."""
    content = {
        "cell_type": extension.cell_type,
        "place": asdict(extension.place),
        "support": extension.support,
        "shape": asdict(extension.autoencoder.shape),
        "composition": {str(batch): int(n_cells) for batch, n_cells in extension.composition.items()},
        "provenance": extension.provenance,
    }
    tensors = {
        "autoencoder": extension.autoencoder.state_dict(),
        "branch": {
            "mean": extension.normal.mean,
            "covariance": extension.normal.covariance,
            "embedding": extension.embedding,
            "library_sizes": extension.library_sizes,
        },
    }
    write_bundle(folder, "extension", Bundle(content, tensors))


def load_extension(folder: Path) -> Extension:
    """Read an extension from its folder.

    Raises
    ------
    InputError
        If it is not the folder of an extension, or is damaged.
    """
    bundle = read_bundle(folder, "extension")
    content, branch = bundle.content, bundle.tensors["branch"]
    with refused_if_damaged(folder):
        network = CountAutoencoder(AutoencoderShape(**content["shape"]))
        network.load_state_dict(bundle.tensors["autoencoder"])
        return Extension(
            cell_type=content["cell_type"],
            place=Place(**content["place"]),
            support=content["support"],
            autoencoder=network.eval(),
            normal=Normal(branch["mean"], branch["covariance"]),
            embedding=branch["embedding"],
            library_sizes=branch["library_sizes"],
            composition=pd.Series(content["composition"], name=content["cell_type"]),
            provenance=content["provenance"],
        )
