"""Interpretations: marker genes and ancestral states of branches, in memory, as tables and for scanpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import counted
from bdm._core.files import storable
from bdm._core.store import Result
from bdm.data.genes import GeneNames
from bdm.data.matrix import write_h5ad
from bdm.data.modalities import NAMES, features_in_words, has_modalities
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.ancestral_states import AncestralStates, Markers
from bdm.interpretation.contrasts import MEASURES, Contrast, ContrastGenes, Differences, column_of
from bdm.settings import InterpretationSettings

QUERY_NAMES = {"model": "model", "training": "training cells", "equal": "as many as test cells"}
MAX_DOTS = 100_000  # rows of markers; their number grows with the square of that of cell types
# HDF5 describes the columns of a table in a header of 64 KiB: for each, 52 bytes and its name, in steps of 8.
MAX_BYTES, BYTES_OF_COLUMN = 65_000, 52


@dataclass(frozen=True, repr=False)
class Interpretation(Result):
    """Marker genes of every branch, ancestral states, agreement with real cells, and markers of cell types.

    Attributes
    ----------
    names
        Names and symbols of the genes.
    contrasts
        Genes of each branch against its siblings.
    agreement
        By node, see :func:`bdm.interpretation.interpret.agreement_by_node`.
    held_out
        Whether the model was not fitted to the test cells.
    provenance
        Version, packages, seed, settings, and checksums of the files that were read.
    """

    kind = "interpretation"

    settings: InterpretationSettings
    names: GeneNames
    hierarchy: Hierarchy
    ancestral_states: AncestralStates
    contrasts: tuple[ContrastGenes, ...]
    agreement: pd.DataFrame
    markers: Markers
    held_out: bool
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        nodes, types = counted(len(self.nodes), "node"), counted(len(self.hierarchy.cell_types), "cell type")
        return f"Interpretation of {nodes}, {types} x {features_in_words(self.names.var)}"

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
        grouped = groupby(self.contrasts, key=lambda genes: genes.contrast.node)
        return {node: tuple(contrasts) for node, contrasts in grouped}

    def _with_names(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the symbols of genes, if they have any, and the modality, if there are several."""
        table = self.names.with_symbols(table)
        if has_modalities(self.names.var):
            table.insert(table.columns.get_loc("gene"), NAMES, self.names.var[NAMES].loc[table["gene"]].to_numpy())
        return table

    def _write_tables(self, folder: Path) -> None:
        tables = {
            "nodes": node_rows(self),
            "branch_genes": branch_genes(self),
            "commitment": commitment_rows(self),
            "agreement": self.agreement,
            "markers": marker_rows(self.markers),
        }
        for name, table in tables.items():
            table = self._with_names(table) if "gene" in table else table
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        adata = branches_adata(self)
        adata.uns["bdm"] = storable(self.provenance)
        write_h5ad(folder / "branches.h5ad", adata)


STATISTICS: dict[str, Callable[[Differences], np.ndarray]] = {  # of a gene, in one contrast
    "log2_fold_change": lambda differences: differences.fold_change.log2,
    "standard_error": lambda differences: differences.fold_change.standard_error,
    "score": lambda differences: differences.score,
    "p_adjusted": lambda differences: differences.p_adjusted,
    "rank": lambda differences: differences.rank,
}
# Columns of tables that have no rows where the tree has no nodes
BRANCH_GENES = [
    *("node", "level", "child", "cell_types", "gene", "node_cp10k", "child_cp10k", "commitment_level"),
    *(f"{name}_{statistic}" for name in ("model", "test") for statistic in STATISTICS),
]
COMMITMENT = ["gene", "commitment_level", "node", "node_level", "child", "cell_types", "shift", "auc_without_noise"]
NODES = ["node", "level", "n_cells", "children", "best_genes", "support"]


def branch_genes(interpretation: Interpretation) -> pd.DataFrame:
    """List the genes of every branch that are among the top of the model or of test cells, best of the model first."""
    tables, expression = [pd.DataFrame(columns=BRANCH_GENES)], interpretation.ancestral_states.expression
    for genes in interpretation.contrasts:
        columns = {
            "node": genes.contrast.node,
            "level": genes.contrast.level,
            "child": genes.contrast.child,
            "cell_types": "; ".join(genes.contrast.names_inside),
            "gene": interpretation.genes,
            "node_cp10k": expression[genes.contrast.node].to_numpy(),
            "child_cp10k": expression[genes.contrast.child].to_numpy(),
            "commitment_level": genes.commitment.level(interpretation.hierarchy.threshold),
        }
        tested = {"model": genes.model, "test": genes.test}
        for name, differences in tested.items():  # NaN where there are too few test cells
            for statistic, values in STATISTICS.items():
                columns[f"{name}_{statistic}"] = values(differences) if differences else np.nan
        table = pd.DataFrame(columns).astype({"model_rank": "Int64", "test_rank": "Int64"})
        top = table[["model_rank", "test_rank"]].min(axis=1) <= interpretation.settings.n_genes
        tables.append(table[top].sort_values("model_rank", kind="stable"))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def commitment_rows(interpretation: Interpretation) -> pd.DataFrame:
    """List the genes that commit, from early to late; of a node with two children, with the one they are higher in."""
    tables = [pd.DataFrame(columns=COMMITMENT)]
    for children in interpretation.nodes.values():
        for child in children:
            table = pd.DataFrame(
                {
                    "gene": interpretation.genes,
                    "commitment_level": child.commitment.level(interpretation.hierarchy.threshold),
                    "node": child.contrast.node,
                    "node_level": child.contrast.level,
                    "child": child.contrast.child,
                    "cell_types": "; ".join(child.contrast.names_inside),
                    "shift": child.commitment.shift / np.log(2),
                    "auc_without_noise": child.commitment.auc(0),
                }
            )
            listed = (table["shift"] > 0) | (len(children) > 2)
            tables.append(table[listed & table["commitment_level"].notna()])
    found = pd.concat(tables[1:] or tables)
    return found.sort_values("commitment_level", ascending=False, kind="stable", ignore_index=True)


def node_rows(interpretation: Interpretation) -> pd.DataFrame:
    """List the nodes with their level, their support, and the best genes of their children."""
    rows = []
    for node, children in interpretation.nodes.items():
        branch = interpretation.hierarchy.by_name[node]
        best = {
            child.contrast.child: interpretation.labels[np.argsort(child.model.rank, kind="stable")[:3]]
            for child in children
        }
        rows.append(
            {
                "node": node,
                "level": branch.level,
                "n_cells": branch.n_cells,
                "children": " | ".join("; ".join(child.contrast.names_inside) for child in children),
                "best_genes": " | ".join(", ".join(genes) for genes in best.values()),
                "support": np.nan if branch.support is None else branch.support,
            }
        )
    return pd.DataFrame(rows, columns=NODES)


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


def agreement_summary(interpretation: Interpretation) -> str:
    """Format the mean agreement with test cells over nodes, of each modality, as a table to print."""
    agreement = interpretation.agreement
    real = "test cells" if interpretation.held_out else "half of the cells that the model was fitted to"
    of_modality = agreement.groupby(NAMES, sort=False) if NAMES in agreement else [("", agreement)]
    means = {
        ", ".join(filter(None, (name, label))): rows[[column_of(one, query) for one in MEASURES]].mean().to_numpy()
        for name, rows in of_modality
        for query, label in QUERY_NAMES.items()
    }
    table = pd.DataFrame(means, index=MEASURES).to_string(float_format="{:.3f}".format)
    return f"Agreement with {real}, mean over nodes:\n{table}"


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
    :class:`~bdm.interpretation.contrasts.Differences`. ``obsm['X_latent']`` has the
    ancestral states in whitened space, and ``uns`` the tables ``nodes`` and ``agreement``.
    """
    states, contrasts = interpretation.ancestral_states, contrasts_within_limit(interpretation.contrasts)
    layers: dict[str, Callable[[ContrastGenes], np.ndarray]] = {
        "log2_fold_change": lambda genes: genes.model.fold_change.log2,
        "standard_error": lambda genes: genes.model.fold_change.standard_error,
        "score": lambda genes: genes.model.score,
        "shift": lambda genes: genes.commitment.shift,
        "commitment_level": lambda genes: genes.commitment.level(interpretation.hierarchy.threshold),
    }
    adata = AnnData(
        np.log1p(states.expression.T).astype(np.float32),
        obs=tree_table(interpretation),
        var=interpretation.names.var,
        layers={name: by_branch(interpretation, values) for name, values in layers.items()},
        obsm={"X_latent": states.x},
    )
    adata.layers["detected"] = states.detected.T.to_numpy(dtype=np.float32)
    adata.uns["log1p"] = {"base": None}
    of_model = [(genes.contrast, genes.model) for genes in contrasts]
    tested = [(genes.contrast, genes.test) for genes in contrasts if genes.test]
    for name, differences in {"rank_genes_groups": of_model, "rank_genes_groups_test": tested}.items():
        if differences:
            adata.uns[name] = rank_genes_table(differences, interpretation.genes)
    for name, table in {"nodes": node_rows(interpretation), "agreement": interpretation.agreement}.items():
        adata.uns[name] = table.set_axis(table.index.astype(str))
    return adata


def contrasts_within_limit(contrasts: Sequence[ContrastGenes]) -> list[ContrastGenes]:
    """Take as many contrasts as fit into a file as columns named by their children, the highest levels first."""
    chosen, room = set(), MAX_BYTES
    for genes in sorted(contrasts, key=lambda genes: -genes.contrast.level):
        room -= BYTES_OF_COLUMN + 8 * (len(genes.contrast.child.encode()) // 8 + 1)
        if room < 0:
            break
        chosen.add(genes.contrast.child)
    return [genes for genes in contrasts if genes.contrast.child in chosen]


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
    found = {genes.contrast.child: values(genes) for genes in interpretation.contrasts}
    nothing = np.full(len(interpretation.genes), np.nan)
    rows = [found.get(branch.name, nothing) for branch in interpretation.hierarchy.branches]
    return np.stack(rows).astype(np.float32)


def rank_genes_table(differences: list[tuple[Contrast, Differences]], genes: pd.Index) -> dict[str, Any]:
    """Differences in the form of scanpy's ``rank_genes_groups``: all genes of each branch, the best first."""
    columns: dict[str, list[Any]] = {"names": [], "scores": [], "logfoldchanges": [], "pvals": [], "pvals_adj": []}
    for _, found in differences:
        order = np.argsort(found.rank, kind="stable")
        values = genes.to_numpy(dtype=str), found.score, found.fold_change.log2, found.p, found.p_adjusted
        for column, of_genes in zip(columns.values(), values, strict=True):
            column.append(of_genes[order])
    groups = [contrast.child for contrast, _ in differences]
    params = {"groupby": "branch", "reference": "siblings", "method": "bdm", "use_raw": False, "corr_method": "BH"}
    table: dict[str, Any] = {"params": params}
    for name, column in columns.items():  # with their types, as numpy would strip the spaces of names
        table[name] = np.rec.fromarrays(column, dtype=list(zip(groups, (one.dtype for one in column), strict=True)))
    return table
