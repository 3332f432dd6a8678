"""Extensions of a model: how well it expresses each type, and the genes that type-specific decoders change."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from bdm.api import BranchedDiffusion
from bdm.data.symbols import display_names
from bdm.errors import InputError
from bdm.extension.results import ExtensionReport, genes_table
from bdm.plotting.style import (
    ADDED,
    MODEL,
    Style,
    axes_or_new,
    check_kind,
    explain,
    gene_label,
    new_figure,
    open_frame,
    panels,
    shortened,
    shown,
    text_figure,
)

MAX_PANELS, N_COLUMNS, N_GENES = 12, 4, 12
HEIGHT, WIDTH = 11, 150  # of a label, in pixels
BEFORE: Style = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "color": ADDED, "markersize": 7}
AFTER: Style = {"marker": "o", "linestyle": "", "color": ADDED, "markersize": 7}
KNOWN: Style = {"marker": "D", "linestyle": "", "color": "0.55", "markersize": 5}


def likelihood(
    report: ExtensionReport | BranchedDiffusion, *, ax: Axes | None = None, show: bool | None = None
) -> Axes | None:
    """Draw the log likelihood of held-out cells of each type; of added types, before and after the extension.

    Parameters
    ----------
    report
        Report of an extension, or a model that was extended in this session.

    Examples
    --------
    ::

        model.extend(adata_other)
        bdm.pl.likelihood(model)
        bdm.pl.likelihood(bdm.ExtensionReport.load("report"))
    """
    check_kind(report, ExtensionReport, BranchedDiffusion)
    if isinstance(report, BranchedDiffusion):
        if not report.last_extension:
            raise InputError("The model was not extended in this session; call extend() first.")
        report = ExtensionReport.of(report.last_extension)
    axis = axes_or_new(ax, 8, 5)
    draw_likelihood(axis, report.likelihood)
    return shown(axis, show=show, complete=ax is None)


def draw_likelihood(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the log likelihood of cells by their depth, one point a type, and arrows from before to after."""
    stages = {stage: rows.set_index("cell_type") for stage, rows in table.groupby("stage", sort=False)}
    known, before, after = stages["model"].dropna(), stages["before"], stages["after"]
    ax.plot(known["n_counts"], known["per_1000_counts"], **KNOWN, label="known types")
    for cell_type, (x, y) in after[["n_counts", "per_1000_counts"]].iterrows():
        start = x, before.loc[cell_type, "per_1000_counts"]
        ax.annotate("", (x, y), start, arrowprops={"arrowstyle": "->", "color": ADDED})
    ax.plot(before["n_counts"], before["per_1000_counts"], **BEFORE, label="new types, before the extension")
    ax.plot(after["n_counts"], after["per_1000_counts"], **AFTER, label="new types, after the extension")
    ax.set_xscale("log")
    ax.margins(x=0.12)
    points = pd.concat([after, known.drop(after.index, errors="ignore")])[["n_counts", "per_1000_counts"]]
    for cell_type in points_with_room(ax, points):
        style: Style = {"textcoords": "offset points", "fontsize": 8, "va": "center"}
        ax.annotate(shortened(cell_type), points.loc[cell_type], (7, 0), **style)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.tick_params(which="both", labelsize=8)
    ax.set_xlabel("mean counts of a held-out cell")
    ax.set_ylabel("log likelihood, nats per 1,000 counts")
    open_frame(ax)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)


def points_with_room(axis: Axes, points: pd.DataFrame) -> list[str]:
    """Choose the points that have room for a label at their right, the first ones first."""
    pixels = dict(zip(points.index, axis.transData.transform(points.to_numpy()), strict=True))
    chosen: list[str] = []
    for name, (x, y) in pixels.items():
        others = [pixels[other] for other in chosen]
        if all(abs(y - other_y) > HEIGHT or abs(x - other_x) > WIDTH for other_x, other_y in others):
            chosen.append(name)
    return chosen


def type_specific_genes(
    model: BranchedDiffusion | ExtensionReport, cell_types: Sequence[str] = (), *, show: bool | None = None
) -> list[Axes] | None:
    """Draw the genes that the type-specific decoder of each type changes most.

    Parameters
    ----------
    model
        A fitted or loaded model, or the report of an extension.
    cell_types
        Types to draw; by default all that have a type-specific decoder, or all of the report.

    Examples
    --------
    ::

        bdm.pl.type_specific_genes(model, ["Dendritic"])
    """
    check_kind(model, BranchedDiffusion, ExtensionReport)
    if isinstance(model, ExtensionReport):
        available = list(dict.fromkeys(model.genes["cell_type"]))
    else:
        available = list(model.model.autoencoder.adapters)
    for name in cell_types:
        if name not in available:
            raise InputError(f"The type {name!r} has no type-specific decoder; choose among {', '.join(available)}.")
    if not available:
        return shown(text_figure("No cell type needed a type-specific decoder."), show=show)
    chosen = list(cell_types) or available
    genes = model.genes if isinstance(model, ExtensionReport) else genes_table(model.model, chosen)
    cell_types = [name for name in dict.fromkeys(genes["cell_type"]) if name in chosen][:MAX_PANELS]
    n_columns = min(len(cell_types), N_COLUMNS)
    n_rows = -(-len(cell_types) // n_columns)
    figure = new_figure(1.5 + 3.4 * n_columns, 0.9 + 3.4 * n_rows)
    axes = panels(figure, len(cell_types), n_columns=n_columns)
    for axis, cell_type in zip(axes, cell_types, strict=True):
        draw_type_specific_genes(axis, genes[genes["cell_type"] == cell_type].head(N_GENES), cell_type)
    figure.supxlabel("mean expression, CP10k", fontsize=9)
    explain(figure, axes[0], loc="outside upper left", ncols=2, fontsize=9)
    return shown(figure, show=show)


def draw_type_specific_genes(axis: Axes, genes: pd.DataFrame, cell_type: str) -> None:
    """Draw the expression of each gene by the shared and by the type-specific decoder."""
    rows = range(len(genes))
    shared, specific = genes["shared"], genes["type_specific"]
    axis.hlines(rows, shared, specific, color="0.7", linewidth=1, zorder=1)
    style: Style = {**MODEL, "color": "0.45", "markerfacecolor": "white"}
    axis.plot(shared, rows, **style, label="shared decoder", clip_on=False)
    axis.plot(specific, rows, **AFTER, label="type-specific decoder", clip_on=False)
    axis.set_yticks(rows, [*map(gene_label, display_names(genes))], fontsize=8)
    axis.set_ylim(len(genes) - 0.4, -0.6)
    axis.set_xscale("asinh", linear_width=1)
    axis.set_xlim(left=0)
    axis.set_xticks([value for value in (0, 1, 10, 100, 1000) if value <= axis.get_xlim()[1]])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(shortened(cell_type), fontsize=9)
    open_frame(axis)
