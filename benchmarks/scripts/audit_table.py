"""Collect what attacks find in cells of each method, between copies and chance, and how realistic the cells are."""

from pathlib import Path

import pandas as pd
import typer
from as_text import markdown, over_seeds
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.audit.results import CHANCE, COPIES, GENERATED, SUMMARY, TABLES
from bdm.audit.verdict import ATTACKS
from bdm.files import read_json
from bdm.plotting.audit import LABELS, STYLES
from bdm.plotting.style import save_figure, set_styles, shade_rows

SCORES = {
    "forest_auc": "forest AUC",
    "gene_auc": "gene AUC",
    "energy": "energy distance",
    "fold_change_correlation": "r of log fold changes",
    "f1": "F1",
    "kept_deviation": "kept deviation",
}
KEYS = ["data", "method"]
TEXT = """# Audits of other methods

Numbers are means over folds (and seeds), with the smallest and the largest value.

## AUC of donors

Copies are the training cells, and chance is cells of other donors.

{donor}

## AUC of cells

{cell}

## Verdicts

`limit` is the mean AUC that chance alone reaches with any of the attacks in 5% of audits.

{verdicts}

## Fidelity

Cells are compared with cells of donors that no model was fitted to; the floor, which is also what copies score, is real
cells of the members. `kept deviation` is the share of the deviation of the members' means from the means of all donors
that generated cells have: 1 in copies, and 0 in cells of further donors.

{fidelity}
"""


def areas(audits: list[Path]) -> pd.DataFrame:
    """Join the areas of all audits, ``DATA/SEED/audits/METHOD``: a row for each fold, method, level and attack.

    Copies and chance are the same for all methods, so they are taken from one.
    """
    tables = []
    for path in audits:
        of = pd.read_csv(path / TABLES["by_fold"])
        of = of[of["n_cells"].isna()].assign(data=path.parts[-4], seed=int(path.parts[-3]), method=path.name)
        tables.append(of.assign(method=of["method"].where(of["set"] == GENERATED, of["set"])))
    table = pd.concat(tables, ignore_index=True).drop(columns=["set", "n_cells"])
    table = table.drop_duplicates(["data", "seed", "fold", "method", "level", "attack"])
    of_none = table["method"].isin([COPIES, CHANCE])
    return pd.concat([table[~of_none], table[of_none]], ignore_index=True)


def donors_found(audits: list[Path]) -> pd.DataFrame:
    """Join the areas of donors in generated cells of all audits: a row for each fold, method and attack."""
    found = areas(audits)
    return found[(found["level"] == "donor") & ~found["method"].isin([COPIES, CHANCE])]


def scores(audits: list[Path]) -> pd.DataFrame:
    """Join the scores of all cells, ``DATA/SEED/scores/METHOD.csv``, with those of the floor, which are the same."""
    paths = [path.parents[1] / "scores" / f"{path.name}.csv" for path in audits]
    tables = [pd.read_csv(path).assign(data=path.parts[-4], seed=int(path.parts[-3])) for path in paths]
    return pd.concat(tables).drop_duplicates([*KEYS, "seed", "fold"])


def verdicts(audits: list[Path]) -> pd.DataFrame:
    """Show which attacks found members by each method."""
    rows = []
    for path in audits:
        verdict = read_json(path / SUMMARY)["verdict"]
        found = [ATTACKS[name] for name, of in verdict["attacks"].items() if of["found"]]
        key = {"data": path.parts[-4], "method": path.name, "seed": path.parts[-3]}
        rows.append(key | {"limit": f"{verdict['limit']:.2f}", "found by": ", ".join(found) or "none"})
    return pd.DataFrame(rows).set_index([*KEYS, "seed"])


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Show the mean and the range of each attack's areas, by method."""
    by_attack = table.pivot_table(index=[*KEYS, "seed", "fold"], columns="attack", values="auc", sort=False)
    by_attack = by_attack.reindex(columns=[name for name in ATTACKS if name in by_attack])
    summary = by_attack.groupby(KEYS, sort=False).agg(over_seeds)
    return summary.rename(columns=ATTACKS)


def draw(ax: Axes, table: pd.DataFrame) -> None:
    """Draw a row for each attack, with the areas by method, and their ranges over folds."""
    attacks = [name for name in ATTACKS if name in set(table["attack"])]
    by_method = table.groupby(["method", "attack"], sort=False)["auc"].agg(["mean", "min", "max"])
    methods = [name for name in table["method"].unique() if name not in (COPIES, CHANCE)]
    styles = set_styles(methods)
    shade_rows(ax, len(attacks))
    for number, name in enumerate(methods):
        of = by_method.loc[name]
        shift = (number - (len(methods) - 1) / 2) * 0.7 / len(methods)
        row = [attacks.index(attack) + shift for attack in of.index]
        style = styles[name]
        ax.hlines(row, of["min"], of["max"], color=style.colour, linewidth=1.2, alpha=0.5)
        ax.plot(of["mean"], row, linestyle="", marker=style.marker, color=style.colour, label=f"{name} (bar: folds)")
    for name in (COPIES, CHANCE):
        of = by_method.loc[name]
        ax.plot(of["mean"], [attacks.index(attack) for attack in of.index], label=LABELS[name], **STYLES[name])
    ax.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(attacks)), [ATTACKS[name] for name in attacks])
    ax.set_ylim(len(attacks) - 0.5, -0.5)
    ax.set_xlabel("AUC of members against other donors")
    ax.spines[["top", "right"]].set_visible(False)


def figure_of(table: pd.DataFrame) -> Figure:
    """Draw a panel for each data set."""
    by_data = dict(iter(table.groupby("data", sort=False)))
    figure = Figure(figsize=(1.9 + 4.6 * len(by_data), 4.2), layout="constrained")
    axes = figure.subplots(1, len(by_data), squeeze=False, sharey=True)[0]
    for ax, (name, of_data) in zip(axes, by_data.items(), strict=True):
        draw(ax, of_data)
        ax.set_title(name, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def main(folder: Path, audits: list[Path]) -> None:
    """Write ``audit.csv``, ``audit.md`` and ``audit.png`` into a folder."""
    found, of_cells = areas(audits), scores(audits)
    wide = found.assign(measure=found["level"] + "/" + found["attack"])
    wide = wide.pivot_table(index=[*KEYS, "seed", "fold"], columns="measure", values="auc", sort=False).reset_index()
    whole = wide.merge(of_cells, on=[*KEYS, "seed", "fold"], how="outer")
    whole.to_csv(folder / "audit.csv", index=False, float_format="%.5f")
    fidelity = of_cells.groupby(KEYS, sort=False)[list(SCORES)].agg(over_seeds).rename(columns=SCORES)
    levels = {level: markdown(shown(found[found["level"] == level])) for level in ("donor", "cell")}
    text = TEXT.format(**levels, verdicts=markdown(verdicts(audits)), fidelity=markdown(fidelity))
    (folder / "audit.md").write_text(text)
    save_figure(figure_of(found[found["level"] == "donor"]), folder / "audit.png")


if __name__ == "__main__":
    typer.run(main)
