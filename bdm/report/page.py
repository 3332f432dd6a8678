import hashlib
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bdm import __version__
from bdm.evaluation.evaluate import FLOOR
from bdm.evaluation.verdict import LIMITS, Grade, Verdict
from bdm.extension.report import told_of
from bdm.plotting.page.tree import tree_browser
from bdm.progress import duration
from bdm.report import plots
from bdm.report.branches import genes_by_branch, nodes
from bdm.report.results import JUDGED, Results
from bdm.report.settings import changed, checksums, commands, versions

SHOWN = 20  # types at first, where there are more
OF_TYPE = ("relative_energy", "forest_auc", "fold_change_correlation", "f1")
OF_MOVE = ("energy", "mean_r2", "variance_r2", "slope", "sign")
SIGNS = {Grade.SAME: "=", Grade.NEAR: "≈", Grade.DIFFERS: "≠", Grade.UNKNOWN: "?"}


NAMES = {
    "relative_energy": "Distance",
    "forest_auc": "Random forest",
    "gene_auc": "All genes",
    "fold_change_correlation": "Fold changes",
    "f1": "Cell typing",
    "copying": "Copies",
}
MEANINGS = {
    "relative_energy": "Energy distance to real cells of the type, relative to the distance of two real cells.",
    "forest_auc": "How often a random forest picks the generated of two cells (AUC); 0.5 is guessing.",
    "gene_auc": "The same for a linear classifier that sees all genes.",
    "fold_change_correlation": "Do markers change between types as in real cells? Correlation of log fold changes.",
    "f1": "How well real cells are typed by a classifier that learnt from these cells (F1).",
    "copying": "Are cells nearer to training than to other real cells? 0.5 is no copying, 1 is copies only.",
}
MOVE_NAMES = {
    "energy": "Energy distance",
    "mean_r2": "R² of the means of genes",
    "variance_r2": "R² of their variances",
    "slope": "Slope of log fold changes",
    "sign": "Genes in the right direction",
}


def report_page(results: Results) -> str:
    """Write a page that tells all about a model and its cells; it holds all that it needs, and loads nothing.

    Names in the data are text, whatever they hold: templates escape them, and no script runs but the page's own.
    """
    browser = tree_browser(
        results.model.hierarchy,
        title=f"Hierarchy of cell types of {results.name}",
        genes=genes_by_branch(results),
    )
    own = (files("bdm.report") / "templates/report.js").read_text(encoding="utf-8")
    scripts = [f"\n{script}" for script in (browser.script, own)]
    return environment().get_template("report.html").render(
        **content(results),
        tree=Markup(browser.body),
        style=Markup(browser.style + (files("bdm.report") / "templates/report.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{hash_of(script)}'" for script in scripts),
    )  # fmt: skip


def hash_of(script: str) -> str:
    """Hash of a script, as a content security policy names it."""
    return b64encode(hashlib.sha256(script.encode()).digest()).decode()


def environment() -> Environment:
    """Templates, which escape all that is put into them and refuse what is not there."""
    made = Environment(
        loader=PackageLoader("bdm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "whole": "{:,}".format, "percent": "{:.0%}".format}
    made.filters |= {"time": duration, "size": size, "plain": plain}
    return made


def number(value: float | None, digits: int = 2) -> str:
    """Write a number, and a dash for none; a negative one with a minus."""
    if value is None or not np.isfinite(value):
        return "\N{EN DASH}"
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def plain(value: Any) -> str:
    """Write the value of a setting."""
    if value is None or value is False or (isinstance(value, list | tuple) and not value):
        return "no" if value is False else "none"
    return "yes" if value is True else ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def size(megabytes: float) -> str:
    """Write a size of memory for people."""
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def content(results: Results) -> dict[str, Any]:
    """Gather what the templates tell."""
    return {
        "results": results,
        "version": __version__,
        "names": NAMES,
        "meanings": MEANINGS,
        "move_names": MOVE_NAMES,
        "floor": FLOOR,
        "judged": JUDGED,
        "limits": LIMITS,
        "signs": SIGNS,
        "symbols": plots.symbols(results.sets),
        "hierarchy": results.model.hierarchy,
        "split": results.cells["split"].value_counts(),
        "n_generated": int(results.n_cells[JUDGED].sum()),
        "batches": sorted(map(str, results.cells["batch"].unique())) if "batch" in results.cells else [],
        "settings": changed(results),
        "types": types(results),
        "shown": SHOWN,
        "verdict": results.verdict,
        "tally": tally(results.verdicts.values()),
        "scores": scores(results),
        "scatters": plots.scatters(results.gene_statistics, JUDGED),
        "map": b64encode(results.map).decode(),
        "nodes": nodes(results),
        "moves": [move(name, told) for name, told in results.moves.items()],
        "extensions": extensions(results),
        "cost": cost(results),
        "commands": commands(results),
        "checksums": checksums(results),
        "versions": versions(results),
        "seed": results.model.provenance["seed"],
    }


def tally(verdicts: Iterable[Verdict]) -> list[tuple[Grade, str, int]]:
    """Count cell types by their verdict, the best first."""
    found = Counter((verdict.grade, verdict.few and verdict.grade == Grade.SAME, verdict.short) for verdict in verdicts)
    return [(grade, text, n) for (grade, _, text), n in sorted(found.items())]


def types(results: Results) -> list[dict[str, Any]]:
    """Rows of the table by type, the commonest first, with a strip for each score."""
    by_type, verdicts = results.by_type, results.verdicts
    found = {
        name: {one.score: one for one in verdict.findings if verdict.grade != Grade.UNKNOWN}
        for name, verdict in verdicts.items()
    }
    scales = {
        score: plots.Scale.of(
            [
                *by_type.loc[[name for name in by_type.index if name[0] in (FLOOR, JUDGED)], score],
                *plots.limits_of(of[score] for of in found.values() if score in of),
            ]
        )
        for score in OF_TYPE
    }
    number_of = results.cells["cell_type"].value_counts()
    return [
        {
            "name": name,
            "n_cells": int(number_of.get(name, 0)),
            "n_test": int(results.n_cells.loc[name, "test"]),
            "n_generated": int(results.n_cells.loc[name, JUDGED]),
            "verdict": verdict,
            "strips": {
                score: plots.strip(
                    {one: by_type[score].get((one, name), np.nan) for one in (FLOOR, JUDGED)},
                    scales[score],
                    finding=found[name].get(score),
                )
                for score in OF_TYPE
            },
            "scores": {score: by_type[score].get((JUDGED, name), np.nan) for score in OF_TYPE},
        }
        for name, verdict in verdicts.items()
    ]


def scores(results: Results) -> list[dict[str, Any]]:
    """Rows of the table of all scores that the verdict rests on, with the values up to which cells count as real."""
    rows = []
    for finding in results.verdict.findings:
        values = results.overall.loc[finding.score]
        scale = plots.Scale.of([*values, *plots.limits_of([finding])])
        reach = {name: plots.limit_of(finding, getattr(finding, name)) for name in ("same", "near")}
        rows.append({"finding": finding, "strip": plots.strip(values, scale, finding=finding), **reach})
    return rows


def move(name: str, told: dict[str, Any]) -> dict[str, Any]:
    """Tell what became of the cells of one move, by the type that they were of."""
    sources = []
    for source, sets in told["scores"].items():
        table = pd.DataFrame(sets).astype(float)
        strips = {score: plots.strip(table.loc[score], plots.Scale.of(table.loc[score])) for score in OF_MOVE}
        sources.append({"name": source, "table": table, "strips": strips})
    return {"name": name, "to": told["to"], "sources": sources}


def extensions(results: Results) -> list[str]:
    """Tell in words where each added type came, and what it needed."""
    if results.extensions is None:
        return []
    return [told_of(dict(row)) for _, row in results.extensions.iterrows()]


def cost(results: Results) -> list[dict[str, Any]]:
    """Rows of the table of time and memory, with the share of the longest step."""
    longest = max(results.cost["seconds"].max(), 1e-9) if len(results.cost) else 1.0
    return [
        {
            "step": step,
            "seconds": row.seconds,
            "megabytes": row.megabytes,
            "share": round(100 * row.seconds / longest, 1),
        }
        for step, row in results.cost.iterrows()
    ]
