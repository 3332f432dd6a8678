"""Compare the closed form with the network by number of simulated cells: losses of validation cells, and scores."""

from pathlib import Path

import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown
from table import by_data, chosen_scores, with_run

from bdm.hierarchy.files import load_hierarchy

SCORES = {"forest_auc": "Forest AUC", "energy": "Energy distance"}
BRANCHED, EVERYWHERE = "branched", "everywhere"  # models whose branches are counted


def losses_of_run(overall: Path) -> pd.DataFrame:
    """Count the branches on which validation cells gain, and compare their mean losses over all branches, as text."""
    run = overall.parents[1]
    by_model = {name: pd.read_csv(run / f"models/{name}/branches.csv") for name in (BRANCHED, EVERYWHERE)}
    row = {"populations": str(len(load_hierarchy(run / f"hierarchies/{BRANCHED}.json").populations))}
    for name, branches in by_model.items():
        row[f"kept by {name}"] = f"{branches['kept'].sum()} of {(branches['n_cells'] > 0).sum()} branches"
    branches = by_model[EVERYWHERE].dropna(subset="gain")
    for form in ("closed_form", "network"):
        loss = (branches[form] * branches["n_cells"]).sum() / branches["n_cells"].sum()
        row[f"loss, {form.replace('_', ' ')}"] = f"{loss:.4f}"
    return with_run(pd.DataFrame([row]), overall)


def report(scores: pd.DataFrame, losses: pd.DataFrame) -> str:
    """Write all tables as one Markdown text."""
    parts = [
        "# What the network adds, by number of cells",
        f"The floor is real training cells, scored as if they had been generated. Numbers are the {OVER_SEEDS}",
        markdown(losses.set_index(["data", "seed"])),
    ]
    for score, name in SCORES.items():
        parts += [f"## {name}", markdown(by_data(scores, score))]
    return "\n\n".join(parts) + "\n"


def main(out: Path, text: Path, overall: list[Path]) -> None:
    """Write all scores, and their overview as Markdown."""
    scores = pd.concat([chosen_scores(path, list(SCORES)) for path in overall])
    scores.to_csv(out, index=False, float_format="%.6g")
    losses = pd.concat([losses_of_run(path) for path in overall])
    text.write_text(report(scores, losses), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
