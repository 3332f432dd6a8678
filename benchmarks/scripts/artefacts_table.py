"""Collect how well planted doublets, ambient RNA and markers are found, in all data sets and seeds."""

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown, over_seeds
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.plotting.style import IDEAL_LINE, panels, save_figure, set_styles
from bdm.power.analysis import interval
from bdm.power.expression import METHODS

TEXT = f"""# Planted artefacts

## Doublets

AUC and recall of scrublet, of real and of generated cells: {OVER_SEEDS}

{{doublets}}

## Ambient RNA

Percent of the counts that is found, by the percent that was planted, with the known profile and with the profile of
empty droplets: {OVER_SEEDS}

{{ambient}}

Intervals (95%) that contain the planted share:

{{covered}}

## Markers of a clade

Percent of the planted genes that are found in the types below the node, with 95% intervals, and in all other types;
numbers of other genes that are found in a type below the node, and in another.

{{markers}}
"""
SETS = ("real", "generated")
PROFILES = {"known": "known", "empty": "empty droplets"}


def read(paths: list[Path]) -> pd.DataFrame:
    """Join the tables of all data sets and seeds, ``DATA/SEED/artefacts/NAME.csv``."""
    tables = [pd.read_csv(path).assign(data=path.parts[-4], seed=int(path.parts[-3])) for path in paths]
    return pd.concat(tables, ignore_index=True)


def doublet_table(doublets: pd.DataFrame) -> pd.DataFrame:
    """Compare real and generated doublets by kind and rate."""
    keys = ["data", "kind", "rate"]
    values = doublets.groupby([*keys, "cells"], sort=False)[["auc", "recall"]].agg(over_seeds).unstack("cells")
    columns = {f"{name}, {cells}": values[name, cells] for name in ("auc", "recall") for cells in SETS}
    return pd.DataFrame(columns).rename(columns=lambda name: name.replace("auc", "AUC"))


def ambient_table(ambient: pd.DataFrame) -> pd.DataFrame:
    """Show the estimated share by the planted one, in percent."""
    planted = (100 * ambient["planted"]).map("{:g}".format)
    keys = [ambient["data"], planted, ambient["profile"], ambient["cells"]]
    found = (100 * ambient["found"]).groupby(keys, sort=False)
    return by_profile(found.agg(in_percent).unstack(["profile", "cells"]))


def in_percent(values: pd.Series) -> str:
    """Format the mean of percents, and the range if there are several values."""
    mean, low, high = (f"{value.round(1) + 0:.1f}" for value in (values.mean(), values.min(), values.max()))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def covered_table(ambient: pd.DataFrame) -> pd.DataFrame:
    """Count the intervals that contain the planted share."""
    contains = (ambient["low"] <= ambient["planted"]) & (ambient["planted"] <= ambient["high"])
    groups = contains.groupby([ambient["data"], ambient["profile"], ambient["cells"]], sort=False)
    return by_profile(groups.agg(lambda of: f"{of.sum()} of {len(of)}").unstack(["profile", "cells"]))


def by_profile(values: pd.DataFrame) -> pd.DataFrame:
    """Name the columns of profiles and sets of cells."""
    return pd.DataFrame(
        {f"{cells}, {words}": values[name, cells] for name, words in PROFILES.items() for cells in SETS}
    )


def marker_table(markers: pd.DataFrame) -> pd.DataFrame:
    """Count planted and other genes that are found below the node and outside, by method and size."""
    rows = {}
    for key, of in markers.groupby(["data", "method", "log2_fold_change"], sort=False):
        below, outside = of[of["below"]], of[~of["below"]]
        low, high = interval(below["n_found"].to_numpy(), below["n_planted"].to_numpy())
        rows[(key[0], METHODS[key[1]], key[2])] = {
            "found below": f"{percent(below):.0f}% ({100 * low:.0f} to {100 * high:.0f})",
            "found outside": f"{percent(outside):.1f}%",
            "others below": f"{below['n_false'].mean():.1f} of {below['n_null'].mean():.0f}",
            "others outside": f"{outside['n_false'].mean():.1f} of {outside['n_null'].mean():.0f}",
        }
    return pd.DataFrame(rows).T.rename_axis(["data", "test", "log2 fold change"])


def percent(markers: pd.DataFrame) -> float:
    """Percent of the planted genes that are found."""
    return float(100 * markers["n_found"].sum() / markers["n_planted"].sum())


def plot(doublets: pd.DataFrame, ambient: pd.DataFrame, markers: pd.DataFrame) -> Figure:
    """Draw a row of three panels for each data set."""
    names = list(dict.fromkeys(doublets["data"]))
    figure = Figure(figsize=(12, 3.8 * len(names)), layout="constrained")
    axes = panels(figure, 3 * len(names), n_columns=3)
    colours = {name: set_styles(SETS)[name].colour for name in SETS}
    for row, name in enumerate(names):
        of_data = [table[table["data"] == name] for table in (doublets, ambient, markers)]
        draw_doublets(axes[3 * row], of_data[0], colours)
        draw_ambient(axes[3 * row + 1], of_data[1], colours)
        draw_markers(axes[3 * row + 2], of_data[2])
        axes[3 * row].set_title(f"{name}: doublets")
        axes[3 * row + 1].set_title("ambient RNA")
        axes[3 * row + 2].set_title("markers, generated cells")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    for ax, place in zip(axes, ("best", "upper left", (0.38, 0.12)), strict=False):
        ax.legend(frameon=False, fontsize="small", loc=place)
    return figure


def draw_doublets(ax: Axes, doublets: pd.DataFrame, colours: dict[str, str]) -> None:
    """Draw the AUC of each kind by rate: means over seeds, and each seed as a point."""
    for line, (kind, of_kind) in zip(("--", "-"), doublets.groupby("kind", sort=False), strict=True):
        for name, of in of_kind.groupby("cells", sort=False):
            mean = of.groupby("rate")["auc"].mean()
            ax.plot(mean.index, mean, line, color=colours[name], label=f"{name}, {kind}")
            ax.plot(of["rate"], of["auc"], ".", color=colours[name], alpha=0.5)
    ax.axhline(0.5, **IDEAL_LINE)
    ax.set(xlabel="share of doublets", ylabel="AUC of scrublet", ylim=(0.4, 1))


def draw_ambient(ax: Axes, ambient: pd.DataFrame, colours: dict[str, str]) -> None:
    """Draw the estimated shares with their intervals by the planted share; seeds are beside each other."""
    known = ambient[ambient["profile"] == "known"]
    limit = 1.15 * known["planted"].max()
    ax.plot([0, limit], [0, limit], label="planted", **IDEAL_LINE)
    offsets = {key: 0.0015 * (i - 2.5) for i, key in enumerate(known.groupby(["cells", "seed"], sort=False).groups)}
    for (name, seed), of in known.groupby(["cells", "seed"], sort=False):
        error = np.abs(of[["low", "high"]].to_numpy().T - of["found"].to_numpy())
        label = str(name) if seed == known["seed"].min() else None
        x = of["planted"] + offsets[name, seed]
        ax.errorbar(x, of["found"], error, fmt=".", color=colours[str(name)], linewidth=1, label=label)
    ax.set(xlabel="planted share", ylabel="share that is found")


def draw_markers(ax: Axes, markers: pd.DataFrame) -> None:
    """Draw the share of planted genes that each test finds below the node and outside, by size."""
    colours = {method: style.colour for method, style in set_styles(list(METHODS)).items() if method in METHODS}
    for (method, below), of in markers.groupby(["method", "below"], sort=False):
        sums = of.groupby("log2_fold_change")[["n_found", "n_planted"]].sum()
        label = f"{METHODS[method]}, {'below the node' if below else 'outside'}"
        line = "-" if below else ":"
        ax.plot(sums.index, sums["n_found"] / sums["n_planted"], line, marker=".", color=colours[method], label=label)
    ax.set(xlabel="log2 fold change", ylabel="share of planted genes that is found", ylim=(-0.02, 1.02))


def main(folder: Path, found: list[Path]) -> None:
    """Write the tables of all, their overview as Markdown, and the figure."""
    whole = {name: read([path for path in found if path.stem == name]) for name in ("doublets", "ambient", "markers")}
    for name, table in whole.items():
        table.to_csv(folder / f"artefacts_{name}.csv", index=False)
    overview = {
        "doublets": doublet_table(whole["doublets"]),
        "ambient": ambient_table(whole["ambient"]),
        "covered": covered_table(whole["ambient"]),
        "markers": marker_table(whole["markers"]),
    }
    text = TEXT.format(**{name: markdown(table) for name, table in overview.items()})
    (folder / "artefacts.md").write_text(text, encoding="utf-8")
    save_figure(plot(**whole), folder / "artefacts.png")


if __name__ == "__main__":
    typer.run(main)
