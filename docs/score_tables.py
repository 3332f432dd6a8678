"""Tables of the benchmark in Markdown, from the scores by seed in ``_static``, for ``benchmark_tables.md``."""

from pathlib import Path

import pandas as pd

from bdm.evaluation.scores import SCORE_TITLES

STATIC = Path(__file__).parent / "_static"
METHODS = {
    "floor": "floor",
    "branched": "bdm",
    "branched-labels": "bdm, no sub-populations",
    "gaussian": "one normal a label",
    "diffusion": "diffusion",
    "flow": "flow",
    "scvi-mixture": "mixture in scVI",
    "scvi-flow": "flow in scVI",
    "scvi": "scVI",
    "scanvi": "scANVI",
    "scdesigner": "scDesigner",
    "scdesigner-library": "scDesigner, library size",
    "negative-binomial": "independent genes",
    "resampled": "copies",
    "thinned": "thinned copies",
}
SCORES = {
    "energy": SCORE_TITLES["energy"],
    "energy_frequent": "Energy distance of types with 50 test cells or more, weighted by test cells",
    **{score: SCORE_TITLES[score] for score in ("forest_auc", "gene_auc", "slope")},
    "slope_by_type": "Slope by type",
    "fold_change_correlation": SCORE_TITLES["fold_change_correlation"],
    "gene_correlation": SCORE_TITLES["gene_correlation"],
    "f1_ratio": "F1 ratio",
    "memorisation": SCORE_TITLES["memorisation"],
    "training_cpu_seconds": "Training, processor seconds",
    "generation_cpu_seconds": "Generation, processor seconds",
    "memory_mb": "Peak memory, MB",
}
WHOLE = ("training_cpu_seconds", "memory_mb")  # shown without decimals


def text_of_scores(name: str) -> str:
    """Return a table of each score of ``_static/NAME.csv``, data sets x methods: means over seeds, and their range."""
    scores = pd.read_csv(STATIC / f"{name}.csv")
    parts = [
        f"### {title}\n\n{table(scores[scores['score'] == score], 0 if score in WHOLE else 2)}"
        for score, title in SCORES.items()
        if (scores["score"] == score).any()
    ]
    return "\n\n".join(parts)


def text_of_properties() -> str:
    """Return the mean distance of properties to test cells beyond the distance of the floor, data sets x methods."""
    found = pd.read_csv(STATIC / "benchmark_properties.csv")
    beyond = found.assign(value=found["value"] - found["floor"])
    return table(beyond.groupby(["data", "method", "seed"], sort=False)["value"].mean().reset_index(), 3)


def table(values: pd.DataFrame, decimals: int) -> str:
    """Return the means of ``value`` over seeds, and their range, as Markdown: a row a data set, a column a method."""
    found = values.groupby(["data", "method"], sort=False)["value"].agg(["mean", "min", "max", "count"])
    columns = [method for method in METHODS if method in found.index.get_level_values("method")]
    lines = [["data", *(METHODS[method] for method in columns)], ["---"] * (len(columns) + 1)]
    for data in values["data"].unique():
        of_data = found.loc[data]
        lines.append([data, *(shown(of_data.loc[name], decimals) if name in of_data.index else "" for name in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(of_seeds: pd.Series, decimals: int) -> str:
    """Return a mean, with the smallest and the largest value in brackets if there are several."""
    rounded = of_seeds.round(decimals) + 0.0  # not -0.00
    mean, low, high = (f"{rounded[key]:.{decimals}f}" for key in ("mean", "min", "max"))
    if of_seeds["count"] == 1:
        return mean
    return f"{mean} ({low} to {high})".replace(" ", "\N{NO-BREAK SPACE}")  # on one line of a wide table
