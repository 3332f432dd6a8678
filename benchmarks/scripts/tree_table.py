"""Collect how the trees of all data sets agree with annotations."""

from pathlib import Path

import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown, over_seeds

COLUMNS = {
    "found": "groups that are clades",
    "found_random": "clades by chance",
    "found_random_most": "most by chance",
    "missing": "share of groups missing",
    "missing_random": "missing by chance",
    "contradicting": "share of clades that split a group",
    "contradicting_random": "splitting by chance",
}
GROUP_COLUMNS = {
    "found": "is a clade",
    "found_random": "clade by chance",
    "nearness": "nearest clade",
    "nearness_random": "nearest by chance",
}


def collected(paths: list[Path]) -> pd.DataFrame:
    """Read tables of ``DATA/SEED/tree`` as one, with data set and seed, which the path holds."""
    tables = [pd.read_csv(path).assign(data=path.parts[-4], seed=int(path.parts[-3])) for path in paths]
    table = pd.concat(tables, ignore_index=True)
    first = ["data", "seed"]
    return table[[*first, *table.columns.drop(first)]]


def report(overall: pd.DataFrame, groups: pd.DataFrame) -> str:
    """Write both tables as one Markdown text."""
    by_data = overall.rename(columns={"n_types": "types", "n_groups": "groups"})
    by_data = by_data.groupby(["data", "types", "groups"], sort=False)[list(COLUMNS)].agg(over_seeds)
    rows = ["data", "label", "group", "types"]
    groups = groups.astype({"found": float}).rename(columns={"n_types": "types"})
    by_group = groups.groupby(rows, sort=False)[list(GROUP_COLUMNS)].agg(over_seeds)
    parts = [
        "# Trees and annotations",
        f"Chance is the mean over random trees. Numbers are the {OVER_SEEDS}",
        markdown(by_data.rename(columns=COLUMNS)),
        "## Groups",
        "Nearest clade is the share of types that it and the group have in common, of those in either.",
        markdown(by_group.rename(columns=GROUP_COLUMNS)),
    ]
    return "\n\n".join(parts) + "\n"


def main(out: Path, overall: list[Path]) -> None:
    """Write ``tree.csv``, ``tree_groups.csv`` and ``tree.md``."""
    by_data, by_group = collected(overall), collected([path.with_name("groups.csv") for path in overall])
    by_data.to_csv(out / "tree.csv", index=False, float_format="%.6g")
    by_group.to_csv(out / "tree_groups.csv", index=False, float_format="%.6g")
    (out / "tree.md").write_text(report(by_data, by_group), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
