"""Modalities of the same cells: genes, proteins and peaks as blocks of one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.errors import counted

RNA = "rna"
FEATURE_TYPES = {RNA: "Gene Expression", "prot": "Antibody Capture", "atac": "Peaks"}  # of 10x, by kind, in block order
COLUMN = "feature_types"  # of var: kind of each feature as 10x has it
PROTEINS = "protein_expression"  # in obsm as scvi-tools has them
# Other names that modalities of a kind have in files
ALIASES = {
    RNA: ("gex", "gene", "genes", "gene expression"),
    "prot": ("adt", "protein", "proteins", "cite", "antibody capture"),
    "atac": ("peak", "peaks", "chromatin"),
}
NOUNS = {RNA: "gene", "prot": "protein", "atac": "peak"}  # for a feature, by kind
NAMES = "modality"  # column of var: name of the modality of each feature
LIBRARY_SIZE = "log_library_size"


@dataclass(frozen=True)
class Modality:
    """One block of features."""

    name: str  # as in the user's file
    kind: str  # see FEATURE_TYPES
    features: slice  # columns

    @property
    def n_features(self) -> int:
        """Number of its features."""
        return int(self.features.stop - self.features.start)

    @property
    def normalised(self) -> bool:
        """Whether its features are shares of a library size; levels of proteins are not, see the decoder."""
        return self.kind != "prot"

    @property
    def size_name(self) -> str:
        """Name of its log library size, a coordinate of the latent."""
        return LIBRARY_SIZE if self.kind == RNA else f"log_size_{self.name}"

    @property
    def prefix(self) -> str:
        """What the names of its features begin with, so that a protein is distinguished from its gene."""
        return "" if self.kind == RNA else f"{self.name}:"


def modalities_of(var: pd.DataFrame) -> list[Modality]:
    """List the modalities of features that are in blocks; RNA alone, where no others are known."""
    if COLUMN not in var:
        return [Modality(RNA, RNA, slice(0, len(var)))]
    types = var[COLUMN].astype(str).to_numpy()
    kinds = [kind for kind, name in FEATURE_TYPES.items() if (types == name).any()]
    if len(kinds) < 2:
        return [Modality(RNA, RNA, slice(0, len(var)))]
    found, start = [], 0
    for kind in kinds:
        n_features = int((types == FEATURE_TYPES[kind]).sum())
        name = str(var[NAMES].iloc[start]) if NAMES in var else kind
        found.append(Modality(name, kind, slice(start, start + n_features)))
        start += n_features
    return found


def has_modalities(cells: AnnData | pd.DataFrame) -> bool:
    """Whether cells, or the features of a ``var``, are of several modalities."""
    return len(modalities_of(cells.var if isinstance(cells, AnnData) else cells)) > 1


def of_rna(var: pd.DataFrame) -> np.ndarray:
    """Mask of the genes among features, in blocks or not; all, where no other modalities are known."""
    return (
        (var[COLUMN].astype(str) == FEATURE_TYPES[RNA]).to_numpy() if has_modalities(var) else np.ones(len(var), bool)
    )


def block_sizes(var: pd.DataFrame) -> tuple[int, ...]:
    """Count the features of each modality; empty for RNA alone."""
    found = modalities_of(var)
    return tuple(modality.n_features for modality in found) if len(found) > 1 else ()


def size_names(var: pd.DataFrame) -> tuple[str, ...]:
    """Names of the log library sizes of the normalised modalities."""
    return tuple(modality.size_name for modality in modalities_of(var) if modality.normalised)


def spread(values: Sequence[np.ndarray], modalities: Sequence[Modality]) -> np.ndarray:
    """Give each feature, in the last axis, the value of its modality; that of one modality is left to be broadcast."""
    if len(values) == 1:
        return values[0]
    parts = zip(values, [modality.n_features for modality in modalities], strict=True)
    return np.concatenate([np.broadcast_to(value, (*value.shape[:-1], number)) for value, number in parts], axis=-1)


def per_10k(counts: np.ndarray, modalities: Sequence[Modality]) -> np.ndarray:
    """Factor of counts, cells x features, to counts per 10,000 of the modality; 1 for proteins, which are no shares."""
    sizes = [counts[:, modality.features].sum(axis=1, keepdims=True) for modality in modalities]
    factors = [
        1e4 / size if modality.normalised else np.ones_like(size)
        for modality, size in zip(modalities, sizes, strict=True)
    ]
    return spread(factors, modalities)


def features_in_words(var: pd.DataFrame) -> str:
    """Write the number of features of each modality."""
    return " + ".join(counted(modality.n_features, NOUNS[modality.kind]) for modality in modalities_of(var))


def of_modality(cells: AnnData, modality: Modality) -> AnnData:
    """Cells of one modality, with the names that its features have in the user's file."""
    part = cells[:, modality.features]
    var = part.var.drop(columns=[COLUMN, NAMES], errors="ignore")
    var.index = var.index.str.removeprefix(modality.prefix)
    varm = {name: pd.DataFrame(table).set_axis(var.index) for name, table in part.varm.items()}
    return AnnData(part.X, obs=part.obs, var=var, varm=varm, layers=dict(part.layers))
