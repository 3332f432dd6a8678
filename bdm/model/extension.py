"""Extensions of a model, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bdm.autoencoder.adapters import Adapters
from bdm.checksums import read_checksummed_json, write_checksummed_json
from bdm.errors import InputError
from bdm.hierarchy.grow import AttachmentPoint
from bdm.latent.moments import Normal
from bdm.store import FORMAT, Bundle, read_bundle, reject_if_damaged, write_bundle

LIST = "extensions.json"


@dataclass(frozen=True)
class Extension:
    """Parameters of one more cell type, or of an updated one, without anything that other types use.

    Attributes
    ----------
    attachment
        Where the type leaves the hierarchy of the model that is extended; None for a type that is updated.
    support
        Share of resamples of its cells that leave the same branch; None for a type that is updated.
    adapter
        Type-specific decoder, in the latent space of the model.
    normal
        Moments of its cells in whitened space.
    mean_variance
        Sampling variance of its mean, see :func:`bdm.latent.moments.sampling_variance`.
    embedding
        Embedding of its branch in the denoiser.
    library_sizes
        Smallest and largest log library size of its cells.
    composition
        Number of its new cells in each batch.
    batches
        Offsets (of genes) of new batches, by name.
    provenance
        How it was made; ``ancestor_sha256`` is the checksum of the model that was extended.
    """

    cell_type: str
    attachment: AttachmentPoint | None
    support: float | None
    adapter: Adapters
    normal: Normal
    mean_variance: float
    embedding: Tensor
    library_sizes: Tensor
    composition: pd.Series
    batches: dict[str, Tensor]
    provenance: dict[str, Any]


def save_extensions(folder: Path, extensions: Sequence[Extension], *, of: str) -> None:
    """Write the extensions of a model, each into a numbered folder, and a list of them.

    Parameters
    ----------
    of
        Checksum of the model before any extension.
    """
    folder.mkdir()
    checksums = {}
    for number, extension in enumerate(extensions, start=1):
        checksums[f"{number:04}"] = save_extension(folder / f"{number:04}", extension)
    write_checksummed_json(folder / LIST, {"format": FORMAT, "model": of, "extensions": checksums})


def load_extensions(folder: Path, *, of: str) -> list[Extension]:
    """Read the extensions of a model in their order; none if there is no such folder.

    Raises
    ------
    InputError
        If one is damaged, missing, or belongs to another model.
    """
    if not folder.exists():
        return []
    content = read_checksummed_json(folder / LIST, "list of extensions", version=FORMAT)
    surplus = {part.name for part in folder.glob("[0-9]*")} - set(content["extensions"])
    if content["model"] != of or surplus:
        raise InputError(f"{folder} has extensions of another model; make the extended model again.")
    extensions = []
    for name, checksum in content["extensions"].items():
        bundle = read_bundle(folder / name, "extension")
        if bundle.content["checksum"] != checksum:
            raise InputError(f"{folder / name} belongs to another model; make the extended model again.")
        with reject_if_damaged(folder / name):
            extensions.append(_restore(bundle))
    return extensions


def save_extension(folder: Path, extension: Extension) -> str:
    """Write an extension into a folder, ``extension.json`` and safetensors, and return its checksum."""
    content = {
        "cell_type": extension.cell_type,
        "attachment": None if extension.attachment is None else asdict(extension.attachment),
        "support": extension.support,
        "mean_variance": extension.mean_variance,
        "composition": {str(batch): int(n_cells) for batch, n_cells in extension.composition.items()},
        "batches": list(extension.batches),
        "provenance": extension.provenance,
    }
    offsets = [*extension.batches.values()]
    tensors = {
        "adapter": extension.adapter.tensors(),
        "branch": {
            "mean": extension.normal.mean,
            "covariance": extension.normal.covariance,
            "embedding": extension.embedding,
            "library_sizes": extension.library_sizes,
            "batch_offset": torch.stack(offsets) if offsets else torch.empty(0),
        },
    }
    return write_bundle(folder, "extension", Bundle(content, tensors))


def _restore(bundle: Bundle) -> Extension:
    content, branch = bundle.content, bundle.tensors["branch"]
    return Extension(
        cell_type=content["cell_type"],
        attachment=content["attachment"] and AttachmentPoint(**content["attachment"]),
        support=content["support"],
        adapter=Adapters((content["cell_type"],), **bundle.tensors["adapter"]),
        normal=Normal(branch["mean"], branch["covariance"]),
        mean_variance=content["mean_variance"],
        embedding=branch["embedding"],
        library_sizes=branch["library_sizes"],
        composition=pd.Series(content["composition"], name=content["cell_type"]),
        batches=dict(zip(content["batches"], branch["batch_offset"], strict=True)),
        provenance=content["provenance"],
    )
