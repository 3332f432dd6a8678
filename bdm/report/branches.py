"""The genes of each branch, as the report page shows them."""

from dataclasses import dataclass

import pandas as pd

from bdm.data.symbols import display_names
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.contrasts import fewest_names
from bdm.report.plots import Mark, Scale, Strip, ticks
from bdm.report.results import Results

N_GENES = 5
INTERVAL = 1.96  # standard errors


@dataclass(frozen=True)
class BranchGene:
    """Marker gene of a branch, by the name to show, with its fold changes in the model and in test cells."""

    gene: str
    strip: Strip


@dataclass(frozen=True)
class Side:
    """A branch below a node, with its genes, the best first.

    Attributes
    ----------
    ticks
        Numbers of the axis that the genes share, with their positions in percent.
    """

    name: str
    label: str
    genes: tuple[BranchGene, ...]
    ticks: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Node:
    """A node, and the marker genes of the branches below it.

    Attributes
    ----------
    agreement, floor
        Correlation of all fold changes with the fold changes in test cells, in the model and in as many training cells.
    words
        All names of the node, to search for.
    """

    name: str
    level: float
    sides: tuple[Side, ...]
    agreement: float
    floor: float
    n_test: int
    words: str


def nodes(results: Results) -> list[Node]:
    """Collect the marker genes of each node, from the root on."""
    table = results.interpretation.get("branch_genes")
    if table is None:
        return []
    agreement = results.interpretation.get("agreement", pd.DataFrame(columns=["node"])).set_index("node")
    hierarchy = results.model.hierarchy
    return [node(name, rows, agreement, hierarchy) for name, rows in table.groupby("node", sort=False)]


def node(name: str, rows: pd.DataFrame, agreement: pd.DataFrame, hierarchy: Hierarchy) -> Node:
    """Collect the marker genes of one node."""
    sides = tuple(
        side(child, of_child, fewest_names(tuple(hierarchy.leaves(child)), hierarchy))
        for child, of_child in rows.groupby("child", sort=False)
    )
    scores = agreement.loc[name] if name in agreement.index else pd.Series(dtype=float)
    genes = [best for _, of_child in rows.groupby("child", sort=False) for best in top_markers(of_child)["gene"]]
    shown = [gene.gene for one in sides for gene in one.genes]
    words = dict.fromkeys([name, *hierarchy.types_below(name), *hierarchy.leaves(name), *shown, *genes])
    return Node(
        name=name,
        level=float(rows["level"].iloc[0]),
        sides=sides,
        agreement=float(scores.get("pearson", float("nan"))),
        floor=float(scores.get("pearson_equal", float("nan"))),
        n_test=int(scores.get("n_test", 0)),
        words=" ".join(words).lower(),
    )


def side(child: str, rows: pd.DataFrame, names: tuple[str, ...]) -> Side:
    """Draw the top marker genes of one branch, of populations with these names, on one scale."""
    markers = top_markers(rows)
    changes = [
        (gene, {
            "model": (row.model_log2_fold_change, row.model_standard_error),
            "test": (row.test_log2_fold_change, row.test_standard_error),
        })
        for gene, row in zip(display_names(markers), markers.itertuples(), strict=True)
    ]  # fmt: skip
    ends = [change + sign * INTERVAL * error for _, of in changes for change, error in of.values() for sign in (-1, 1)]
    scale = Scale.of([0, *ends])
    genes = tuple(BranchGene(gene, intervals(of, scale)) for gene, of in changes)
    return Side(child, first_names(names), genes, ticks(scale))


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


def intervals(changes: dict[str, tuple[float, float]], scale: Scale) -> Strip:
    """Draw fold changes with their 95% intervals."""
    marks, words = [], []
    for name, (change, error) in changes.items():
        if pd.notna(change):
            reach = INTERVAL * error if pd.notna(error) else 0.0
            marks.append(Mark(name, change, scale(change), scale(change - reach), scale(change + reach)))
            words.append(f"{name} {change:.1f} ± {reach:.1f}")
    return Strip(tuple(marks), ", ".join(words), ideal=scale(0))
