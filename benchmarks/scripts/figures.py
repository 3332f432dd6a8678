"""Figures of targets, from their rows."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from property_distances import PROPERTIES

from bdm.applications.audit.attacks import ATTACKS, COPIES
from bdm.applications.power.differential import METHODS as TESTS
from bdm.data.cells import FLOOR
from bdm.plotting.evaluation import set_styles
from bdm.plotting.experiments import LABELS, PANELS, STYLES, draw_scores_of_transmutation
from bdm.plotting.style import IDEAL_LINE, shade_rows

MAX_DISTANCE = 0.2  # beyond the floor; upper end of the colour scale
FAR, MISSING = "YlOrRd", "0.9"


def draw_properties(rows: pd.DataFrame) -> Figure:
    """Draw distances beyond the floor, properties x methods, by data set."""
    beyond = rows.assign(value=rows["value"] - rows["floor"])
    names, methods = rows["data"].unique(), rows["method"].unique()
    keys = [key for key in PROPERTIES if key in set(rows["property"])]
    figure = Figure(figsize=(3 + 0.28 * len(methods) * len(names), 2 + 0.2 * len(keys)), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    kinds = pd.Series([PROPERTIES[key].kind for key in keys])
    for axis, name in zip(axes, names, strict=True):
        table = beyond[beyond["data"] == name].pivot_table(index="property", columns="method", values="value")
        table = table.reindex(index=keys, columns=methods)
        axis.set_facecolor(MISSING)
        axis.imshow(np.ma.masked_invalid(table.to_numpy()), cmap=FAR, vmin=0, vmax=MAX_DISTANCE, aspect="auto")
        axis.set_xticks(range(len(methods)), methods, rotation=90, fontsize=7)
        axis.tick_params(length=0)
        axis.set_title(name, fontsize=8)
        axis.hlines(np.flatnonzero(kinds != kinds.shift())[1:] - 0.5, *axis.get_xlim(), color="black", linewidth=0.8)
    axes[0].set_yticks(range(len(keys)), [PROPERTIES[key].name for key in keys], fontsize=7)
    bar = figure.colorbar(ScalarMappable(Normalize(0, MAX_DISTANCE), FAR), ax=axes, extend="max", aspect=40, pad=0.01)
    bar.set_label("distance to test cells beyond the floor's", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def draw_costs(rows: pd.DataFrame) -> Figure:
    """Draw time and memory of each step by number of cells.

    Names of data sets start with the number.
    """
    rows = rows.assign(n_cells=rows["data"].str.extract(r"^(\d+)", expand=False).astype(int))
    steps = rows["step"].unique()
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = {"s": "seconds on the clock", "max_rss": "peak memory, MB"}
    for axis, (score, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for marker, step in zip("osD^vP*", steps, strict=False):
            chosen = rows[(rows["step"] == step) & (rows["score"] == score)].sort_values("n_cells")
            axis.plot(chosen["n_cells"], chosen["value"], marker=marker, label=step)
        axis.set(xscale="log", yscale="log" if score == "s" else "linear", xlabel="cells", ylabel=title)
        axis.spines[["right", "top"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(steps), frameon=False)
    return figure


def draw_null(rows: pd.DataFrame) -> Figure:
    """Draw shares of p-values by level, numbers of donors x sets of cells."""
    curves = rows.dropna(subset="level")
    names, numbers, methods = (list(curves[key].unique()) for key in ("cells", "donors", "method"))
    colours = {name: style["color"] for name, style in set_styles(methods).items()}
    figure = Figure(figsize=(0.6 + 2.9 * len(names), 0.8 + 2.7 * len(numbers)), layout="constrained")
    axes = figure.subplots(len(numbers), len(names), squeeze=False, sharex=True, sharey=True)
    for (row, number), (column, name) in ((r, c) for r in enumerate(numbers) for c in enumerate(names)):
        chosen = curves[(curves["cells"] == name) & (curves["donors"] == number)]
        ax = axes[row, column]
        for method, colour in colours.items():
            mean = chosen[chosen["method"] == method].groupby("level")["value"].mean().replace(0, np.nan)
            ax.plot(mean.index, mean, color=colour, linewidth=1.6, label=TESTS.get(method, method))
        ax.plot([1e-4, 1], [1e-4, 1], label="valid test", **IDEAL_LINE)
        ax.set(xscale="log", yscale="log", xlim=(1e-4, 1), ylim=(1e-4, 1), title=f"{name}, {number} + {number}")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("level")
    for ax in axes[:, 0]:
        ax.set_ylabel("share of p-values below it")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw_transmuted(rows: pd.DataFrame) -> Figure:
    """Draw the scores of the first data set, by type and strategy."""
    of_first = rows[rows["data"] == rows["data"].iloc[0]]
    types = of_first["original_type"] + " → " + of_first["to"].str.split("|").str[-1]
    table = of_first.assign(group=types, set=of_first["method"])
    keys = ["group", "score", "set"]
    means = table[table["score"].isin(PANELS)].groupby(keys, sort=False)["value"].mean().unstack("set")
    floor = means.pop(FLOOR).rename("floor")
    long = means.rename_axis(columns="set").stack().rename("value").reset_index().join(floor, on=["group", "score"])
    return draw_scores_of_transmutation(long, types.unique(), "the type named")


def draw_attacks(rows: pd.DataFrame) -> Figure:
    """Draw donor AUCs by attack and method, with ranges over folds."""
    names = rows["data"].unique()
    figure = Figure(figsize=(1.9 + 4.6 * len(names), 4.2), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for ax, name in zip(axes, names, strict=True):
        draw_attacks_on(ax, rows[rows["data"] == name])
        ax.set_title(name, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def draw_attacks_on(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw a row for each attack."""
    attacks = [name for name in ATTACKS if name in set(rows["score"])]
    by_method = rows.groupby(["method", "score"], sort=False)["value"].agg(["mean", "min", "max"])
    methods = [name for name in rows["method"].unique() if name != COPIES]
    styles = set_styles(methods)
    shade_rows(ax, len(attacks))
    for number, name in enumerate(methods):
        own, style = by_method.loc[name], styles[name]
        shift = (number - (len(methods) - 1) / 2) * 0.7 / len(methods)
        row = [attacks.index(attack) + shift for attack in own.index]
        ax.hlines(row, own["min"], own["max"], color=style["color"], linewidth=1.2, alpha=0.5)
        ax.plot(own["mean"], row, **{**style, "label": f"{name} (bar: folds)"})
    own = by_method.loc[COPIES]
    ax.plot(own["mean"], [attacks.index(attack) for attack in own.index], label=LABELS[COPIES], **STYLES[COPIES])
    ax.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(attacks)), [ATTACKS[name] for name in attacks])
    ax.set_ylim(len(attacks) - 0.5, -0.5)
    ax.set_xlabel("AUC of members against other donors")
    ax.spines[["top", "right"]].set_visible(False)
