"""Collect what many cell types cost, and how good trees and cells are, by number of types."""

from pathlib import Path

import pandas as pd
import typer
from as_text import markdown
from PIL import Image

from bdm.hierarchy.comparison import TreeComparison
from bdm.hierarchy.files import load_hierarchy, read_tree

STEPS = ("prepare", "autoencoder", "hierarchy", "train", "generate", "evaluate", "interpret")
SCORES = ("energy", "forest_auc", "gene_auc", "f1", "fold_change_correlation")


def costs(run: Path, steps: tuple[str, ...] = STEPS) -> pd.DataFrame:
    """Seconds, seconds of the processor and peak memory (MB) by step, as Snakemake has measured them."""
    rows = {step: pd.read_csv(run / f"times/{step}.tsv", sep="\t").iloc[0] for step in steps}
    table = pd.DataFrame(rows).T[["s", "cpu_time", "max_rss"]].astype(float)
    return table.set_axis(["seconds", "processor", "megabytes"], axis=1)


def megabytes(path: Path) -> float:
    """Size of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def facts(run: Path) -> dict[str, float]:
    """Distance of the tree from the truth, scores of the cells, and sizes of the files."""
    hierarchy = load_hierarchy(run / "hierarchy.json")
    trees = TreeComparison.from_trees(hierarchy, read_tree(run / "truth.json"))
    overall = pd.read_csv(run / "evaluation/overall.csv", index_col="metric")
    figures = [run / "hierarchy.png", *run.glob("evaluation/*.png"), *run.glob("interpretation/*.png")]
    return {
        "types": len(hierarchy.cell_types),
        "clades": len(trees.reference),
        "clades found": len(trees.found),
        "Robinson-Foulds distance": trees.robinson_foulds,
        **{f"{score}, {name}": overall.loc[score, name] for score in SCORES for name in ("branched", "floor")},
        "model, MB": megabytes(run / "model"),
        "page of the tree, MB": megabytes(run / "hierarchy.html"),
        "figures, MB": sum(map(megabytes, figures)),
        "tallest figure, pixels": max(Image.open(figure).height for figure in figures),
        "tables, MB": sum(megabytes(path) for path in run.rglob("*.csv")),
    }


def by_step(runs: list[Path], column: str) -> pd.DataFrame:
    """Table of steps x runs."""
    return pd.DataFrame({run.name: costs(run)[column].map("{:,.0f}".format) for run in runs}).rename_axis("step")


def report(runs: list[Path], table: pd.DataFrame) -> str:
    """Write all as one Markdown text."""
    parts = ["# Many cell types"]
    titles = {"seconds": "Seconds", "processor": "Seconds of the processor", "megabytes": "Peak memory, MB"}
    for column, title in titles.items():
        parts += [f"## {title}", markdown(by_step(runs, column))]
    parts += ["## Trees, cells and files", markdown(table.T.map("{:.4g}".format).rename_axis("of"))]
    return "\n\n".join(parts) + "\n"


def main(table: Path, text: Path, runs: list[Path]) -> None:
    """Write ``many.csv``, a row for each run, and ``many.md``."""
    facts_of_runs = pd.DataFrame({run.name: facts(run) for run in runs}).T.rename_axis("run")
    cost = pd.DataFrame({run.name: costs(run).stack() for run in runs}).T
    cost.columns = [", ".join(column) for column in cost.columns]
    facts_of_runs.join(cost).to_csv(table, float_format="%.6g")
    text.write_text(report(runs, facts_of_runs), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
