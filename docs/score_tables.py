"""Markdown tables for ``benchmark_tables.md``, from the scores by seed in ``_static``."""

from pathlib import Path

import pandas as pd

from bdm.evaluation.table import SCORES as BDM_SCORES

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
    "scvi-mixture": "mixture in scVI",
    "scvi-diffusion": "diffusion in scVI",
    "scvi": "scVI",
    "scanvi": "scANVI",
    "scdesigner": "scDesigner",
    "scdesigner-library": "scDesigner, library size",
    "negative-binomial": "independent genes",
    "resampled": "copies",
    "thinned": "thinned copies",
}
SCORES = {
    "energy": BDM_SCORES["energy"].title,
    "energy_frequent": "Energy distance of types with 50 test cells or more, weighted by test cells",
    **{score: BDM_SCORES[score].title for score in ("forest_auc", "gene_auc", "slope")},
    "slope_by_type": "Slope by type",
    "fold_change_correlation": BDM_SCORES["fold_change_correlation"].title,
    "gene_correlation": BDM_SCORES["gene_correlation"].title,
    "f1_ratio": "F1 ratio",
    "memorisation": BDM_SCORES["memorisation"].title,
    "pooled_energy": "Energy distance of all cells",
    "variance": "Variance of expressed genes within types, relative to training cells",
    "outlying": BDM_SCORES["outlying_counts"].title,
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
    scores = pd.read_csv(STATIC / "benchmark_self_fit.csv").query("method != 'diffusion'")  # shown in priors.md
    means = scores.pivot_table("value", "data", ["score", "method"], sort=False)[["forest_auc", "gene_auc"]]
    titles = [f"{BDM_SCORES[score].title}, {method}" for score, method in means]
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


# ---- cells in space

SPACE_METHODS = {
    "floor": "floor",
    "branched": "bdm",
    "types from the map": "bdm, types from the map",
    "without coordinates": "bdm without coordinates",
    "types alone": "types alone",
    "same types, anywhere": "real cells of the types, from anywhere",
    "same types, nearest block": "real cells of the types, from the nearest block",
    "nearest block": "all real cells of the nearest block",
    "copies": "copies",
    "Gaussian process": "Gaussian process",
    "scdesigner": "scDesigner",
}
MORAN = {
    "moran_correlation": "r",
    "moran_slope": "slope",
    "moran_mean": "mean I",
    "moran_within_correlation": "r within types",
    "moran_within_slope": "slope within types",
    "moran_within_mean": "mean I within types",
}
REALISM = ("forest_auc", "gene_auc", "pooled_energy")


def texts_of_space() -> dict[str, str]:
    """Return the tables of ``benchmark_space.md`` by name: means over seeds, or over blocks."""
    scores = pd.read_csv(STATIC / "benchmark_space.csv")
    is_field = scores["score"].str.contains(r"^(?:r|slope|deviation), ")
    texts = {f"space_{data}": moran_table(rows) for data, rows in scores.groupby("data")}
    blocks = scores[scores["score"] == "block_energy"]
    energy = blocks.pivot_table("value", "method", "data", sort=False)
    return texts | {
        "space_blocks": as_markdown(energy.join(nearer_blocks(blocks), rsuffix=", blocks in which bdm is nearer")),
        "space_realism": as_markdown(
            scores[scores["score"].isin(REALISM)].pivot_table("value", ["data", "score"], "method", sort=False)
        ),
        "space_fields": as_markdown(scores[is_field].pivot_table("value", "score", "method", sort=False)),
    }


def moran_table(scores: pd.DataFrame) -> str:
    """Return Moran's I of one data set, methods x scores, with the mean of real cells in the last row."""
    means = scores.pivot_table("value", "method", "score", sort=False)
    shown = means.reindex(columns=list(MORAN)).dropna(axis=1, how="all").dropna(how="all")
    if "moran_mean" in shown:
        real = {name: means.at["branched", f"{name}_real"] for name in shown if name.endswith("mean")}
        shown.loc["real cells"] = pd.Series(real)
    return as_markdown(shown.rename(columns=MORAN), decimals=3)


def nearer_blocks(blocks: pd.DataFrame) -> pd.DataFrame:
    """Return the share of blocks in which bdm is nearer than each method, methods x data sets."""
    wide = blocks.pivot_table("value", ["data", "seed", "block"], "method", sort=False)
    nearer = wide.drop(columns="branched").gt(wide["branched"], axis=0)
    return nearer.groupby("data", sort=False).mean().T


def as_markdown(values: pd.DataFrame, decimals: int = 2) -> str:
    """Format values, and name methods as in the text."""
    named = values.rename(index=SPACE_METHODS | SCORES, columns=SPACE_METHODS)
    keys = [name or "cells" for name in named.index.names]
    lines = [[*keys, *named.columns], ["---"] * (len(keys) + named.shape[1])]
    for key, row in zip(named.index, named.to_numpy(), strict=True):
        names = key if isinstance(key, tuple) else (key,)
        lines.append([*names, *("" if pd.isna(value) else f"{value:.{decimals}f}" for value in row)])
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
