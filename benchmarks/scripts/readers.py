"""Read rows of scores from the folder of a run, ``DATA/SEED``."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from property_distances import ALL
from simulated import many_types
from sklearn.metrics import adjusted_rand_score
from synthetic_cells import sample_truth
from tidy import LABEL, RARE, tidy
from tree_comparison import TreeComparison
from verdicts import REAL

from bdm.applications.audit.attacks import GENERATED as ATTACKED
from bdm.applications.audit.audit import TABLES
from bdm.data.cells import FLOOR
from bdm.evaluation.table import SCORES, TYPE, wide
from bdm.evaluation.verdict import Grade, grade
from bdm.hierarchy.files import load_hierarchy

MIN_TEST, FREQUENT = 5, 50  # minimum numbers of test cells for slope and energy distance
METHODS = {"generated": "branched"}  # methods by name of their set


def study(run: Path, *, name: str) -> pd.DataFrame:
    """Read the rows of a study."""
    return pd.read_csv(run / f"{name}.csv")


# ---- comparisons by `bdm evaluate`


def wide_scores(run: Path, comparison: str, kind: str, *index: str) -> pd.DataFrame:
    """Read the scores of groups of a kind, ``index`` x methods with the floor first."""
    table = pd.read_csv(run / comparison / "scores.csv")
    return wide(table[table["kind"] == kind], *index).rename(columns=METHODS)


def by_type_table(run: Path, comparison: str) -> pd.DataFrame:
    """Read the scores by type of all methods."""
    scores = wide_scores(run, comparison, TYPE, "group", "score").rename_axis(columns="method")
    table = scores.stack().unstack("score").rename_axis(["cell_type", "method"]).rename_axis(columns=None)
    numbers = pd.read_csv(run / comparison / "n_cells.csv", index_col="cell_type")[["test", "train"]].add_prefix("n_")
    return table.reset_index().join(numbers, on="cell_type")


def scores_by_type(run: Path, *, comparison: str) -> pd.DataFrame:
    """Read scores by type, a row for each method, type and score."""
    return tidy(by_type_table(run, comparison), ["method", "cell_type", "n_train", "n_test"])


def scores(run: Path, *, comparison: str, steps: Mapping[str, list[str]]) -> pd.DataFrame:
    """Read scores of all methods, with means over types and costs.

    ``steps`` are training steps by method.
    """
    table = wide_scores(run, comparison, "all", "score")
    table.loc["f1_ratio"] = table.loc["f1"] / table.loc["f1", FLOOR]
    by_type = by_type_table(run, comparison)
    enough, frequent = (by_type[by_type["n_test"] >= fewest] for fewest in (MIN_TEST, FREQUENT))
    table.loc["slope_by_type"] = enough.groupby("method")["slope"].mean()
    weighted = frequent["energy"] * frequent["n_test"]
    weights = frequent.groupby("method")["n_test"].sum()
    table.loc["energy_frequent"] = weighted.groupby(frequent["method"]).sum() / weights
    methods = [method for method in table.columns.drop(FLOOR) if method in steps]
    costs = pd.DataFrame({method: cost(run / "times", method, steps[method]) for method in methods})
    rows = pd.concat([table, costs]).rename_axis("score").reset_index()
    return rows.melt(id_vars="score", var_name="method").dropna(subset="value")[["method", "score", "value"]]


def scores_of_groups(run: Path, *, comparison: str, kind: str) -> pd.DataFrame:
    """Read the scores of each group of a kind, such as a modality or a batch."""
    table = wide_scores(run, comparison, kind, "group", "score").rename_axis([kind, "score"])
    return table.reset_index().melt([kind, "score"], var_name="method").dropna(subset="value")


def predicted_proteins(run: Path) -> pd.DataFrame:
    """Read scores of predicted proteins, and processor seconds of all their steps."""
    bdm_steps = [f"{step}-branched" for step in ("autoencoder", "hierarchy", "train", "predict")]
    steps = {"branched": bdm_steps, "scvi-modalities": ["predict-scvi-modalities"]}
    spent = {name: sum(measured(run / "times", step)["cpu_time"] for step in names) for name, names in steps.items()}
    costs = pd.DataFrame({"method": spent.keys(), "score": "processor seconds", "value": spent.values()})
    return pd.concat([study(run, name="proteins"), costs])


def measured(times: Path, step: str) -> pd.Series:
    """Read seconds, processor seconds and peak memory (MB) of a step."""
    return pd.read_csv(times / f"{step}.tsv", sep="\t")[["s", "cpu_time", "max_rss"]].astype(float).mean()


def cost(times: Path, method: str, steps: list[str]) -> dict[str, float]:
    """Compute seconds, processor seconds and peak memory of a method."""
    training, generation = [measured(times, step) for step in steps], measured(times, f"generate-{method}")
    return {
        "training_seconds": sum(step["s"] for step in training),
        "training_cpu_seconds": sum(step["cpu_time"] for step in training),
        "generation_seconds": generation["s"],
        "generation_cpu_seconds": generation["cpu_time"],
        "memory_mb": max(step["max_rss"] for step in [*training, generation]),
    }


def properties(run: Path) -> pd.DataFrame:
    """Read distances to test cells by method and property, with the floor."""
    table = study(run, name="properties")
    return table.loc[table["by"] == ALL, ["method", "property", "value", "floor"]]


def network(run: Path) -> pd.DataFrame:
    """Count labels and populations, and read whether held-out cells keep the network of each model."""
    hierarchy = load_hierarchy(run / "hierarchies/branched.json")
    rows = [("branched", "labels", len(hierarchy.cell_types)), ("branched", "populations", len(hierarchy.populations))]
    for file in sorted(run.glob("models/*/decision.csv")):
        model, [decision] = file.parent.name, pd.read_csv(file).to_dict("records")
        rows += [(model, f"{score}, {model}", decision[score]) for score in ("kept", "gain", "closed_form", "network")]
    return pd.DataFrame(rows, columns=["method", "score", "value"]).astype({"value": float})


def times(run: Path, *, comparison: str) -> pd.DataFrame:
    """Read time and memory of each step of bdm."""
    steps = {
        "prepare": "prepare",
        "autoencoder": "autoencoder-branched",
        "hierarchy": "hierarchy-branched",
        "train": "train-branched",
        "generate": "generate-branched",
        "evaluate": f"evaluate-{comparison}",
        "interpret": "interpret",
    }
    finished = {step: name for step, name in steps.items() if (run / "times" / f"{name}.tsv").exists()}
    table = pd.DataFrame({step: measured(run / "times", name) for step, name in finished.items()}).T
    return tidy(table.rename_axis("step").reset_index(), ["step"])


def facts_of_many(run: Path) -> pd.DataFrame:
    """Compare the tree with the truth, and read scores and file sizes."""
    hierarchy, seed = load_hierarchy(run / "hierarchies/branched.json"), int(run.name)
    cell_types = tuple(sorted(hierarchy.cell_types))
    truth, _, _ = sample_truth(cell_types, many_types(len(cell_types), 1), seed=seed)
    trees = TreeComparison.from_trees(hierarchy, truth)
    overall = wide_scores(run, "many", "all", "score")
    shown = ("energy", "forest_auc", "gene_auc", "f1", "fold_change_correlation")
    facts = {
        "types": len(cell_types),
        "clades": len(trees.reference),
        "clades found": len(trees.found),
        "Robinson-Foulds distance": trees.robinson_foulds,
        **{f"{score}, {name}": overall.loc[score, name] for score in shown for name in ("branched", FLOOR)},
        "model, MB": megabytes(run / "models/branched"),
        "tables, MB": sum(megabytes(path) for path in run.rglob("*.csv")),
    }
    return pd.DataFrame({"score": facts.keys(), "value": map(float, facts.values())})


def megabytes(path: Path) -> float:
    """Return the size of a file or folder in megabytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


# ---- studies with computed scores


def agreement_of_populations(run: Path) -> pd.DataFrame:
    """Count groups by method, and compute Rand indices with labels and later seeds."""

    def read(folder: Path) -> pd.DataFrame:
        return pd.read_csv(folder / "populations.csv", index_col="cell", dtype=str, keep_default_na=False)

    groups = read(run)
    labels = [column for column in groups if column.startswith(LABEL)]
    folders = [path.parent for path in run.parent.glob("*/populations.csv") if int(path.parent.name) > int(run.name)]
    later, rows = [read(folder) for folder in folders], []
    for method in groups.columns.drop(labels):
        rows.append((method, "groups", groups[method].nunique()))
        for label in labels:
            rows.append((method, label.removeprefix(LABEL), adjusted_rand_score(groups[label], groups[method])))
        for table in later:
            cells = groups.index.intersection(table.index)
            index = adjusted_rand_score(groups.loc[cells, method], table.loc[cells, method])
            rows.append((method, "agreement of seeds", index))
    return pd.DataFrame(rows, columns=["method", "score", "value"])


def attacks(run: Path) -> pd.DataFrame:
    """Read the AUCs of all audits; copies are equal in all audits."""
    tables = []
    for audit in sorted((run / "audits").iterdir()):
        table = pd.read_csv(audit / TABLES["by_fold"])
        method = table["set"].where(table["set"] != ATTACKED, audit.name)
        tables.append(table.assign(method=method, score=table["attack"], value=table["auc"]))
    rows = pd.concat(tables)[["method", "fold", "score", "value"]]
    return rows.drop_duplicates(["method", "fold", "score"])


# ---- derived rows


def grades(rows: pd.DataFrame) -> pd.DataFrame:
    """Grade each run by the worse of forest and gene AUC.

    Limits have no allowance for chance.
    """
    runs = rows.pivot_table(index=["data", "seed", "method"], columns="score", values="value", sort=False)
    floors = runs.xs(FLOOR, level="method")
    graded = []
    for (data, seed, method), run in runs.drop(FLOOR, level="method").iterrows():
        worst = Grade.SAME
        for score in ("forest_auc", "gene_auc"):
            floor = floors.at[(data, seed), score]
            first, second = SCORES[score].limits(floor, chance=0)
            row = {"score": score, "value": run[score], "floor": floor, "n_cells": float("inf")}
            worst = max(worst, grade(row | {"first_limit": first, "second_limit": second}))
        graded.append({"data": data, "seed": seed, "method": method, "value": int(worst)})
    return pd.DataFrame(graded)


def rare(rows: pd.DataFrame) -> pd.DataFrame:
    """Select types with few training cells."""
    return rows[rows["n_train"] < RARE]


def beyond_floor(rows: pd.DataFrame) -> pd.DataFrame:
    """Subtract the distance of the floor."""
    return rows.assign(value=rows["value"] - rows["floor"])


def without_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Drop the rows of curves."""
    return rows[rows["level"].isna()]


def real_cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Select real cells."""
    return rows[rows["method"] == REAL]


def faulty_cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Select cells with known faults."""
    return rows[rows["method"] != REAL]


def scores_in_space(rows: pd.DataFrame) -> pd.DataFrame:
    """Select Moran's I of genes, and types of neighbours."""
    return rows[rows["score"].str.startswith(("moran", "neighbourhood"))]


def nearer_blocks(rows: pd.DataFrame) -> pd.DataFrame:
    """Compare the energy distance of bdm with each method in each block; 1 where bdm is nearer."""
    blocks = rows[rows["score"] == "block_energy"]
    keys = ["data", "seed", "block"]
    own = blocks[blocks["method"] == "branched"].set_index(keys)["value"]
    others = blocks[blocks["method"] != "branched"]
    distance = own.loc[pd.MultiIndex.from_frame(others[keys])].to_numpy()
    return others.assign(value=(distance < others["value"]).astype(float))


def surfaces(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the parts of models that depend on positions."""
    return rows[rows["score"].str.contains("surface|local variation|map") & ~rows["score"].str.contains("field")]


def fields(rows: pd.DataFrame) -> pd.DataFrame:
    """Select comparisons with simulated fields."""
    return rows[rows["score"].str.startswith(("deviation,", "r,", "slope,", "genes without a field"))]
