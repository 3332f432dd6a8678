"""Collect what attacks find in models with noise, and what the noise costs; with the noise of differential privacy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import typer
from as_text import markdown, over_seeds
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import norm

from bdm.audit.verdict import ATTACKS
from bdm.plotting.style import save_figure, set_styles

SCORES = {
    "forest_auc": "forest AUC",
    "gene_auc": "gene AUC",
    "energy": "energy distance",
    "slope": "slope of log fold changes",
    "fold_change_correlation": "r of log fold changes",
    "f1": "F1",
}
IN_FIGURE = ("forest_auc", "fold_change_correlation", "f1")
EPSILONS, DELTA = (1, 10, 100), 1e-3
N_DONORS = 40
NUMBERS = {"means of 990 genes in 4 cell types": 990 * 4, "all parameters of a model": 315_000}
TEXT = f"""# Protection

Numbers are means over seeds, divisions of the donors and draws of the noise, with the smallest and the largest value.
The noise is in units of the differences between donors. Cells are compared with cells of donors that no model was
fitted to; the floor is real cells of the members.

## A third of the donors are members

AUC of donors:

{{thirds}}

Fewer cells, without noise:

{{cells}}

Fidelity:

{{fidelity}}

## Number of members

`n_donors` are members; the others, and the donors of the reference, are the same for any number of members.

{{members}}

## Differential privacy

Size of the noise, in units of the differences between donors, of the Gaussian mechanism (Balle and Wang 2018) with
delta = {DELTA:g}, if each of {N_DONORS} donors adds at most what donors differ by, and their mean is public; and the
number of donors at which it would be 1.

{{private}}
"""


def read(paths: list[Path]) -> pd.DataFrame:
    """Join the tables of all divisions, ``DATA/SEED/DIVISION.csv``."""
    tables = [
        pd.read_csv(path).assign(data=path.parts[-3], seed=int(path.parts[-2]), division=path.stem) for path in paths
    ]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(thirds=table["division"].str.startswith("thirds"))


def areas(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Show the areas of all attacks on donors."""
    columns = {f"attack/{name}": text for name, text in ATTACKS.items() if f"attack/{name}" in table}
    columns = {name: text for name, text in columns.items() if table[name].notna().any()}
    return table.groupby(by, sort=True)[list(columns)].agg(over_seeds).rename(columns=columns)


def fidelity(table: pd.DataFrame) -> pd.DataFrame:
    """Show the scores of cells, beside the floor."""
    known = table[table["forest_auc"].notna()]
    name = known["noise"].map("{:g}".format).where(known["set"] == "noise", "floor")
    by_noise = known.assign(noise=name).groupby(["data", "noise"], sort=False)
    return by_noise[list(SCORES)].agg(over_seeds).rename(columns=SCORES)


def gaussian_scale(epsilon: float, delta: float) -> float:
    """Find the standard deviation of the noise of the Gaussian mechanism for a sensitivity of 1.

    References
    ----------
    Balle and Wang 2018, Improving the Gaussian Mechanism for Differential Privacy, https://arxiv.org/abs/1805.06530,
    Theorem 8
    """

    def excess(scale: float) -> float:
        below, above = 1 / (2 * scale) - epsilon * scale, -1 / (2 * scale) - epsilon * scale
        return float(norm.cdf(below) - np.exp(epsilon + log_ndtr(above)) - delta)

    return float(brentq(excess, 1e-3, 1e3))


def private_noise() -> pd.DataFrame:
    """Show the noise of differential privacy: its norm over all numbers, as a share of a donor's contribution."""
    rows = {}
    for what, n in NUMBERS.items():
        for epsilon in EPSILONS:
            norm_of_noise = gaussian_scale(epsilon, DELTA) * np.sqrt(n)
            rows[what, epsilon] = {
                f"noise with {N_DONORS} donors": f"{norm_of_noise / N_DONORS:.2g}",
                "donors for noise of 1": f"{norm_of_noise:,.0f}",
            }
    return pd.DataFrame(rows).T.rename_axis(["noise in", "epsilon"])


def frontier(table: pd.DataFrame) -> Figure:
    """Draw the area of each attack, by noise, against the fidelity of the cells: a row of panels for each data set."""
    by_data = dict(iter(table.groupby("data", sort=False)))
    figure = Figure(figsize=(10, 0.6 + 3.2 * len(by_data)), layout="constrained")
    axes = figure.subplots(len(by_data), len(IN_FIGURE), sharex="col", sharey=True, squeeze=False)
    for row, (name, of_data) in zip(axes, by_data.items(), strict=True):
        draw(row, of_data)
        row[0].set_title(name, fontsize=10, loc="left")
    for ax, score in zip(axes[-1], IN_FIGURE, strict=True):
        ax.set_xlabel(f"{SCORES[score]} (dotted: floor)")
    axes[-1][-1].set_xlim(min(0.9, float(table["f1"].min())), 1)
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def draw(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """Draw the panels of one data set."""
    mean = table[table["set"] == "noise"].groupby("noise").mean(numeric_only=True)
    floor = table.loc[table["set"] == "floor", list(SCORES)].mean()
    styles = set_styles(ATTACKS)
    for ax, score in zip(axes, IN_FIGURE, strict=True):
        for name, text in ATTACKS.items():
            style = styles[name]
            ax.plot(mean[score], mean[f"attack/{name}"], color=style.colour, marker=style.marker, label=text)
        ax.axvline(floor[score], color="black", linewidth=0.8, linestyle=":")
        ax.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
        ax.set_ylim(0.35, 1.07)
        ax.spines[["top", "right"]].set_visible(False)
    for noise, row in mean.iterrows():
        at = row["forest_auc"], row["attack/mean_shift"]
        axes[0].annotate(f"{noise:g}", at, (5, 5), textcoords="offset points", fontsize=8)
    axes[0].set_ylabel("AUC of donors (numbers: noise)")


def main(folder: Path, tables: list[Path]) -> None:
    """Write ``privacy.csv``, ``privacy.md`` and ``privacy.png`` into a folder."""
    table = read(tables)
    table.drop(columns="thirds").to_csv(folder / "privacy.csv", index=False, float_format="%.5f")
    thirds, others = table[table["thirds"]], table[~table["thirds"]]
    parts = {
        "thirds": areas(thirds[thirds["set"] == "noise"], ["data", "noise"]),
        "cells": areas(thirds[thirds["set"] == "cells"], ["data", "share"]),
        "fidelity": fidelity(thirds),
        "members": areas(others[others["set"] == "noise"], ["data", "n_donors", "noise"]),
        "private": private_noise(),
    }
    text = TEXT.format(**{name: markdown(part) for name, part in parts.items()})
    (folder / "privacy.md").write_text(text)
    save_figure(frontier(thirds), folder / "privacy.png")


if __name__ == "__main__":
    typer.run(main)
