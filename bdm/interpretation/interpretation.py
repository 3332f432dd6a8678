"""Results of an interpretation, as tables and for scanpy."""

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
from bdm._core.files import storable, write_table
from bdm._core.store import Result
from bdm.data.genes import GeneNames
from bdm.data.matrix import write_h5ad
from bdm.data.modalities import NAME_COLUMN, features_in_words, has_modalities
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.ancestral_states import AncestralStates, Markers
from bdm.interpretation.contrasts import MEASURES, Contrast, ContrastGenes, Differences, agreement_column
from bdm.settings import InterpretationSettings


@dataclass(frozen=True, repr=False)
class Interpretation(Result):
    """Interpretation of a model: genes of branches, ancestral states, agreement, markers.

    Attributes
    ----------
    settings
        Numbers of cells, genes and markers.
    names
        Names and symbols of the genes.
    hierarchy
        Hierarchy of the model.
    ancestral_states
        Expected cells at the lower end of each branch.
    contrasts
        Genes of each branch against its siblings.
    agreement
        Agreement with test cells by node, see :func:`bdm.interpretation.interpret.agreement_by_node`.
    markers
        Expression of the marker genes of cell types.
    held_out
        False if there were no test cells, so that the model was fitted to the cells it was compared with.
    provenance
        Version, packages, seed, settings, and checksums of the input files.
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
        """Names of the genes, as in the data."""
        return self.names.index

    @cached_property
    def labels(self) -> pd.Index:
        """Labels of the genes in figures and tables."""
        return pd.Index(self.names.labels)

    @property
    def nodes(self) -> dict[str, tuple[ContrastGenes, ...]]:
        """Contrasts by node."""
        grouped = groupby(self.contrasts, key=lambda genes: genes.contrast.node)
        return {node: tuple(contrasts) for node, contrasts in grouped}

    def _with_names(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add symbols of genes if known, and modalities if there are several."""
        table = self.names.with_symbols(table)
        if has_modalities(self.names.var):
            table.insert(
                table.columns.get_loc("gene"), NAME_COLUMN, self.names.var[NAME_COLUMN].loc[table["gene"]].to_numpy()
            )
        return table

    def _write_tables(self, folder: Path) -> None:
        tables = {
            "nodes": node_rows(self),
            "branch_genes": branch_gene_rows(self),
            "commitment": commitment_rows(self),
            "agreement": self.agreement,
            "markers": marker_rows(self.markers),
        }
        for name, table in tables.items():
            table = self._with_names(table) if "gene" in table else table
            write_table(table, folder / f"{name}.csv")
        adata = branches_adata(self)
        adata.uns["bdm"] = storable(self.provenance)
        write_h5ad(folder / "branches.h5ad", adata)


STATISTICS: dict[str, Callable[[Differences], np.ndarray]] = {  # columns for each gene and contrast
    "log2_fold_change": lambda differences: differences.fold_change.log2,
    "standard_error": lambda differences: differences.fold_change.standard_error,
    "score": lambda differences: differences.score,
    "p_adjusted": lambda differences: differences.p_adjusted,
    "rank": lambda differences: differences.rank,
}
# Columns of the empty tables for trees without nodes
BRANCH_GENES = [
    *("node", "level", "child", "cell_types", "gene", "node_cp10k", "child_cp10k", "commitment_level"),
    *(f"{name}_{statistic}" for name in ("model", "test") for statistic in STATISTICS),
]
COMMITMENT = ["gene", "commitment_level", "node", "node_level", "child", "cell_types", "shift", "auc_without_noise"]
NODES = ["node", "level", "n_cells", "children", "best_genes", "support"]


def branch_gene_rows(interpretation: Interpretation) -> pd.DataFrame:
    """List the top genes of each branch, by the model and by test cells."""
    tables, expression = [], interpretation.ancestral_states.expression
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
        for name, differences in {"model": genes.model, "test": genes.test}.items():  # NaN with too few test cells
            for statistic, values in STATISTICS.items():
                columns[f"{name}_{statistic}"] = values(differences) if differences else np.nan
        table = pd.DataFrame(columns).astype({"model_rank": "Int64", "test_rank": "Int64"})
        top = table[["model_rank", "test_rank"]].min(axis=1) <= interpretation.settings.n_genes
        tables.append(table[top].sort_values("model_rank", kind="stable"))
    return pd.concat(tables or [pd.DataFrame(columns=BRANCH_GENES)], ignore_index=True)


def commitment_rows(interpretation: Interpretation) -> pd.DataFrame:
    """List the genes that commit, earliest first.

    If a node has two children, a gene is listed for the child with higher expression. Otherwise, it is listed for each
    child that it distinguishes.
    """
    tables = []
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
    rows = pd.concat(tables or [pd.DataFrame(columns=COMMITMENT)])
    return rows.sort_values("commitment_level", ascending=False, kind="stable", ignore_index=True)


def node_rows(interpretation: Interpretation) -> pd.DataFrame:
    """List the nodes with their level, support, and best genes of their children."""
    rows = []
    for node, children in interpretation.nodes.items():
        branch = interpretation.hierarchy.by_name[node]
        best = [", ".join(interpretation.labels[child.model.order[:3]]) for child in children]
        rows.append(
            {
                "node": node,
                "level": branch.level,
                "n_cells": branch.n_cells,
                "children": " | ".join("; ".join(child.contrast.names_inside) for child in children),
                "best_genes": " | ".join(best),
                "support": np.nan if branch.support is None else branch.support,
            }
        )
    return pd.DataFrame(rows, columns=NODES)


MAX_DOTS = 100_000  # rows in the table of markers, which grows quadratically with cell types


def marker_rows(markers: Markers) -> pd.DataFrame:
    """List the expression of markers, one row per cell type and gene.

    Above ``MAX_DOTS`` rows, each type is listed with its own markers only.
    """
    marked_type = {gene: cell_type for cell_type, genes in markers.genes.items() for gene in genes}
    columns = {
        f"{name}_{statistic}": getattr(dots, statistic).stack()
        for name, dots in {"real": markers.real, "generated": markers.generated}.items()
        for statistic in ("mean", "fraction")
    }
    rows = pd.DataFrame(columns).rename_axis(["cell_type", "gene"]).reset_index()
    rows.insert(2, "marker_of", rows["gene"].map(marked_type))
    is_own = rows["marker_of"] == rows["cell_type"]
    return rows[is_own] if len(rows) > MAX_DOTS and is_own.any() else rows


QUERY_NAMES = {"model": "model", "training": "training cells", "equal": "as many as test cells"}


def agreement_summary(interpretation: Interpretation) -> str:
    """Format the agreement with test cells, averaged over nodes, as a table to print."""
    agreement = interpretation.agreement
    real = "test cells" if interpretation.held_out else "half of the cells that the model was fitted to"
    by_modality = agreement.groupby(NAME_COLUMN, sort=False) if NAME_COLUMN in agreement else [("", agreement)]
    means = {}
    for modality, table in by_modality:
        for query, label in QUERY_NAMES.items():
            columns = [agreement_column(measure, query) for measure in MEASURES]
            means[", ".join(filter(None, (modality, label)))] = table[columns].mean().to_numpy()
    text = pd.DataFrame(means, index=MEASURES).to_string(float_format="{:.3f}".format)
    return f"Agreement with {real}, mean over nodes:\n{text}"


def branches_adata(interpretation: Interpretation) -> AnnData:
    """Convert an interpretation to AnnData (branches x genes) for scanpy.

    Returns
    -------
    AnnData with these fields:

    - ``X``: log1p(CP10k) of the ancestral states; ``layers["detected"]``: expected share of cells with counts
    - ``obs``: the tree, with ``branch``, ``parent``, noise levels ``high`` to ``low``, ``n_cells`` and ``cell_type``
      (empty if several types are below)
    - ``var``: genes of the model with their symbols
    - other ``layers``: comparison of each branch with its siblings; NaN at the root
    - ``obsm["X_latent"]``: ancestral states in whitened space
    - ``uns["rank_genes_groups"]`` (model) and ``uns["rank_genes_groups_test"]`` (test cells): the same comparison in
      scanpy's format, with branches as groups. With about a thousand branches or more, these are the branches below
      the highest nodes. Invalid p-values are NaN, see :class:`~bdm.interpretation.contrasts.Differences`.
    - ``uns["nodes"]``, ``uns["agreement"]``: tables
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
        obs=tabulate_branches(interpretation),
        var=interpretation.names.var,
        layers={name: stack_by_branch(interpretation, values) for name, values in layers.items()},
        obsm={"X_latent": states.x},
    )
    adata.layers["detected"] = states.detected.T.to_numpy(dtype=np.float32)
    adata.uns["log1p"] = {"base": None}
    model = [(genes.contrast, genes.model) for genes in contrasts]
    test = [(genes.contrast, genes.test) for genes in contrasts if genes.test]
    for name, differences in {"rank_genes_groups": model, "rank_genes_groups_test": test}.items():
        if differences:
            adata.uns[name] = to_rank_genes_groups(differences, interpretation.genes)
    for name, table in {"nodes": node_rows(interpretation), "agreement": interpretation.agreement}.items():
        adata.uns[name] = table.set_axis(table.index.astype(str))
    return adata


# HDF5 stores the columns of a table in a header of 64 KiB: 52 bytes each, plus the name padded to a multiple of 8
MAX_BYTES, BYTES_OF_COLUMN = 65_000, 52


def contrasts_within_limit(contrasts: Sequence[ContrastGenes]) -> list[ContrastGenes]:
    """Choose contrasts that fit into an HDF5 table as columns, highest nodes first."""
    chosen, bytes_left = set(), MAX_BYTES
    for genes in sorted(contrasts, key=lambda genes: -genes.contrast.level):
        bytes_left -= BYTES_OF_COLUMN + 8 * (len(genes.contrast.child.encode()) // 8 + 1)
        if bytes_left < 0:
            break
        chosen.add(genes.contrast.child)
    return [genes for genes in contrasts if genes.contrast.child in chosen]


def tabulate_branches(interpretation: Interpretation) -> pd.DataFrame:
    """Tabulate the branches in the order of the hierarchy."""
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


def stack_by_branch(interpretation: Interpretation, values: Callable[[ContrastGenes], np.ndarray]) -> np.ndarray:
    """Stack values of contrasts by branch, branches x genes; NaN at the root."""
    by_child = {genes.contrast.child: values(genes) for genes in interpretation.contrasts}
    missing = np.full(len(interpretation.genes), np.nan)
    rows = [by_child.get(branch.name, missing) for branch in interpretation.hierarchy.branches]
    return np.stack(rows).astype(np.float32)


def to_rank_genes_groups(differences: list[tuple[Contrast, Differences]], genes: pd.Index) -> dict[str, Any]:
    """Convert differences to scanpy's ``rank_genes_groups``: all genes by branch, best first."""
    columns: dict[str, list[Any]] = {"names": [], "scores": [], "logfoldchanges": [], "pvals": [], "pvals_adj": []}
    for _, tested in differences:
        order = tested.order
        statistics = tested.score, tested.fold_change.log2, tested.p, tested.p_adjusted
        for column, values in zip(columns.values(), (genes.to_numpy(dtype=str), *statistics), strict=True):
            column.append(values[order])
    groups = [contrast.child for contrast, _ in differences]
    params = {"groupby": "branch", "reference": "siblings", "method": "bdm", "use_raw": False, "corr_method": "BH"}
    table: dict[str, Any] = {"params": params}
    for name, column in columns.items():  # explicit dtypes, since numpy would strip spaces from names
        dtypes = [values.dtype for values in column]
        table[name] = np.rec.fromarrays(column, dtype=list(zip(groups, dtypes, strict=True)))
    return table
