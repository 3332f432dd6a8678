"""Compare the tree of cell types with annotated groups and random trees."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation
from synthetic_cells import random_tree
from tidy import tidy, write_rows
from tree_comparison import TreeComparison, clades_of_tree

from bdm._core.seeds import numpy_generator
from bdm.data.prepare import read_prepared
from bdm.hierarchy.files import load_hierarchy
from bdm.hierarchy.tree import Hierarchy
from bdm.plotting.hierarchy_figure import hierarchy as plot_hierarchy
from bdm.plotting.hierarchy_figure import view_of
from bdm.plotting.style import COLOURS, MARKERS, save_figure

N_RANDOM = 1000
ALL = "all groups"
COLUMN_WIDTH = 11  # points

Clades = set[frozenset[str]]


def named_groups(obs: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """List groups of two or more cell types with the same label.

    Groups of all types are left out. Duplicate groups appear once, with their first label.

    Returns
    -------
    Table with ``label`` (the column), ``group`` (its value) and ``cell_types`` (a set).
    """
    rows = []
    for label in labels:
        pairs = obs[["cell_type", label]].astype(str).drop_duplicates()
        if pairs["cell_type"].duplicated().any():
            raise SystemExit(f"{label} has several values within a cell type; --label needs one value per type.")
        for group, cell_types in pairs.groupby(label)["cell_type"]:
            if 1 < len(cell_types) < len(pairs):
                rows.append((label, group, frozenset(cell_types)))
    table = pd.DataFrame(rows, columns=["label", "group", "cell_types"])
    return table[~table["cell_types"].duplicated()].reset_index(drop=True)


def random_clades(cell_types: tuple[str, ...], seed: int) -> Iterator[Clades]:
    """Yield the clades of random trees of the cell types."""
    generator = numpy_generator(seed, "random trees")
    for _ in range(N_RANDOM):
        yield clades_of_tree(random_tree(cell_types, balanced=False, generator=generator))


def nearness(group: frozenset[str], tree: Clades) -> float:
    """Compute the Jaccard index of a group and its nearest clade."""
    return max(len(group & clade) / len(group | clade) for clade in tree)


def compare_groups(tree: Clades, groups: pd.DataFrame, random: list[Clades]) -> pd.DataFrame:
    """Score whether each group is a clade, beside random trees."""
    sets = groups["cell_types"]
    return pd.DataFrame(
        {
            "group": groups["label"] + ": " + groups["group"],
            "n_types": sets.map(len),
            "found": [float(group in tree) for group in sets],
            "nearest clade": [nearness(group, tree) for group in sets],
            "found by chance": [sum(group in clades for clades in random) / len(random) for group in sets],
            "nearest clade by chance": [
                sum(nearness(group, clades) for clades in random) / len(random) for group in sets
            ],
        }
    )


def compare_trees(tree: Clades, groups: Clades, random: list[Clades]) -> dict[str, float]:
    """Compare the tree with all groups: missing groups, and clades that split groups."""
    comparison = TreeComparison(tree, groups)
    by_chance = pd.DataFrame(
        [
            (len(c.found), c.share_missing, contradicting(c))
            for c in (TreeComparison(clades, groups) for clades in random)
        ],
        columns=["found", "missing", "contradicting"],
    )
    return {
        "groups": len(groups),
        "found": len(comparison.found),
        "found by chance": by_chance["found"].mean(),
        "most by chance": by_chance["found"].max(),
        "missing": comparison.share_missing,
        "missing by chance": by_chance["missing"].mean(),
        "splitting": contradicting(comparison),
        "splitting by chance": by_chance["contradicting"].mean(),
    }


def contradicting(comparison: TreeComparison) -> float:
    """Compute the share of clades that split a group."""
    return len(comparison.contradicting) / len(comparison.tree)


def draw(hierarchy: Hierarchy, groups: pd.DataFrame, title: str) -> Figure:
    """Draw the tree with a column of marks for each label.

    Groups that are clades are also marked at their branch.
    """
    n_types = len(hierarchy.cell_types)
    ax = plot_hierarchy(hierarchy, max_rows=n_types, show=False)
    labels = list(dict.fromkeys(groups["label"]))
    ax.tick_params(axis="y", pad=6 + COLUMN_WIDTH * len(labels))
    styles = [{"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]} for i in range(len(groups))]
    rows = view_of(hierarchy, max_rows=n_types).rows
    nodes = {frozenset(hierarchy.leaves(b.name)): b for b in hierarchy.branches}
    for style, row in zip(styles, groups.itertuples(), strict=True):
        offset = 8 + COLUMN_WIDTH * labels.index(row.label)
        for cell_type in row.cell_types:
            beside = ax.get_yaxis_transform() + ScaledTranslation(offset / 72, 0, ax.figure.dpi_scale_trans)
            ax.plot(1, rows[cell_type], transform=beside, clip_on=False, ls="", ms=7, **style)
        if (node := nodes.get(row.cell_types)) is not None and node.name in rows:
            ax.plot(node.level, rows[node.name], ls="", ms=8, zorder=4, **style)
    handles = [
        Line2D(
            [],
            [],
            ls="",
            ms=7,
            label=f"{row.group}" + ("" if row.cell_types in nodes else " (no clade)"),
            **style,
        )
        for style, row in zip(styles, groups.itertuples(), strict=True)
    ]
    ax.figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    ax.set_title(title, fontsize=10, loc="left")
    return ax.figure


def main(
    prepared: Path,
    hierarchy: Path,
    out: Path,
    *,
    label: Annotated[list[str], typer.Option(help="Column of obs that groups the cell types.")],
    seed: int = 0,
) -> None:
    """Write scores of the tree and each group, and draw the tree."""
    tree = load_hierarchy(hierarchy)
    groups = named_groups(read_prepared(prepared).obs, label)
    clades, random = clades_of_tree(tree), list(random_clades(tree.cell_types, seed))
    overall = compare_trees(clades, set(groups["cell_types"]), random)
    whole = pd.DataFrame([{"group": ALL, "n_types": len(tree.cell_types), **overall}])
    by_group = compare_groups(clades, groups, random)
    write_rows(pd.concat([tidy(table, ["group", "n_types"]) for table in (whole, by_group)]), out)
    title = f"{overall['found']} of {len(groups)} groups are clades; {overall['found by chance']:.2f} in random trees"
    save_figure(draw(tree, groups, title), out.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
