"""Properties of sets of cells: how much farther from test cells than the floor, all properties in one figure."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.evaluation.cells import FLOOR
from bdm.evaluation.properties.catalogue import ALL, KINDS, LABEL, PROPERTIES
from bdm.evaluation.results import Evaluation
from bdm.plotting.style import GREY, NewFigure, SetStyle, Style, figure_of_text, set_styles, shade_rows

NO_PROPERTIES = "Too few cells could be compared to show their properties."  # in place of the figure
COLUMNS = (("gene", "cell", "joint"), ("biology", "structure", "use"))
ROW_HEIGHT, TITLE_HEIGHT = 0.26, 0.5  # in inches
FLOOR_LINE: Style = {"color": GREY, "linewidth": 1.2}
EXPLANATION = "distance to test cells beyond the floor's (line at 0)"
OF_TYPES = "; thin lines: the middle half of cell types"  # where there are any


def properties_figure(evaluation: Evaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw one row a property, and one marker a set, at its distance to test cells minus that of the floor."""
    table = evaluation.properties
    table = table[table["value"].notna() & table["floor"].notna()]
    columns = [[kind for kind in kinds if (table["kind"] == kind).any()] for kinds in COLUMNS]
    columns = [kinds for kinds in columns if kinds]
    if not columns:
        return figure_of_text(NO_PROPERTIES, new=new)
    names = {kind: known(table, kind) for kinds in columns for kind in kinds}
    n_rows = max(sum(len(names[kind]) + TITLE_HEIGHT / ROW_HEIGHT for kind in kinds) for kinds in columns)
    figure = new(figsize=(5.5 * len(columns), 1.2 + ROW_HEIGHT * n_rows), layout="constrained")
    styles = {name: style for name, style in set_styles(evaluation.sets).items() if name != FLOOR}
    grid = figure.add_gridspec(1, len(columns))
    axes: list[Axes] = []
    for column, kinds in enumerate(columns):
        heights = [len(names[kind]) + TITLE_HEIGHT / ROW_HEIGHT for kind in kinds]
        rows = grid[column].subgridspec(len(kinds), 1, height_ratios=heights)
        for row, kind in enumerate(kinds):
            axis = figure.add_subplot(rows[row], sharex=axes[0] if axes else None)
            draw_kind(axis, table[table["kind"] == kind], names[kind], styles)
            axis.set_title(KINDS[kind], fontsize=10, loc="left")
            axis.tick_params(labelbottom=row == len(kinds) - 1)
            axes.append(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=8, frameon=False)
    by_type = (table["by"] == LABEL) & table["set"].isin(styles)
    figure.supxlabel(EXPLANATION + (OF_TYPES if by_type.any() else ""), fontsize=9)
    return figure


def known(table: pd.DataFrame, kind: str) -> list[str]:
    """Properties of a kind that are known of all cells, in their order."""
    found = set(table.loc[(table["kind"] == kind) & (table["by"] == ALL), "property"])
    return [key for key in PROPERTIES if key in found]


def draw_kind(axis: Axes, table: pd.DataFrame, properties: list[str], styles: dict[str, SetStyle]) -> None:
    """Draw the properties of one kind, with the sets a little below each other."""
    shade_rows(axis, len(properties))
    axis.axvline(0, **FLOOR_LINE)
    excess = (table["value"] - table["floor"]).to_numpy()
    place = pd.Series(range(len(properties)), index=properties)
    offsets = np.linspace(-0.28, 0.28, len(styles) + 2)[1:-1]
    for offset, (name, style) in zip(offsets, styles.items(), strict=True):
        of_set = (table["set"] == name).to_numpy()
        of_all, of_types = (of_set & (table["by"] == by).to_numpy() for by in (ALL, LABEL))
        by_type = pd.Series(excess[of_types]).groupby(table["property"].to_numpy()[of_types])
        low, high = (by_type.quantile(share).reindex(properties) for share in (0.25, 0.75))
        axis.hlines(place + offset, low, high, color=style.colour, linewidth=1)
        rows = place[table["property"].to_numpy()[of_all]].to_numpy() + offset
        mark: Style = {"color": style.colour, "markersize": 5, "zorder": 3 - offset}
        axis.plot(excess[of_all], rows, style.marker, label=name, **mark)
    axis.set_yticks(range(len(properties)), [PROPERTIES[key].name for key in properties], fontsize=8)
    axis.set_ylim(len(properties) - 0.5, -0.5)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
