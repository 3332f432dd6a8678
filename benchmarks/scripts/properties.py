"""Compare and draw properties of simulated and real cells."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from property_distances import ALL, KINDS, LABEL, PROPERTIES, compare_properties
from tidy import write_rows

from bdm.data.cell_sets import read_generated, read_real_cells
from bdm.plotting.evaluation import set_styles
from bdm.plotting.style import (
    FLOOR_LINE,
    Style,
    draw_legend,
    figure_of,
    name_rows,
    new_figure,
    open_frame,
    save_figure,
    shade_rows,
    text_axes,
)
from bdm.settings import EvaluationSettings, InputKeys

NO_PROPERTIES = "Too few cells could be compared to show their properties."  # shown instead of the figure
COLUMNS = (("gene", "cell", "joint"), ("biology", "structure", "use"))  # columns of panels, by kind of properties
ROW_HEIGHT, TITLE_HEIGHT = 0.26, 0.5  # in inches


def draw_distances(table: pd.DataFrame) -> Figure:
    """Draw distances to test cells beyond the floor by property."""
    table = table[table["value"].notna() & table["floor"].notna()]
    overall = table[table["by"] == ALL]
    names = {
        kind: [key for key in PROPERTIES if key in set(overall.loc[overall["kind"] == kind, "property"])]
        for kind in KINDS
        if (table["kind"] == kind).any()
    }
    columns = [present for kinds in COLUMNS if (present := [kind for kind in kinds if kind in names])]
    if not columns:
        return figure_of(text_axes(NO_PROPERTIES))
    heights = {kind: len(names[kind]) + TITLE_HEIGHT / ROW_HEIGHT for kind in names}
    n_rows = max(sum(heights[kind] for kind in kinds) for kinds in columns)
    figure = new_figure(5.5 * len(columns), 1.2 + ROW_HEIGHT * n_rows)
    styles = set_styles(table["method"].unique())
    grid = figure.add_gridspec(1, len(columns))
    axes: list[Axes] = []
    for column, kinds in enumerate(columns):
        rows = grid[column].subgridspec(len(kinds), 1, height_ratios=[heights[kind] for kind in kinds])
        for row, kind in enumerate(kinds):
            axis = figure.add_subplot(rows[row], sharex=axes[0] if axes else None)
            draw_kind(axis, table[table["kind"] == kind], names[kind], styles)
            axis.set_title(KINDS[kind], fontsize=10, loc="left")
            axis.tick_params(labelbottom=row == len(kinds) - 1)
            axes.append(axis)
    draw_legend(figure, axes[0])
    note = "; thin lines: the middle half of cell types" if (table["by"] == LABEL).any() else ""
    figure.supxlabel(f"distance to test cells beyond the floor's (line at 0){note}", fontsize=9)
    return figure


def draw_kind(axis: Axes, table: pd.DataFrame, names: list[str], styles: dict[str, Style]) -> None:
    """Draw properties of one kind as rows, with a marker per method."""
    shade_rows(axis, len(names))
    axis.axvline(0, **FLOOR_LINE)
    excess = (table["value"] - table["floor"]).to_numpy()
    position = pd.Series(range(len(names)), index=names)
    offsets = np.linspace(-0.28, 0.28, len(styles) + 2)[1:-1]
    for offset, (name, style) in zip(offsets, styles.items(), strict=True):
        of_method = (table["method"] == name).to_numpy()
        overall, within = (of_method & (table["by"] == by).to_numpy() for by in (ALL, LABEL))
        by_type = pd.Series(excess[within]).groupby(table["property"].to_numpy()[within])
        low, high = (by_type.quantile(share).reindex(names) for share in (0.25, 0.75))
        axis.hlines(position + offset, low, high, color=style["color"], linewidth=1)
        rows = position[table["property"].to_numpy()[overall]].to_numpy() + offset
        axis.plot(excess[overall], rows, markersize=5, zorder=3 - offset, **style)
    name_rows(axis, [PROPERTIES[key].name for key in names], fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    open_frame(axis)


def main(
    cells: Annotated[Path, typer.Argument(help="Training cells, and test cells, as for bdm evaluate.")],
    simulated: Annotated[list[Path], typer.Argument(help="Simulated cells, in a file named by each method.")],
    out: Annotated[Path, typer.Argument(help="Table to write.", metavar="OUT.csv")],
    *,
    test_cells: Annotated[Path | None, typer.Option(help="Test cells, if not in CELLS.")] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of cell types.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of batches.")] = None,
    counts: Annotated[str | None, typer.Option(help="Where the raw counts are.")] = None,
    n_repeats: Annotated[int, typer.Option(help="Maximum number of resamples.")] = EvaluationSettings().n_repeats,
    figure: Annotated[Path | None, typer.Option(help="Figure to write.", metavar="FILE.png")] = None,
    seed: int = 0,
) -> None:
    """Write and draw the distances of each method to test cells."""
    keys = InputKeys(label_key=label_key, batch_key=batch_key, counts=counts)
    real = read_real_cells(cells, test_cells, keys, on_disk=True)
    methods = {file.stem: read_generated(file, real, keys, on_disk=True) for file in simulated}
    table = compare_properties(real, methods, EvaluationSettings(n_repeats=n_repeats), seed=seed)
    write_rows(table, out)
    if figure is not None:
        save_figure(draw_distances(table), figure)


if __name__ == "__main__":
    typer.run(main)
