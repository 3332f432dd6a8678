"""Collect what each step costs, by number of cells."""

from pathlib import Path

import pandas as pd
import typer
from as_text import markdown
from many_table import costs
from matplotlib.figure import Figure

from bdm.plotting.style import save_figure

STEPS = ("prepare", "autoencoder", "hierarchy", "train", "generate", "evaluate")
LABELS = {"seconds": "seconds on the clock", "megabytes": "peak memory, MB"}
MARKERS = "osD^vP"


def of_runs(runs: list[Path]) -> pd.DataFrame:
    """Seconds and memory of each step of each run, with the number of cells that its name ends with."""
    parts = [costs(run, STEPS).rename_axis("step").assign(n_cells=int(run.name.rpartition("_")[2])) for run in runs]
    return pd.concat(parts).reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """Draw how time and memory of each step grow with the number of cells."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, (column, title) in zip(figure.subplots(1, 2), LABELS.items(), strict=True):
        for marker, step in zip(MARKERS, STEPS, strict=True):
            rows = table[table["step"] == step].sort_values("n_cells")
            axis.plot(rows["n_cells"], rows[column], marker=marker, label=step)
        axis.set_xscale("log")
        if column == "seconds":
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.set_xlabel("cells")
        axis.set_ylabel(title)
        axis.spines[["right", "top"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(STEPS), frameon=False)
    return figure


def main(table: Path, text: Path, figure: Path, runs: list[Path]) -> None:
    """Write ``atlas.csv``, a row for each step and number of cells, ``atlas.md`` and ``atlas.png``."""
    rows = of_runs(runs)
    rows.to_csv(table, index=False, float_format="%.6g")
    parts = ["# Cost by number of cells"]
    for column, title in LABELS.items():
        wide = rows.pivot(index="step", columns="n_cells", values=column).loc[list(STEPS)]
        text_of = wide.map("{:,.0f}".format).rename(columns="{:,} cells".format)
        parts += [f"## {title[0].upper()}{title[1:]}", markdown(text_of)]
    text.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    save_figure(draw(rows), figure)


if __name__ == "__main__":
    typer.run(main)
