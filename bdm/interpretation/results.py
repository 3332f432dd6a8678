"""Interpretations: marker genes, ancestral states and stability of every branch, in memory and as a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from bdm.arrays import to_tensor
from bdm.autoencoder.storage import table_from_json, table_to_json
from bdm.data.columns import writable
from bdm.data.matrix import write_h5ad
from bdm.data.symbols import GeneNames
from bdm.files import atomic_write
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation import tables
from bdm.interpretation.agreement import ContrastGenes
from bdm.interpretation.ancestral_states import AncestralStates, Embedding
from bdm.interpretation.commitment import Commitment
from bdm.interpretation.contrasts import Differences, FoldChange, contrasts_of
from bdm.interpretation.markers import Dots, Markers, members_of_types
from bdm.provenance import storable
from bdm.settings import InterpretationSettings
from bdm.store import Bundle, Decoder, Encoder, pack_tables, read_bundle, reject_if_damaged, unpack_tables, write_bundle
from bdm.text import counted

KIND = "interpretation"
TESTED = ("training", "equal", "test")  # differences of ContrastGenes in real cells, None where there are too few
DOTS = ("real", "generated", "clades", "ancestral_states")  # of Markers: by type, the last two by branch


@dataclass(frozen=True, repr=False)
class Interpretation:
    """Marker genes of every branch, ancestral states, agreement with real cells, and markers of cell types.

    Attributes
    ----------
    names
        Names and symbols of the genes.
    contrasts
        Genes of each branch against its siblings.
    agreement
        By node, see :func:`bdm.interpretation.interpret.agreement_by_node`.
    stability
        By node, see :func:`bdm.interpretation.stability.node_stability`.
    enrichment
        By contrast and gene set, see :func:`bdm.interpretation.gene_sets.enrichment`.
    embedding
        Coordinates of ancestral states and real cells in one UMAP.
    held_out
        Whether the model was not fitted to the test cells.
    provenance
        Version, packages, seed, settings, and checksums of the files that were read.
    """

    settings: InterpretationSettings
    names: GeneNames
    hierarchy: Hierarchy
    ancestral_states: AncestralStates
    contrasts: tuple[ContrastGenes, ...]
    agreement: pd.DataFrame
    stability: pd.DataFrame
    enrichment: pd.DataFrame
    markers: Markers
    embedding: Embedding
    held_out: bool
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        nodes, types = counted(len(self.nodes), "node"), counted(len(self.hierarchy.cell_types), "cell type")
        return f"Interpretation of {nodes}, {types} x {len(self.genes):,} genes"

    @property
    def genes(self) -> pd.Index:
        """Names of the genes, as the data have them."""
        return self.names.index

    @cached_property
    def labels(self) -> pd.Index:
        """What figures and tables show genes as."""
        return pd.Index(self.names.labels)

    @property
    def nodes(self) -> dict[str, tuple[ContrastGenes, ...]]:
        """Contrasts by node."""
        grouped = groupby(self.contrasts, key=lambda of: of.contrast.node)
        return {node: tuple(contrasts) for node, contrasts in grouped}

    def save(self, folder: Path | str) -> None:
        """Write the interpretation as a folder, for :meth:`load`.

        The folder has ``interpretation.json`` and ``interpretation.safetensors`` with everything, tables to read
        (.csv), and ``branches.h5ad`` for scanpy, see :func:`bdm.interpretation.tables.branches_adata`.

        Raises
        ------
        InputError
            If the folder cannot be written, or holds anything but an interpretation.
        """
        with atomic_write(Path(folder), folder_of=f"{KIND}.json") as out:
            columns, tensors = pack_tables(
                {
                    "agreement": self.agreement,
                    "stability": self.stability.reset_index(),
                    "enrichment": self.enrichment,
                    "embedding": self.embedding.cells,
                }
            )
            means = tables.mean_agreement_by_query(self.agreement)
            content = {
                "provenance": self.provenance,
                "held_out": self.held_out,
                "mean_agreement": means.astype(object).where(means.notna(), None).to_dict(),
                "settings": asdict(self.settings),
                "genes": {**table_to_json(self.names.var), "symbols": self.names.column},
                "hierarchy": Encoder().encode(self.hierarchy, "hierarchy"),
                "markers": self.markers.genes,
                "tested": children_with_differences(self.contrasts),
                "tables": columns,
            }
            write_bundle(out, KIND, Bundle(content, {KIND: {**tensors, **pack_arrays(self)}}))
            for name, table in tables.tables_to_read(self).items():
                table = self.names.with_symbols(table) if "gene" in table else table
                table.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
            adata = tables.branches_adata(self)
            adata.uns["bdm"] = storable(self.provenance)
            write_h5ad(out / "branches.h5ad", adata)

    @classmethod
    def load(cls, folder: Path | str) -> Interpretation:
        """Read an interpretation that :meth:`save` or ``bdm interpret`` wrote.

        Raises
        ------
        InputError
            If the folder holds no interpretation, one of another version of bdm, or a damaged one.
        """
        bundle = read_bundle(Path(folder), KIND)
        with reject_if_damaged(Path(folder) / f"{KIND}.json"):
            content, tensors = bundle.content, bundle.tensors[KIND]
            names = GeneNames(writable(table_from_json(content["genes"])), content["genes"]["symbols"])
            hierarchy = Decoder({}).decode(content["hierarchy"], Hierarchy)
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            frames = unpack_tables(content["tables"], tensors)
            states = ancestral_states_of(arrays, hierarchy, names.index)
            return cls(
                settings=InterpretationSettings(**content["settings"]),
                names=names,
                hierarchy=hierarchy,
                ancestral_states=states,
                contrasts=contrasts_from_arrays(arrays, content["tested"], hierarchy),
                agreement=frames["agreement"],
                stability=frames["stability"].set_index("node"),
                enrichment=frames["enrichment"],
                markers=markers_from_arrays(arrays, content["markers"], hierarchy),
                embedding=Embedding(arrays["embedding/ancestral_states"], frames["embedding"]),
                held_out=content["held_out"],
                provenance=content["provenance"],
            )


def children_with_differences(contrasts: Sequence[ContrastGenes]) -> dict[str, list[str]]:
    """List the children of contrasts with differences in real cells, by query."""
    return {query: [of.contrast.child for of in contrasts if getattr(of, query)] for query in TESTED}


def pack_arrays(interpretation: Interpretation) -> dict[str, Tensor]:
    """Return the arrays of an interpretation as tensors: differences and commitment are contrasts x genes."""
    states, contrasts, markers = interpretation.ancestral_states, interpretation.contrasts, interpretation.markers
    arrays: dict[str, np.ndarray] = {
        "ancestral_states/x": states.x,
        "ancestral_states/expression": states.expression.to_numpy(),
        "ancestral_states/detected": states.detected.to_numpy(),
        "embedding/ancestral_states": interpretation.embedding.ancestral_states,
    }
    for name in ("shift", "variance", "size"):
        arrays[f"commitment/{name}"] = np.array([getattr(of.commitment, name) for of in contrasts])
    for query in ("model", *TESTED):
        differences = [found for of in contrasts if (found := getattr(of, query))]
        arrays |= {f"{query}/{name}": values for name, values in differences_as_arrays(differences).items()}
    for name in DOTS:
        dots: Dots = getattr(markers, name)
        arrays |= {f"markers/{name}_mean": dots.mean.to_numpy(), f"markers/{name}_fraction": dots.fraction.to_numpy()}
    return {name: to_tensor(np.ascontiguousarray(values)) for name, values in arrays.items()}


def differences_as_arrays(differences: Sequence[Differences]) -> dict[str, np.ndarray]:
    """Stack the arrays of differences, contrasts x genes."""
    return {
        "log2": np.array([found.fold_change.log2 for found in differences]),
        "standard_error": np.array([found.fold_change.standard_error for found in differences]),
        "score": np.array([found.score for found in differences]),
        "p": np.array([found.p for found in differences]),
    }


def ancestral_states_of(arrays: dict[str, np.ndarray], hierarchy: Hierarchy, genes: pd.Index) -> AncestralStates:
    """Restore the ancestral states."""
    frame = {"index": [branch.name for branch in hierarchy.branches], "columns": genes}
    expression, detected = (arrays[f"ancestral_states/{name}"] for name in ("expression", "detected"))
    return AncestralStates(
        arrays["ancestral_states/x"], pd.DataFrame(expression, **frame), pd.DataFrame(detected, **frame)
    )


def contrasts_from_arrays(
    arrays: dict[str, np.ndarray], tested: dict[str, list[str]], hierarchy: Hierarchy
) -> tuple[ContrastGenes, ...]:
    """Restore the genes of each contrast.

    Parameters
    ----------
    tested
        Children with differences in real cells, by query.
    """
    contrasts = contrasts_of(hierarchy)
    children = {"model": [contrast.child for contrast in contrasts], **tested}
    differences = {
        query: {
            child: Differences(FoldChange(log2, standard_error), score, p)
            for child, log2, standard_error, score, p in zip(
                names, *(arrays[f"{query}/{name}"] for name in ("log2", "standard_error", "score", "p")), strict=True
            )
        }
        for query, names in children.items()
    }
    commitments = zip(*(arrays[f"commitment/{name}"] for name in ("shift", "variance", "size")), strict=True)
    return tuple(
        ContrastGenes(
            contrast,
            differences["model"][contrast.child],
            Commitment(*values),
            **{query: differences[query].get(contrast.child) for query in TESTED},
        )
        for contrast, values in zip(contrasts, commitments, strict=True)
    )


def markers_from_arrays(arrays: dict[str, np.ndarray], genes: dict[str, list[str]], hierarchy: Hierarchy) -> Markers:
    """Restore the markers of cell types and branches."""
    columns = [gene for members in genes.values() for gene in members]
    branches = [branch.name for branch in hierarchy.branches]
    by_type = list(members_of_types(hierarchy))
    rows = dict(zip(DOTS, (by_type, by_type, branches, branches), strict=True))
    dots = {
        name: Dots(
            *(
                pd.DataFrame(arrays[f"markers/{name}_{statistic}"], index=list(index), columns=columns)
                for statistic in ("mean", "fraction")
            )
        )
        for name, index in rows.items()
    }
    return Markers({cell_type: tuple(members) for cell_type, members in genes.items()}, **dots)
