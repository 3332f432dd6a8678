"""Markdown tables for ``benchmark_tables.md``, from the scores by seed in ``_static``."""

from pathlib import Path

import pandas as pd

from bdm.evaluation.scores import SCORE_TITLES

STATIC = Path(__file__).parent / "_static"
METHODS = {
    "floor": "floor",
    "self-fit": "self-fit",
    "posterior samples": "posterior samples",
    "generated": "generated",
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
    "pooled_energy": "Energy distance of all cells",
    "variance": "Variance of expressed genes within types, relative to training cells",
    "outlying": SCORE_TITLES["outlying_counts"],
    "relative_slope": "Slope of gene-gene correlations within types, relative to training cells",
    "training_cpu_seconds": "Training, processor seconds",
    "generation_cpu_seconds": "Generation, processor seconds",
    "memory_mb": "Peak memory, MB",
}
WHOLE = ("training_cpu_seconds", "memory_mb")  # without decimals


def text_of_scores(name: str) -> str:
    """Return a table of each score in ``_static/NAME.csv``, data sets x methods."""
    scores = pd.read_csv(STATIC / f"{name}.csv")
    parts = [
        f"### {title}\n\n{table(scores[scores['score'] == score], 0 if score in WHOLE else 2)}"
        for score, title in SCORES.items()
        if (scores["score"] == score).any()
    ]
    return "\n\n".join(parts)


def text_of_properties() -> str:
    """Return mean property distances beyond the floor, data sets x methods."""
    properties = pd.read_csv(STATIC / "benchmark_properties.csv")
    beyond = properties.assign(value=properties["value"] - properties["floor"])
    return table(beyond.groupby(["data", "method", "seed"], sort=False)["value"].mean().reset_index(), 3)


def text_of_self_fit() -> str:
    """Return mean forest and gene AUCs of the self-fit, data sets x methods."""
    scores = pd.read_csv(STATIC / "benchmark_self_fit.csv").query("method != 'flow'")  # shown in priors.md
    means = scores.pivot_table("value", "data", ["score", "method"], sort=False)[["forest_auc", "gene_auc"]]
    titles = [f"{SCORE_TITLES[score]}, {method}" for score, method in means]
    lines = [["data", *titles], ["---"] * (len(titles) + 1)]
    lines += [[data, *map("{:.2f}".format, values)] for data, values in zip(means.index, means.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(values: pd.DataFrame, decimals: int) -> str:
    """Format means and ranges over seeds in Markdown, data sets x methods."""
    summary = values.groupby(["data", "method"], sort=False)["value"].agg(["mean", "min", "max", "count"])
    columns = [method for method in METHODS if method in summary.index.get_level_values("method")]
    lines = [["data", *(METHODS[method] for method in columns)], ["---"] * (len(columns) + 1)]
    for data in values["data"].unique():
        by_method = summary.loc[data]
        lines.append(
            [data, *(shown(by_method.loc[name], decimals) if name in by_method.index else "" for name in columns)]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(summary: pd.Series, decimals: int) -> str:
    """Format a mean, with the range of several seeds in brackets."""
    rounded = summary.round(decimals) + 0.0  # not -0.00
    mean, low, high = (f"{rounded[key]:.{decimals}f}" for key in ("mean", "min", "max"))
    if summary["count"] == 1:
        return mean
    return f"{mean} ({low} to {high})".replace(" ", "\N{NO-BREAK SPACE}")  # on one line of a wide table
