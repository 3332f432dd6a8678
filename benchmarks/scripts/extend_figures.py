"""Draw the scores of cell types that were added later, and of the types known before."""

import pandas as pd
from extend_strategies import ALONE, EVERYTHING, EXTENSION
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.scale import SymmetricalLogScale
from matplotlib.ticker import MaxNLocator

from bdm.evaluation.cells import FLOOR
from bdm.plotting.style import GREY, set_styles

STYLES = {name: style for name, style in set_styles([EXTENSION, ALONE, EVERYTHING]).items() if name != FLOOR}
SCALE = SymmetricalLogScale(None, linthresh=0.5)
TICKS = [-0.5, 0, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
LEVELS = {"joint": ("joint training", "-"), FLOOR: ("real training cells", "--")}


def panels(names: list[str], *, sharey: bool = False) -> tuple[Figure, dict[str, Axes]]:
    """Make a panel for each data set."""
    figure = Figure(figsize=(0.5 + 3.9 * len(names), 4.4), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=sharey, squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        ax.set_title(name, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, dict(zip(names, axes, strict=True))


def with_legend(figure: Figure, axes: dict[str, Axes]) -> Figure:
    """Name what is drawn in any panel."""
    named = {label: h for ax in axes.values() for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)
    return figure


def show(axis: Axis, lowest: float, highest: float) -> None:
    """Show a range of energy distances on a scale that is linear up to 0.5, and logarithmic beyond."""
    axis.set_ticks([tick for tick in TICKS if lowest - 0.1 < tick < 1.5 * highest])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter("{x:g}")
    axis.axes.set(**{f"{axis.axis_name}lim": (lowest - 0.1, 1.5 * highest)})


def one_figure(runs: pd.DataFrame) -> Figure:
    """Draw one point a type that was left out: its energy distance by each way, against joint training's."""
    means = runs.groupby(["data", "added", "set"], sort=False)[["energy", "energy joint"]].mean().reset_index()
    figure, axes = panels(means["data"].unique().tolist())
    for data, ax in axes.items():
        of_data = means[means["data"] == data]
        for way, set_style in STYLES.items():
            of_way = of_data[of_data["set"] == way]
            if len(of_way):
                style = {"color": set_style.colour, "marker": set_style.marker, "zorder": 3 if way == EXTENSION else 2}
                faint = {} if way == EXTENSION else {"markerfacecolor": "none", "markersize": 5}
                ax.plot(of_way["energy joint"], of_way["energy"], ls="", label=way, **style, **faint)
        ax.set(xscale=SCALE, yscale=SCALE)
        lowest = of_data[["energy", "energy joint"]].min().min()
        show(ax.xaxis, lowest, of_data["energy joint"].max())
        show(ax.yaxis, lowest, of_data["energy"].max())
        ax.plot(ax.get_xlim(), ax.get_xlim(), color=GREY, linewidth=0.8, label="as near as joint training", zorder=1)
        ax.set_xlabel("energy distance, joint training")
    next(iter(axes.values())).set_ylabel("energy distance, type learned later")
    return with_legend(figure, axes)


def in_turn_figure(scores: pd.DataFrame) -> Figure:
    """Draw the mean energy distance of the types known before each addition, after it."""
    known = scores[scores["cell_type"] != scores["added"]]
    means = known.groupby(["data", "step", "set"], sort=False)["energy"].mean().reset_index()
    figure, axes = panels(means["data"].unique().tolist(), sharey=True)
    for data, ax in axes.items():
        sets = means[means["data"] == data].pivot(index="step", columns="set", values="energy")
        for way, set_style in STYLES.items():
            if way in sets:
                ax.plot(sets[way], color=set_style.colour, marker=set_style.marker, markersize=5, label=way)
        for name, (label, line) in LEVELS.items():
            ax.plot(sets[name], color=GREY, linestyle=line, label=label, zorder=1)
        ax.set_yscale(SCALE)
        show(ax.yaxis, means["energy"].min(), means["energy"].max())
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("types added")
    next(iter(axes.values())).set_ylabel("energy distance,\nmean of the types known before")
    return with_legend(figure, axes)
