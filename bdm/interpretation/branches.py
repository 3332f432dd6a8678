from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.interpretation.contrasts import Contrast
from bdm.interpretation.differences import Differences
from bdm.interpretation.interpret import ContrastGenes, Interpretation
from bdm.interpretation.tables import node_rows

# HDF5 describes the columns of a table in a header of 64 KiB: for each, 52 bytes and its name, in steps of 8.
MOST_BYTES, BYTES_OF_COLUMN = 65_000, 52


def branches_adata(interpretation: Interpretation) -> AnnData:
    """Put an interpretation where scanpy looks for it.

    Returns
    -------
    AnnData of branches x genes. ``X`` is log1p(CP10k) of each branch's hybrid. ``obs`` has the tree: ``branch``,
    ``parent``, and its noise levels from ``high`` to ``low``. ``var`` is that of the model, with its symbols of genes.
    The other ``layers`` compare each branch with its siblings, and are NaN at the root; so do
    ``uns['rank_genes_groups']`` for the model and ``uns['rank_genes_groups_test']`` for the test cells, with branches
    as groups (of about a thousand or more, those that leave the highest nodes). ``obsm['X_umap']`` is the place of the
    hybrids among the real cells of ``uns['cells']``, and ``uns`` has the tables ``nodes``, ``agreement`` and
    ``enrichment``.
    """
    hybrids, contrasts = interpretation.hybrids, that_fit(interpretation.contrasts)
    layers: dict[str, Callable[[ContrastGenes], np.ndarray]] = {
        "log2_fold_change": lambda of: of.model.fold_change.log2,
        "standard_error": lambda of: of.model.fold_change.standard_error,
        "score": lambda of: of.model.score,
        "shift": lambda of: of.commitment.shift,
        "commitment_level": lambda of: of.commitment.level(interpretation.hierarchy.threshold),
    }
    adata = AnnData(
        np.log1p(hybrids.expression).astype(np.float32),
        obs=tree_table(interpretation),
        var=interpretation.names.var,
        layers={name: by_branch(interpretation, values) for name, values in layers.items()},
        obsm={"X_umap": interpretation.places.hybrids, "X_latent": hybrids.x},
    )
    adata.layers["detected"] = hybrids.detected.to_numpy(dtype=np.float32)
    adata.uns["log1p"] = {"base": None}
    adata.uns["rank_genes_groups"] = ranked([(of.contrast, of.model) for of in contrasts], interpretation.genes)
    tested = [(of.contrast, of.test) for of in contrasts if of.test]
    if tested:
        adata.uns["rank_genes_groups_test"] = ranked(tested, interpretation.genes)
    adata.uns["cells"] = interpretation.places.cells
    for name, table in {
        "nodes": node_rows(interpretation),
        "agreement": interpretation.agreement,
        "enrichment": interpretation.enrichment,
    }.items():
        adata.uns[name] = table.set_axis(table.index.astype(str))
    return adata


def that_fit(contrasts: Sequence[ContrastGenes]) -> list[ContrastGenes]:
    """Take the contrasts that a file holds as columns named by their children, those of the highest levels first."""
    chosen, room = set(), MOST_BYTES
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
            "parent": [branch.parent or "" for branch in hierarchy.branches],
            "high": [hierarchy.segment(name).high for name in names],
            "low": [branch.level for branch in hierarchy.branches],
            "n_cells": [branch.n_cells for branch in hierarchy.branches],
            "is_cell_type": [not hierarchy.children[name] for name in names],
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


def ranked(differences: list[tuple[Contrast, Differences]], genes: pd.Index) -> dict:
    """Differences in the form of scanpy's ``rank_genes_groups``: all genes of each branch, the best first."""
    columns = {"names": [], "scores": [], "logfoldchanges": [], "pvals": [], "pvals_adj": []}
    for _, found in differences:
        order = np.argsort(found.rank)
        values = genes.to_numpy(dtype=str), found.score, found.fold_change.log2, found.p, found.p_adjusted
        for column, of_genes in zip(columns.values(), values, strict=True):
            column.append(of_genes[order])
    groups = [contrast.child for contrast, _ in differences]
    params = {"groupby": "branch", "reference": "siblings", "method": "bdm", "use_raw": False, "corr_method": "BH"}
    return {"params": params, **{name: recorded(column, groups) for name, column in columns.items()}}


def recorded(columns: list[np.ndarray], names: list[str]) -> np.recarray:
    """Put columns side by side; numpy would strip the spaces of names that are not given with their types."""
    types = [(name, column.dtype) for name, column in zip(names, columns, strict=True)]
    return np.rec.fromarrays(columns, dtype=types)
