"""The marker genes of each branch, as the report page lists them."""

from dataclasses import dataclass

import pandas as pd

from bdm.data.symbols import display_names
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.contrasts import fewest_names
from bdm.report.results import Results

N_GENES = 5


@dataclass(frozen=True)
class Node:
    """A node, and the marker genes of the branches below it.

    Attributes
    ----------
    sides
        Names of each branch's populations, with its genes, the best first.
    agreement, floor
        Correlation of all fold changes with the fold changes in test cells, in the model and in as many training cells.
    words
        All names of the node, to search for.
    """

    name: str
    level: float
    sides: tuple[tuple[str, list[str]], ...]
    agreement: float
    floor: float
    words: str


def nodes(results: Results) -> list[Node]:
    """Collect the marker genes of each node, from the root on."""
    table = results.interpretation.get("branch_genes")
    if table is None:
        return []
    agreement = results.interpretation.get("agreement", pd.DataFrame(columns=["node"])).set_index("node")
    hierarchy, genes = results.model.hierarchy, genes_by_branch(results)
    return [node(name, rows, agreement, hierarchy, genes) for name, rows in table.groupby("node", sort=False)]


def node(
    name: str, rows: pd.DataFrame, agreement: pd.DataFrame, hierarchy: Hierarchy, genes: dict[str, list[str]]
) -> Node:
    """Collect the marker genes of one node."""
    children = rows["child"].unique()
    names = (first_names(fewest_names(tuple(hierarchy.leaves(child)), hierarchy)) for child in children)
    scores = agreement.loc[name] if name in agreement.index else pd.Series(dtype=float)
    markers = [gene for _, of_child in rows.groupby("child", sort=False) for gene in top_markers(of_child)["gene"]]
    shown = [gene for child in children for gene in genes[child]]
    words = dict.fromkeys([name, *hierarchy.types_below(name), *hierarchy.leaves(name), *shown, *markers])
    return Node(
        name=name,
        level=float(rows["level"].iloc[0]),
        sides=tuple((label, genes[child]) for label, child in zip(names, children, strict=True)),
        agreement=float(scores.get("pearson", float("nan"))),
        floor=float(scores.get("pearson_equal", float("nan"))),
        words=" ".join(words).lower(),
    )


def first_names(names: tuple[str, ...], *, most: int = 3) -> str:
    """List the first cell types or sub-populations, and the number of the others."""
    others = f" +{len(names) - most}" if len(names) > most else ""
    return ", ".join(names[:most]) + others


def top_markers(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the genes that are highest in a branch in the model, the best first."""
    up = rows[rows["model_log2_fold_change"].astype(float) > 0]
    return up.sort_values("model_rank").head(N_GENES)


def genes_by_branch(results: Results) -> dict[str, list[str]]:
    """List the top marker genes of each branch."""
    table = results.interpretation.get("branch_genes")
    if table is None:
        return {}
    return {child: display_names(top_markers(rows)).tolist() for child, rows in table.groupby("child", sort=False)}
