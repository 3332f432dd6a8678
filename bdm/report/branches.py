"""The genes of each branch, as the report page shows them."""

from dataclasses import dataclass

import pandas as pd

from bdm.data.symbols import display_names
from bdm.hierarchy.tree import Hierarchy
from bdm.report.plots import Mark, Scale, Strip, ticks
from bdm.report.results import Results

N_GENES = 5
INTERVAL = 1.96  # standard errors


@dataclass(frozen=True)
class BranchGene:
    """A gene, as it is shown, that a branch has more of than its siblings, in the model and in test cells."""

    gene: str
    strip: Strip


@dataclass(frozen=True)
class Side:
    """A branch below a node, with its genes, the best first.

    Attributes
    ----------
    ticks
        Numbers of the axis that the genes share, with their places in percent.
    """

    name: str
    label: str
    genes: tuple[BranchGene, ...]
    ticks: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Node:
    """A node, and what parts the branches below it.

    Attributes
    ----------
    agreement, floor
        Correlation of all fold changes with those of test cells: of the model's, and of as many training cells.
    words
        All names in it, to search for.
    """

    name: str
    level: float
    sides: tuple[Side, ...]
    agreement: float
    floor: float
    n_test: int
    words: str


def nodes(results: Results) -> list[Node]:
    """Tell the genes of each node, from the root on."""
    table = results.interpretation.get("branch_genes")
    if table is None:
        return []
    agreement = results.interpretation.get("agreement", pd.DataFrame(columns=["node"])).set_index("node")
    hierarchy = results.model.hierarchy
    return [node(name, rows, agreement, hierarchy) for name, rows in table.groupby("node", sort=False)]


def node(name: str, rows: pd.DataFrame, agreement: pd.DataFrame, hierarchy: Hierarchy) -> Node:
    """Tell the genes of one node."""
    sides = tuple(
        side(child, of_child, tuple(hierarchy.leaves(child))) for child, of_child in rows.groupby("child", sort=False)
    )
    judged = agreement.loc[name] if name in agreement.index else pd.Series(dtype=float)
    genes = [best for _, of_child in rows.groupby("child", sort=False) for best in marking(of_child)["gene"]]
    shown = [gene.gene for one in sides for gene in one.genes]
    words = dict.fromkeys([name, *hierarchy.leaves(name), *shown, *genes])
    return Node(
        name=name,
        level=float(rows["level"].iloc[0]),
        sides=sides,
        agreement=float(judged.get("pearson", float("nan"))),
        floor=float(judged.get("pearson_equal", float("nan"))),
        n_test=int(judged.get("n_test", 0)),
        words=" ".join(words).lower(),
    )


def side(child: str, rows: pd.DataFrame, cell_types: tuple[str, ...]) -> Side:
    """Take the best genes of one branch, and draw them on one scale."""
    best = marking(rows)
    changes = [
        (gene, {
            "model": (row.model_log2_fold_change, row.model_standard_error),
            "test": (row.test_log2_fold_change, row.test_standard_error),
        })
        for gene, row in zip(display_names(best), best.itertuples(), strict=True)
    ]  # fmt: skip
    ends = [change + sign * INTERVAL * error for _, of in changes for change, error in of.values() for sign in (-1, 1)]
    scale = Scale.of([0, *ends])
    genes = tuple(BranchGene(gene, intervals(of, scale)) for gene, of in changes)
    return Side(child, named(cell_types), genes, ticks(scale))


def named(cell_types: tuple[str, ...], *, most: int = 3) -> str:
    """Name the first of some types, and the number of others."""
    others = f" +{len(cell_types) - most}" if len(cell_types) > most else ""
    return ", ".join(cell_types[:most]) + others


def marking(rows: pd.DataFrame) -> pd.DataFrame:
    """Take the genes that the model finds highest in a branch, the best first."""
    up = rows[rows["model_log2_fold_change"].astype(float) > 0]
    return up.sort_values("model_rank").head(N_GENES)


def genes_by_branch(results: Results) -> dict[str, list[str]]:
    """Name the best genes of each branch."""
    table = results.interpretation.get("branch_genes")
    if table is None:
        return {}
    return {child: display_names(marking(rows)).tolist() for child, rows in table.groupby("child", sort=False)}


def intervals(changes: dict[str, tuple[float, float]], scale: Scale) -> Strip:
    """Draw fold changes with their 95% intervals."""
    marks, words = [], []
    for name, (change, error) in changes.items():
        if pd.notna(change):
            reach = INTERVAL * error if pd.notna(error) else 0.0
            marks.append(Mark(name, change, scale(change), scale(change - reach), scale(change + reach)))
            words.append(f"{name} {change:.1f} ± {reach:.1f}")
    return Strip(tuple(marks), ", ".join(words), ideal=scale(0))
