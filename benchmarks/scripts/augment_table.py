"""Collect what augmentation did in all runs."""

from pathlib import Path

import pandas as pd
import typer
from as_text import OVER_SEEDS, RARE, markdown, over_seeds


def with_run(path: Path) -> pd.DataFrame:
    """Read ``DATA/SEED/augment.csv``, with data set and seed."""
    *_, data, seed, _ = path.parts
    table = pd.read_csv(path)
    table.insert(0, "data", data)
    table.insert(1, "seed", int(seed))
    return table


def overview(scores: pd.DataFrame) -> pd.DataFrame:
    """Types x strategies, for the eye."""
    rows = ["data", "cell_type", "n_train", "n_test", "strategy"]
    return scores.groupby(rows, sort=False)["f1"].agg(over_seeds).unstack(fill_value="")


def main(out: Path, text: Path, runs: list[Path]) -> None:
    """Write all scores, and their overview as Markdown."""
    scores = pd.concat([with_run(path) for path in runs])
    scores.to_csv(out, index=False)
    parts = [
        "# Recognising rare types",
        f"F1 of types of fewer than {RARE} training cells, on held-out cells. Numbers are the {OVER_SEEDS}",
    ]
    for classifier, of_classifier in scores.groupby("classifier", sort=False):
        parts += [f"## {classifier.capitalize()}", markdown(overview(of_classifier))]
    text.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
