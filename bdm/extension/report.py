from pathlib import Path

import pandas as pd

from bdm.extension.extend import Extended


def write_report(folder: Path, extensions: list[Extended]) -> None:
    """Write ``extensions.csv`` into a model's folder: a row for each type that was added now."""
    pd.DataFrame([row(extension) for extension in extensions]).to_csv(
        folder / "extensions.csv", index=False, float_format="%.6g"
    )


def row(found: Extended) -> dict[str, float | str | int]:
    """Tell where a new type came into the tree, and how well the model expresses it.

    Log likelihoods are bounds of them, means over held-out cells.
    """
    place = found.extension.place
    return {
        "cell_type": found.extension.cell_type,
        "n_cells": int(found.extension.composition.sum()),
        "leaves": place.branch,
        "level": place.level,
        "support": found.extension.support,
        "nearest": found.distance.index[0],
        "distance": float(found.distance.iloc[0]),
        "log_likelihood_before": float(found.adapted.before.mean()),
        "log_likelihood_after": float(found.adapted.after.mean()),
    }


def summary(found: Extended) -> str:
    """Tell the same in words."""
    told = row(found)
    gain = told["log_likelihood_after"] - told["log_likelihood_before"]
    return (
        f"{told['cell_type']} ({told['n_cells']} cells) leaves branch {told['leaves']} at noise level "
        f"{told['level']:.2f} (support {told['support']:.0%}). The nearest type is {told['nearest']}, "
        f"{told['distance']:.1f} within-type standard deviations away. Its own decoder raises the log likelihood of a "
        f"held-out cell by {gain:.1f}, from {told['log_likelihood_before']:.1f}."
    )
