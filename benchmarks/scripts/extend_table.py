"""Collect the scores of cell types that were added later, and of the types known before."""

from pathlib import Path

import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown, over_seeds
from extend_figures import in_turn_figure, one_figure
from extend_strategies import ALONE, BEFORE, EVERYTHING, EXTENSION, FLAT_BEFORE

from bdm.evaluation.cells import FLOOR
from bdm.plotting.style import save_figure

JOINT = "joint"
SETS = [FLOOR, JOINT, EXTENSION, ALONE, EVERYTHING]
STARTS = {EXTENSION: BEFORE, ALONE: FLAT_BEFORE, EVERYTHING: FLAT_BEFORE}
RUN, TYPE = ["data", "seed", "added"], ["data", "seed", "cell_type"]
COLUMNS = {
    "energy floor": "energy: floor",
    "energy joint": "joint",
    "energy": "this",
    "forest_auc floor": "AUC: floor",
    "forest_auc joint": "joint",
    "forest_auc": "this",
    "before": "old types: before",
    "after": "after",
    "seconds": "seconds",
    "faster": "times faster than anew",
}


def collected(paths: list[Path]) -> pd.DataFrame:
    """Read ``DATA/SEED/extend/reference.csv``, ``in_turn.csv`` and ``one/NUMBER.csv``, by run."""
    tables = []
    for path in paths:
        data, seed, _, task = path.with_suffix("").parts[path.parts.index("extend") - 2 :][:4]
        tables.append(pd.read_csv(path).assign(task=task, data=data, seed=int(seed)))
    table = pd.concat(tables, ignore_index=True)
    first = ["task", "data", "seed", "step", "added", "set"]
    return table[[*first, *table.columns.drop(first)]]


def scores_of_left_out_types(table: pd.DataFrame) -> pd.DataFrame:
    """Table of each type that was left out and each strategy: its scores, the scores of the other types, and the time.

    Returns
    -------
    Table with the scores of the type and of its floor and joint training, the mean energy of the other types
    ``before`` and ``after``, and ``seconds``, ``faster`` times less than training a new model.
    """
    one = table[table["task"] == "one"]
    new = one[one["cell_type"] == one["added"]]
    reference = table[table["task"] == "reference"].pivot(index=TYPE, columns="set", values=["energy", "forest_auc"])
    reference.columns = [" ".join(names) for names in reference.columns]
    of_others = one[one["cell_type"] != one["added"]].groupby([*RUN, "set"])["energy"].mean().unstack("set")
    seconds = one.groupby([*RUN, "set"])["seconds"].first().unstack("set")
    rows = new.merge(reference.reset_index(), on=TYPE).set_index(RUN)
    starts = rows["set"].map(STARTS)
    return rows.assign(
        before=[of_others.at[run, start] for run, start in starts.items()],
        after=[of_others.at[run, way] for run, way in rows["set"].items()],
        faster=[seconds.at[run, BEFORE] / seconds.at[run, way] for run, way in rows["set"].items()],
    ).reset_index()


def overview(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over the types that were left out (median times), then over seeds."""
    by_seed = runs.groupby(["set", "seed"], sort=False)
    means = by_seed[list(COLUMNS)].mean()
    means[["seconds", "faster"]] = by_seed[["seconds", "faster"]].median()
    table = means.groupby("set", sort=False).agg(over_seeds)
    table.insert(0, "types", by_seed.size().groupby("set").first())
    return table.rename(columns=COLUMNS)


def difference_from_joint(scores: pd.DataFrame) -> str:
    """Describe how an extension's energy distances differ from joint training's, type by type."""
    energy = scores.pivot(index=["seed", "cell_type"], columns="set", values="energy")
    difference = energy[EXTENSION] - energy[JOINT]
    return (
        f"Energy of extensions less that of joint training: {difference.mean():.2f} ± {difference.sem():.2f} (mean and "
        f"its standard error over types), median {difference.median():.2f}; ratio of the means "
        f"{energy[EXTENSION].mean() / energy[JOINT].mean():.2f}; no more than joint training's at "
        f"{(difference <= 0).sum()} of {len(difference)}."
    )


def by_type(scores: pd.DataFrame, score: str) -> pd.DataFrame:
    """Types x sets, types of most test cells first."""
    table = scores.groupby(["cell_type", "n_test", "set"])[score].agg(over_seeds).unstack("set")
    table = table[[name for name in SETS if name in table]].fillna("")
    return table.sort_index(level="n_test", ascending=False, sort_remaining=False)


def over_types(scores: pd.DataFrame, added: pd.Series) -> pd.DataFrame:
    """Average over the types that were added, and over those before any, then over seeds; sets x scores."""
    group = scores["cell_type"].isin(added).map({True: "added types: ", False: "first types: "})
    means = scores.groupby(["set", "seed", group])[["energy", "forest_auc"]].mean().unstack("cell_type")
    means.columns = [group + score for score, group in means.columns]
    table = means.groupby("set").agg(over_seeds)
    return table.loc[[name for name in SETS if name in table.index], sorted(table.columns)]


def section(data: str, table: pd.DataFrame) -> list[str]:
    """Sections on one data set."""
    runs, in_turn = scores_of_left_out_types(table), table[table["task"] == "in_turn"]
    reference = table[(table["task"] == "reference") & table["cell_type"].isin(runs["added"])]
    one = pd.concat([reference, table[(table["task"] == "one") & (table["cell_type"] == table["added"])]])
    last = in_turn[in_turn["step"] == in_turn["step"].max()]
    return [
        f"## {data}: each type left out in turn",
        markdown(overview(runs)),
        difference_from_joint(one),
        "Energy distance:",
        markdown(by_type(one, "energy")),
        "Forest AUC:",
        markdown(by_type(one, "forest_auc")),
        f"## {data}: one after the other",
        f"After {last['step'].max():.0f} additions to a model of the largest types, means over types:",
        markdown(over_types(last, in_turn["added"])),
        difference_from_joint(last[last["cell_type"].isin(in_turn["added"])]),
        "Energy distance:",
        markdown(by_type(last, "energy")),
    ]


def main(folder: Path, runs: list[Path]) -> None:
    """Write all scores, their overview as Markdown, and both figures."""
    table = collected(runs)
    table.to_csv(folder / "extend.csv", index=False)
    parts = ["# Cell types added to a trained model", f"Numbers are the {OVER_SEEDS}"]
    for data, of_data in table.groupby("data", sort=False):
        parts += section(data, of_data)
    (folder / "extend.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    save_figure(one_figure(scores_of_left_out_types(table)), folder / "extend_one.png")
    save_figure(in_turn_figure(table[table["task"] == "in_turn"]), folder / "extend_in_turn.png")


if __name__ == "__main__":
    typer.run(main)
