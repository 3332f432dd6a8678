"""Modalities of the same cells: genes, proteins and peaks as blocks of one matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.data.header import COLUMN, FEATURE_TYPES, RNA
from bdm.errors import InputError, counted

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
    kinds = [kind for kind, of in FEATURE_TYPES.items() if (types == of).any()]
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


def require_rna_alone(var: pd.DataFrame, what: str) -> None:
    """Reject features of several modalities in a step that knows RNA alone."""
    if has_modalities(var):
        names = ", ".join(of.name for of in modalities_of(var))
        raise InputError(
            f"{what} is possible with RNA alone, and these cells have the modalities {names}; fit a model to RNA "
            "alone, by `modality=NAME=rna`."
        )


def block_sizes(var: pd.DataFrame) -> tuple[int, ...]:
    """Count the features of each modality; empty for RNA alone."""
    found = modalities_of(var)
    return tuple(of.features.stop - of.features.start for of in found) if len(found) > 1 else ()


def size_names(var: pd.DataFrame) -> tuple[str, ...]:
    """Names of the log library sizes of the normalised modalities."""
    return tuple(of.size_name for of in modalities_of(var) if of.normalised)


def features_in_words(var: pd.DataFrame) -> str:
    """Write the number of features of each modality."""
    return " + ".join(counted(of.features.stop - of.features.start, NOUNS[of.kind]) for of in modalities_of(var))


def of_modality(cells: AnnData, modality: Modality) -> AnnData:
    """Cells of one modality, with the names that its features have in the user's file."""
    part = cells[:, modality.features]
    var = part.var.drop(columns=[COLUMN, NAMES], errors="ignore")
    var.index = var.index.str.removeprefix(modality.prefix)
    return AnnData(part.X, obs=part.obs, var=var)
