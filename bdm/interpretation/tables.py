import numpy as np
import pandas as pd

from bdm.interpretation.differences import Differences
from bdm.interpretation.hybrids import path_table
from bdm.interpretation.interpret import ContrastGenes, Interpretation, unmirrored
from bdm.interpretation.markers import Markers

MOST_DOTS = 100_000  # rows of markers; their number grows with the square of that of cell types


def branch_genes(interpretation: Interpretation) -> pd.DataFrame:
    """List the genes of every branch that are among the top of the model or of test cells, best of the model first."""
    return pd.concat([genes_of_contrast(of, interpretation) for of in interpretation.contrasts], ignore_index=True)


def genes_of_contrast(of: ContrastGenes, interpretation: Interpretation) -> pd.DataFrame:
    """List the top genes of one contrast, by the model's rank; NaN where there are too few test cells."""
    contrast, settings = of.contrast, interpretation.settings
    table = pd.DataFrame(
        {
            "node": contrast.node,
            "level": contrast.level,
            "child": contrast.child,
            "cell_types": "; ".join(contrast.inside),
            "gene": interpretation.genes,
            "node_cp10k": interpretation.hybrids.expression.loc[contrast.node].to_numpy(),
            "child_cp10k": interpretation.hybrids.expression.loc[contrast.child].to_numpy(),
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
        empty = ("log2_fold_change", "standard_error", "score", "p_adjusted")
        gaps = dict.fromkeys((f"{name}_{column}" for column in empty), np.nan)
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
    for of in unmirrored(interpretation.contrasts):
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
                "cell_types": np.where(up, "; ".join(of.contrast.inside), "; ".join(other.inside)),
                "shift": np.where(up, 1, -1) * of.commitment.shift / np.log(2),
                "auc_without_noise": of.commitment.auc(0),
            }
        )
        tables.append(table[table["commitment_level"].notna()])
    return pd.concat(tables).sort_values("commitment_level", ascending=False, kind="stable", ignore_index=True)


def node_rows(interpretation: Interpretation) -> pd.DataFrame:
    """List the nodes with their level, how far they hang on cells, latent space and threshold, and their best genes."""
    rows = []
    for node, children in interpretation.nodes.items():
        branch = interpretation.hierarchy.by_name[node]
        best = {of.contrast.child: interpretation.labels[np.argsort(of.model.rank)[:3]] for of in children}
        rows.append(
            {
                "node": node,
                "level": branch.level,
                "n_cells": branch.n_cells,
                "children": " | ".join("; ".join(of.contrast.inside) for of in children),
                "best_genes": " | ".join(", ".join(genes) for genes in best.values()),
                **interpretation.stability.loc[node],
            }
        )
    return pd.DataFrame(rows)


def path_rows(interpretation: Interpretation) -> pd.DataFrame:
    """Average paths of all cell types, for the best gene of each branch; columns are what figures show genes as."""
    best = dict.fromkeys(np.argmin(of.model.rank) for of in interpretation.contrasts)
    table = path_table(interpretation.hybrids, interpretation.hierarchy, list(interpretation.genes[[*best]]))
    return table.set_axis([*table.columns[: -len(best)], *interpretation.labels[[*best]]], axis=1)


def marker_rows(markers: Markers) -> pd.DataFrame:
    """List markers in cell types, one row a type and gene; of too many, those of a type's own markers."""
    marks = {gene: cell_type for cell_type, genes in markers.genes.items() for gene in genes}
    columns = {
        f"{name}_{statistic}": getattr(dots, statistic).stack()
        for name, dots in {"real": markers.real, "generated": markers.generated}.items()
        for statistic in ("mean", "fraction")
    }
    rows = pd.DataFrame(columns).rename_axis(["cell_type", "gene"]).reset_index()
    rows.insert(2, "marker_of", rows["gene"].map(marks))
    own = rows["marker_of"] == rows["cell_type"]
    return rows[own] if len(rows) > MOST_DOTS and own.any() else rows
