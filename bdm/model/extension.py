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
from bdm.autoencoder.storage import table_from_json, table_to_json
from bdm.autoencoder.sub_populations import SubPopulations
from bdm.checksums import read_checksummed_json, write_checksummed_json
from bdm.errors import InputError
from bdm.hierarchy.grow import AttachmentPoint
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.moments import PopulationMoments
from bdm.store import FORMAT, Bundle, read_bundle, reject_if_damaged, write_bundle

LIST = "extensions.json"


@dataclass(frozen=True, eq=False)
class Extension:
    """Parameters of one more cell type, or of an updated population, without anything that others use.

    Attributes
    ----------
    attachment
        Where the type leaves the hierarchy of the model that is extended; None for an updated population.
    support
        Share of resamples of its cells that leave the same branch; None for an updated population or without resamples.
    tree
        Branches of the populations, from the attachment point down: one leaf, or the clade of a type with several.
    adapters
        Type-specific decoders of the populations, in the latent space of the model; of a type with several, also its
        own.
    sub_populations
        Sub-populations of the type; none if it is one population, and for an updated one.
    moments
        Of the populations, in whitened space.
    embeddings
        Embeddings of the branches of ``tree`` in the denoiser, branches x width.
    library_sizes
        Smallest and largest log library size of its cells.
    composition
        Number of its new cells, by population (rows) and batch (columns).
    batches
        Offsets (of genes) of new batches, by name.
    provenance
        How it was made; ``ancestor_sha256`` is the checksum of the model that was extended.
    """

    cell_type: str
    attachment: AttachmentPoint | None
    support: float | None
    tree: Hierarchy
    adapters: Adapters
    sub_populations: SubPopulations
    moments: PopulationMoments
    embeddings: Tensor
    library_sizes: Tensor
    composition: pd.DataFrame
    batches: dict[str, Tensor]
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the new cell type, or of the updated population."""
        return self.tree.root.name

    @property
    def n_cells(self) -> int:
        """Number of new cells that the type was fitted to."""
        return int(self.composition.to_numpy().sum())


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
        "tree": extension.tree.to_json(),
        "adapters": list(extension.adapters),
        "sub_populations": list(extension.sub_populations.names),
        "populations": list(extension.moments.populations),
        "composition": table_to_json(extension.composition),
        "batches": list(extension.batches),
        "provenance": extension.provenance,
    }
    offsets = [*extension.batches.values()]
    tensors = {
        "adapters": extension.adapters.tensors(),
        "sub_populations": extension.sub_populations.tensors(),
        "moments": extension.moments.tensors(),
        "branches": {
            "embeddings": extension.embeddings,
            "library_sizes": extension.library_sizes,
            "batch_offset": torch.stack(offsets) if offsets else torch.empty(0),
        },
    }
    return write_bundle(folder, "extension", Bundle(content, tensors))


def _restore(bundle: Bundle) -> Extension:
    content, tensors = bundle.content, bundle.tensors
    cell_type, found = content["cell_type"], tuple(content["sub_populations"])
    return Extension(
        cell_type=cell_type,
        attachment=content["attachment"] and AttachmentPoint(**content["attachment"]),
        support=content["support"],
        tree=Hierarchy.from_json(content["tree"]),
        adapters=Adapters(tuple(content["adapters"]), **tensors["adapters"]),
        sub_populations=SubPopulations(found, (cell_type,) * len(found), **tensors["sub_populations"]),
        moments=PopulationMoments(tuple(content["populations"]), **tensors["moments"]),
        embeddings=tensors["branches"]["embeddings"],
        library_sizes=tensors["branches"]["library_sizes"],
        composition=table_from_json(content["composition"]),
        batches=dict(zip(content["batches"], tensors["branches"]["batch_offset"], strict=True)),
        provenance=content["provenance"],
    )
