"""Interpretations: marker genes, ancestral states and stability of branches, in memory, as a folder and as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from torch import Tensor

from bdm._core.files import atomic_write, storable
from bdm._core.seeds import to_tensor
from bdm._core.store import (
    Bundle,
    Decoder,
    Encoder,
    pack_tables,
    read_bundle,
    reject_if_damaged,
    unpack_tables,
    write_bundle,
)
from bdm.autoencoder.storage import table_from_json, table_to_json
from bdm.data.columns import writable
from bdm.data.matrix import write_h5ad
from bdm.data.symbols import GeneNames
from bdm.errors import counted
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.agreement import QUERIES, BranchAgreement, ContrastGenes, column_of, without_mirrored
from bdm.interpretation.ancestral_states import AncestralStates, Embedding, path_table
from bdm.interpretation.commitment import Commitment
from bdm.interpretation.contrasts import Contrast, Differences, FoldChange, contrasts_of
from bdm.interpretation.markers import Dots, Markers, members_of_types
from bdm.settings import InterpretationSettings

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
        (.csv), and ``branches.h5ad`` for scanpy, see :func:`bdm.interpretation.results.branches_adata`.

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
            means = mean_agreement_by_query(self.agreement)
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
            for name, table in tables_to_read(self).items():
                table = self.names.with_symbols(table) if "gene" in table else table
                table.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
            adata = branches_adata(self)
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


QUERY_NAMES = {"model": "model", "training": "training cells", "equal": "as many as test cells"}

# HDF5 describes the columns of a table in a header of 64 KiB: for each, 52 bytes and its name, in steps of 8.
MAX_BYTES, BYTES_OF_COLUMN = 65_000, 52


def branches_adata(interpretation: Interpretation) -> AnnData:
    """Put an interpretation where scanpy looks for it.

    Returns
    -------
    AnnData of branches x genes. ``X`` is log1p(CP10k) in each branch's ancestral state. ``obs`` has the tree:
    ``branch``, ``parent``, its noise levels from ``high`` to ``low``, and ``cell_type`` where all cells below are of
    one. ``var`` is that of the model, with its symbols of genes. The other ``layers`` compare each branch with its
    siblings, and are NaN at the root; so do ``uns['rank_genes_groups']`` for the model and
    ``uns['rank_genes_groups_test']`` for the test cells, with branches as groups (of about a thousand or more branches,
    the ones that leave the highest nodes); p-values are NaN where they would not be valid, see
    :class:`~bdm.interpretation.contrasts.Differences`. ``obsm['X_umap']`` has the coordinates of the ancestral states
    among the real cells of ``uns['cells']``, and ``uns`` has the tables ``nodes``, ``agreement`` and ``enrichment``.
    """
    states, contrasts = interpretation.ancestral_states, contrasts_within_limit(interpretation.contrasts)
    layers: dict[str, Callable[[ContrastGenes], np.ndarray]] = {
        "log2_fold_change": lambda of: of.model.fold_change.log2,
        "standard_error": lambda of: of.model.fold_change.standard_error,
        "score": lambda of: of.model.score,
        "shift": lambda of: of.commitment.shift,
        "commitment_level": lambda of: of.commitment.level(interpretation.hierarchy.threshold),
    }
    adata = AnnData(
        np.log1p(states.expression).astype(np.float32),
        obs=tree_table(interpretation),
        var=interpretation.names.var,
        layers={name: by_branch(interpretation, values) for name, values in layers.items()},
        obsm={"X_umap": interpretation.embedding.ancestral_states, "X_latent": states.x},
    )
    adata.layers["detected"] = states.detected.to_numpy(dtype=np.float32)
    adata.uns["log1p"] = {"base": None}
    of_model = [(of.contrast, of.model) for of in contrasts]
    tested = [(of.contrast, of.test) for of in contrasts if of.test]
    for name, differences in {"rank_genes_groups": of_model, "rank_genes_groups_test": tested}.items():
        if differences:
            adata.uns[name] = rank_genes_table(differences, interpretation.genes)
    adata.uns["cells"] = interpretation.embedding.cells
    for name, table in {
        "nodes": node_rows(interpretation),
        "agreement": interpretation.agreement,
        "enrichment": interpretation.enrichment,
    }.items():
        adata.uns[name] = table.set_axis(table.index.astype(str))
    return adata


def contrasts_within_limit(contrasts: Sequence[ContrastGenes]) -> list[ContrastGenes]:
    """Take as many contrasts as fit into a file as columns named by their children, the highest levels first."""
    chosen, room = set(), MAX_BYTES
    for of in sorted(contrasts, key=lambda of: -of.contrast.level):
        room -= BYTES_OF_COLUMN + 8 * (len(of.contrast.child.encode()) // 8 + 1)
        if room < 0:
            break
        chosen.add(of.contrast.child)
    return [of for of in contrasts if of.contrast.child in chosen]


def tree_table(interpretation: Interpretation) -> pd.DataFrame:
    """Branches of the tree, in its order."""
    hierarchy = interpretation.hierarchy
    names = [branch.name for branch in hierarchy.branches]
    return pd.DataFrame(
        {
            "branch": pd.Categorical(names, categories=names),
            "parent": pd.Categorical([branch.parent or "" for branch in hierarchy.branches]),
            "high": [hierarchy.segment(name).high for name in names],
            "low": [branch.level for branch in hierarchy.branches],
            "n_cells": [branch.n_cells for branch in hierarchy.branches],
            "cell_type": pd.Categorical([branch.cell_type or "" for branch in hierarchy.branches]),
            "is_cell_type": [name in hierarchy.cell_types for name in names],
        },
        index=names,
    )


def by_branch(interpretation: Interpretation, values: Callable[[ContrastGenes], np.ndarray]) -> np.ndarray:
    """Values of each branch's contrast with its siblings, branches x genes; NaN at the root."""
    found = {of.contrast.child: values(of) for of in interpretation.contrasts}
    nothing = np.full(len(interpretation.genes), np.nan)
    return np.stack([found.get(branch.name, nothing) for branch in interpretation.hierarchy.branches]).astype(
        np.float32
    )


def rank_genes_table(differences: list[tuple[Contrast, Differences]], genes: pd.Index) -> dict[str, Any]:
    """Differences in the form of scanpy's ``rank_genes_groups``: all genes of each branch, the best first."""
    columns: dict[str, list[Any]] = {"names": [], "scores": [], "logfoldchanges": [], "pvals": [], "pvals_adj": []}
    for _, found in differences:
        order = np.argsort(found.rank)
        values = genes.to_numpy(dtype=str), found.score, found.fold_change.log2, found.p, found.p_adjusted
        for column, of_genes in zip(columns.values(), values, strict=True):
            column.append(of_genes[order])
    groups = [contrast.child for contrast, _ in differences]
    params = {"groupby": "branch", "reference": "siblings", "method": "bdm", "use_raw": False, "corr_method": "BH"}
    return {"params": params, **{name: record_array(column, groups) for name, column in columns.items()}}


def record_array(columns: list[np.ndarray], names: list[str]) -> np.recarray:
    """Put columns side by side; numpy would strip the spaces of names that are not given with their types."""
    types = [(name, column.dtype) for name, column in zip(names, columns, strict=True)]
    return np.rec.fromarrays(columns, dtype=types)


MAX_DOTS = 100_000  # rows of markers; their number grows with the square of that of cell types


STATISTICS = ("log2_fold_change", "standard_error", "score", "p_adjusted", "rank")  # of a gene, in one contrast
# Columns of tables that have no rows where the tree has no nodes
BRANCH_GENES = [
    *("node", "level", "child", "cell_types", "gene", "node_cp10k", "child_cp10k", "commitment_level"),
    *(f"{name}_{statistic}" for name in ("model", "test") for statistic in STATISTICS),
]
COMMITMENT = ["gene", "commitment_level", "node", "node_level", "child", "cell_types", "shift", "auc_without_noise"]
NODES = ["node", "level", "n_cells", "children", "best_genes"]


def branch_genes(interpretation: Interpretation) -> pd.DataFrame:
    """List the genes of every branch that are among the top of the model or of test cells, best of the model first."""
    tables = [genes_of_contrast(of, interpretation) for of in interpretation.contrasts]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=BRANCH_GENES)


def genes_of_contrast(of: ContrastGenes, interpretation: Interpretation) -> pd.DataFrame:
    """List the top genes of one contrast, by the model's rank; NaN where there are too few test cells."""
    contrast, settings = of.contrast, interpretation.settings
    table = pd.DataFrame(
        {
            "node": contrast.node,
            "level": contrast.level,
            "child": contrast.child,
            "cell_types": "; ".join(contrast.names_inside),
            "gene": interpretation.genes,
            "node_cp10k": interpretation.ancestral_states.expression.loc[contrast.node].to_numpy(),
            "child_cp10k": interpretation.ancestral_states.expression.loc[contrast.child].to_numpy(),
            "commitment_level": of.commitment.level(interpretation.hierarchy.threshold),
            **columns_of(of.model, "model", len(interpretation.genes)),
            **columns_of(of.test, "test", len(interpretation.genes)),
        }
    )
    top = (table["model_rank"] <= settings.n_genes) | (table["test_rank"] <= settings.n_genes).fillna(False)
    return table[top].sort_values("model_rank")


def columns_of(differences: Differences | None, name: str, n_genes: int) -> dict[str, np.ndarray]:
    """Columns of differences in the model or in test cells, by gene."""
    if differences is None:
        gaps = dict.fromkeys((f"{name}_{column}" for column in STATISTICS[:-1]), np.nan)
        return {**gaps, f"{name}_rank": pd.array([pd.NA] * n_genes, dtype="Int64")}
    return {
        f"{name}_log2_fold_change": differences.fold_change.log2,
        f"{name}_standard_error": differences.fold_change.standard_error,
        f"{name}_score": differences.score,
        f"{name}_p_adjusted": differences.p_adjusted,
        f"{name}_rank": pd.array(differences.rank, dtype="Int64"),
    }


def commitment_rows(interpretation: Interpretation) -> pd.DataFrame:
    """List the genes that commit, from early to late: from high noise levels to low ones, over all of the tree.

    Of a node with two children, a gene is listed once, with the child that it is higher in.
    """
    threshold, tables = interpretation.hierarchy.threshold, []
    mirrored = {of.contrast.outside: of.contrast for of in interpretation.contrasts}
    for of in without_mirrored(interpretation.contrasts):
        two = len(interpretation.nodes[of.contrast.node]) == 2
        other = mirrored[of.contrast.inside] if two else of.contrast
        up = (of.commitment.shift > 0) | (not two)
        table = pd.DataFrame(
            {
                "gene": interpretation.genes,
                "commitment_level": of.commitment.level(threshold),
                "node": of.contrast.node,
                "node_level": of.contrast.level,
                "child": np.where(up, of.contrast.child, other.child),
                "cell_types": np.where(up, "; ".join(of.contrast.names_inside), "; ".join(other.names_inside)),
                "shift": np.where(up, 1, -1) * of.commitment.shift / np.log(2),
                "auc_without_noise": of.commitment.auc(0),
            }
        )
        tables.append(table[table["commitment_level"].notna()])
    if not tables:
        return pd.DataFrame(columns=COMMITMENT)
    return pd.concat(tables).sort_values("commitment_level", ascending=False, kind="stable", ignore_index=True)


def node_rows(interpretation: Interpretation) -> pd.DataFrame:
    """List the nodes with their level, their stability, and the best genes of their children."""
    rows = []
    for node, children in interpretation.nodes.items():
        branch = interpretation.hierarchy.by_name[node]
        best = {of.contrast.child: interpretation.labels[np.argsort(of.model.rank)[:3]] for of in children}
        rows.append(
            {
                "node": node,
                "level": branch.level,
                "n_cells": branch.n_cells,
                "children": " | ".join("; ".join(of.contrast.names_inside) for of in children),
                "best_genes": " | ".join(", ".join(genes) for genes in best.values()),
                **interpretation.stability.loc[node],
            }
        )
    return pd.DataFrame(rows, columns=[*NODES, *interpretation.stability])


def path_rows(interpretation: Interpretation) -> pd.DataFrame:
    """Average paths of all cell types, for the best gene of each branch; columns are what figures show genes as."""
    best = dict.fromkeys(np.argmin(of.model.rank) for of in interpretation.contrasts)
    genes = interpretation.genes[np.array([*best], dtype=int)]
    table = path_table(interpretation.ancestral_states, interpretation.hierarchy, list(genes))
    return table.rename(columns=dict(zip(genes, interpretation.names.labels[genes], strict=True)))


def marker_rows(markers: Markers) -> pd.DataFrame:
    """List markers in cell types, one row a type and gene; of too many, the markers of the type itself."""
    marks = {gene: cell_type for cell_type, genes in markers.genes.items() for gene in genes}
    columns = {
        f"{name}_{statistic}": getattr(dots, statistic).stack()
        for name, dots in {"real": markers.real, "generated": markers.generated}.items()
        for statistic in ("mean", "fraction")
    }
    rows = pd.DataFrame(columns).rename_axis(["cell_type", "gene"]).reset_index()
    rows.insert(2, "marker_of", rows["gene"].map(marks))
    of_type = rows["marker_of"] == rows["cell_type"]
    return rows[of_type] if len(rows) > MAX_DOTS and of_type.any() else rows


def tables_to_read(interpretation: Interpretation) -> dict[str, pd.DataFrame]:
    """Return the tables of an interpretation by the names of their files."""
    return {
        "nodes": node_rows(interpretation),
        "branch_genes": branch_genes(interpretation),
        "commitment": commitment_rows(interpretation),
        "paths": path_rows(interpretation),
        "agreement": interpretation.agreement,
        "enrichment": interpretation.enrichment,
        "markers": marker_rows(interpretation.markers),
    }


def mean_agreement_by_query(agreement: pd.DataFrame) -> pd.Series:
    """Mean of each measure over nodes, of the model and of the training cells."""
    measures = [column_of(name, query) for name in BranchAgreement.__dataclass_fields__ for query in QUERIES]
    return agreement[measures].mean()


def agreement_summary(agreement: pd.DataFrame) -> str:
    """Format the mean agreement with test cells over nodes as a table to print."""
    means, names = mean_agreement_by_query(agreement), list(BranchAgreement.__dataclass_fields__)
    table = pd.DataFrame(
        {QUERY_NAMES[query]: means[[column_of(name, query) for name in names]].to_numpy() for query in QUERIES},
        index=names,
    )
    return str(table.to_string(float_format="{:.3f}".format))
