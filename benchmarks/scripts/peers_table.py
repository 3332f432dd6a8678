"""Compare methods: a table of each score, data sets x methods, and a figure of all properties."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from table import KEYS, SCORES, by_data, with_earlier, with_run

from bdm.evaluation.cells import FLOOR
from bdm.evaluation.properties.catalogue import ALL, PROPERTIES
from bdm.evaluation.verdict import LIMITS, Grade
from bdm.plotting.style import save_figure

EXCESS = "excess"
FARTHEST = 0.2  # beyond the floor, from where the colour is the same
FAR, MISSING = "YlOrRd", "0.9"
GRADED = {score: LIMITS.by_score[score] for score in ("forest_auc", "gene_auc")}


def properties_of_run(path: Path) -> pd.DataFrame:
    """Read the properties of all cells of one run: data, method, seed, property, value and floor.

    Parameters
    ----------
    path
        ``DATA/SEED/evaluation/properties.csv``, by ``bdm evaluate``.
    """
    table = pd.read_csv(path)
    of_all = table[(table["by"] == ALL) & (table["set"] != FLOOR)].rename(columns={"set": "method"})
    return with_run(of_all, path)[[*KEYS, "property", "value", "floor"]]


def excesses(properties: pd.DataFrame) -> pd.DataFrame:
    """Give the mean over seeds of the distance beyond the floor: rows of data, method and property."""
    beyond = properties.assign(**{EXCESS: properties["value"] - properties["floor"]})
    return beyond.groupby(["data", "method", "property"], sort=False)[EXCESS].mean().reset_index()


def grades(scores: pd.DataFrame) -> pd.DataFrame:
    """Count runs by the worse grade of forest and gene AUC, data sets x methods.

    As ``SAME/NEAR/DIFFERS``: cells that cannot be distinguished from real ones, are nearly like them, and differ, by
    the limits without allowance for chance.
    """
    runs = scores.pivot_table(index=KEYS, columns="score", values="value").reset_index()
    floors = runs[runs["method"] == FLOOR].set_index(["data", "seed"])
    counts: dict[tuple[str, str], list[int]] = {}
    for run in runs[runs["method"] != FLOOR].to_dict("records"):
        floor = floors.loc[(run["data"], run["seed"])]
        count = counts.setdefault((run["data"], run["method"]), [0, 0, 0])
        worst = max(
            Grade.of(limit.excess(run[score], floor[score]), same=limit.same, near=limit.near)
            for score, limit in GRADED.items()
        )
        count[worst] += 1
    return pd.Series({key: "/".join(map(str, of)) for key, of in counts.items()}).unstack(fill_value="")


def closeness(properties: pd.DataFrame, beside: list[str]) -> pd.DataFrame:
    """Tabulate the mean distance of properties beyond the floor, data sets x methods.

    In brackets is the number of properties in which a method is the closest; those ``beside`` are not ranked.
    """
    found = excesses(properties)
    ranked = found[~found["method"].isin(beside)]
    best = ranked.loc[ranked.groupby(["data", "property"])[EXCESS].idxmin()].groupby(["data", "method"]).size()
    means = found.groupby(["data", "method"], sort=False)[EXCESS].mean()
    shown = {key: f"{mean:.3f}" + ("" if key[1] in beside else f" ({best.get(key, 0)})") for key, mean in means.items()}
    return pd.Series(shown).unstack(fill_value="").reindex(found["data"].unique())


def report(scores: pd.DataFrame, properties: pd.DataFrame, methods: list[str], beside: list[str]) -> str:
    """Write a table of each score as Markdown, and of grades and properties, with the methods in their order."""
    of_methods = scores[scores["method"].isin([FLOOR, *methods])]
    tables = {name: by_data(of_methods, score) for score, name in SCORES.items()}
    tables["runs by grade"] = grades(of_methods).reindex(of_methods["data"].unique())
    tables["distance of properties"] = closeness(properties[properties["method"].isin(methods)], beside)
    parts = ["# Methods", f"The floor is real training cells. Numbers are the {OVER_SEEDS}"]
    for name, table in tables.items():
        if len(table):
            columns = [method for method in (FLOOR, *methods) if method in table]
            parts += [f"## {name}", markdown(table[columns].rename_axis("data"))]
    return "\n\n".join(parts) + "\n"


def figure(properties: pd.DataFrame, methods: list[str]) -> Figure:
    """Draw a panel for each data set: properties x methods, coloured by the distance beyond the floor."""
    found = excesses(properties)
    names, rows = found["data"].unique(), [key for key in PROPERTIES if key in set(found["property"])]
    columns = [name for name in methods if name in set(found["method"])]
    drawn = Figure(figsize=(3 + 0.28 * len(columns) * len(names), 2 + 0.2 * len(rows)), layout="constrained")
    axes = drawn.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        of_data = found[found["data"] == name].pivot(index="property", columns="method", values=EXCESS)
        draw_panel(axis, of_data.reindex(index=rows, columns=columns))
        axis.set_title(name, fontsize=8)
    kinds = pd.Series([PROPERTIES[key].kind for key in rows])
    for axis in axes:
        axis.hlines(np.flatnonzero(kinds != kinds.shift())[1:] - 0.5, *axis.get_xlim(), color="black", linewidth=0.8)
    axes[0].set_yticks(range(len(rows)), [PROPERTIES[key].name for key in rows], fontsize=7)
    scale = ScalarMappable(Normalize(0, FARTHEST), FAR)
    bar = drawn.colorbar(scale, ax=axes, extend="max", aspect=40, pad=0.01)
    bar.set_label("distance to test cells beyond the floor's", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return drawn


def draw_panel(axis: Axes, table: pd.DataFrame) -> None:
    """Draw the distances of one data set, grey where there are none."""
    axis.set_facecolor(MISSING)
    axis.imshow(np.ma.masked_invalid(table.to_numpy()), cmap=FAR, vmin=0, vmax=FARTHEST, aspect="auto")
    axis.set_xticks(range(table.shape[1]), table.columns, rotation=90, fontsize=7)
    axis.tick_params(length=0)


def main(
    out: Path,
    table: Path,
    properties: list[Path],
    *,
    method: Annotated[list[str], typer.Option(help="A method to show; one option each, in their order.")],
    beside: Annotated[list[str], typer.Option(help="A shown method that is not ranked, such as copies.")] = [],  # noqa: B006
    earlier: Annotated[Path | None, typer.Option(help="properties.csv of other runs, to be shown as well.")] = None,
) -> None:
    """Write ``peers.md``, ``properties.csv`` and ``properties.png``, of the scores in a ``table.csv``."""
    runs = with_earlier(pd.concat([properties_of_run(path) for path in properties]), earlier)
    (out / "peers.md").write_text(report(pd.read_csv(table), runs, method, beside), encoding="utf-8")
    runs.to_csv(out / "properties.csv", index=False, float_format="%.6g")
    save_figure(figure(runs, method), out / "properties.png")


if __name__ == "__main__":
    typer.run(main)
