"""Render the report: an HTML page about a model and its cells."""

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from datetime import date
from hashlib import sha256
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bdm import __version__
from bdm._core.errors import abbreviated
from bdm._core.progress import duration
from bdm.applications.audit.audit import Audit
from bdm.applications.extension.extend import describe
from bdm.applications.transmutation.evaluate_transmuted import TransmutationEvaluation
from bdm.data.cells import FLOOR, GENERATED, TRANSMUTED, UNCHANGED
from bdm.evaluation.table import (
    ALL,
    JUDGED,
    KINDS,
    LEVEL,
    LEVEL_OF_ALL,
    MANY_CELLS,
    MIN_CELLS,
    SCORES,
    wide,
)
from bdm.evaluation.verdict import Grade, Verdict
from bdm.plotting.hierarchy_figure import draw_hierarchy, view_of
from bdm.plotting.style import svg_of
from bdm.report.card import in_words
from bdm.report.summaries import (
    POPULATION_SCORES,
    Results,
    cells_for_verdict,
    cells_left_out,
    changed_settings,
    evaluated_files,
    genes_chosen,
    nodes,
    population_scores,
    populations,
    types_left_out,
)

SHOWN = 20  # number of cell types shown at first
SHOWN_SCORES = ("relative_energy", "forest_auc", "fold_change_correlation", "f1")  # of each cell type
GRADES = {
    "SAME": "cannot be distinguished from real cells",
    "NEAR": "nearly like real cells",
    "DIFFERS": "differs from real cells",
    "UNKNOWN": "too few cells to compare",
}
SIGNS = {Grade.SAME: "=", Grade.NEAR: "≈", Grade.DIFFERS: "≠", Grade.UNKNOWN: "?"}

TRANSMUTATION_SCORES = ("energy", "relative_energy", "forest_auc", "mean_r2", "variance_r2", "slope", "sign")


def report_page(results: Results) -> str:
    """Return the report of a model and its cells as HTML.

    The page loads nothing. Templates escape names in the data, and only the page's own script runs.
    """
    templates = files("bdm.report") / "templates"
    style, script = ((templates / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return (
        environment()
        .get_template("report.html")
        .render(
            **template_variables(results),
            written=date.today(),
            tree=Markup(svg_of(draw_hierarchy(view_of(results.model.hierarchy)), "Tree of cell types")),
            style=Markup(style),
            script=Markup(script),
            script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        )
    )


def environment() -> Environment:
    """Return the Jinja environment, which escapes values and rejects missing ones."""
    templates = Environment(
        loader=PackageLoader("bdm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, "whole": "{:,}".format, "percent": "{:.0%}".format}
    templates.filters |= {"time": duration, "size": size, "in_words": in_words}
    return templates


def number(value: float | None, digits: int = 2) -> str:
    """Format a number; missing and infinite values become a dash."""
    if value is None or not np.isfinite(value):
        return "\N{EN DASH}"
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def size(megabytes: float) -> str:
    """Format an amount of memory."""
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def template_variables(results: Results) -> dict[str, Any]:
    """Return the variables of the templates."""
    population_content, evaluation, model = populations(results), results.evaluation, results.model
    return {
        "results": results,
        "version": __version__,
        "scores_of_all": SCORES,
        "judged": JUDGED,
        "transmutation_scores": TRANSMUTATION_SCORES,
        "floor": FLOOR,
        "generated": GENERATED,
        "transmuted": TRANSMUTED,
        "unchanged": UNCHANGED,
        "min_cells": MIN_CELLS,
        "many_cells": MANY_CELLS,
        "level": LEVEL,
        "level_of_all": LEVEL_OF_ALL,
        "signs": SIGNS,
        "grades": GRADES,
        "split": results.cells["split"].value_counts(),
        "n_generated": int(evaluation.n_cells[GENERATED].sum()),
        "batches": sorted(map(str, results.cells["batch"].unique())) if "batch" in results.cells else [],
        "settings": changed_settings(results),
        "genes_chosen": genes_chosen(results),
        "types_left_out": types_left_out(results),
        "cells_left_out": cells_left_out(results),
        "types": types(results),
        "type_scores": SHOWN_SCORES,
        "cells_for_verdict": cells_for_verdict(results),
        "shown": SHOWN,
        "verdict": results.verdict,
        "tally": tally(results.verdicts.values()),
        "scores": [each for each in results.verdict.findings if each.kind == ALL],
        "groups": groups(results),
        "kinds": KINDS,
        "modalities": len(model.autoencoder.modalities) > 1,
        "figures": {name: b64encode(png).decode() for name, png in results.figures.items()},
        "nodes": list(nodes(results)),
        "populations": population_content,
        "population_scores": population_scores(results, population_content["by_type"]),
        "population_columns": POPULATION_SCORES,
        "network": None if results.network is None else results.network.to_dict("records")[0],
        "transmutations": [transmutation(name, evaluation) for name, evaluation in results.transmutations.items()],
        **({} if results.audit is None else audit_tables(results.audit)),
        "extensions": [] if results.extensions is None else [*map(describe, results.extensions.to_dict("records"))],
        "cost": [{"step": step, **row} for step, row in results.cost.iterrows()],
        "checksums": evaluated_files(results),
        "versions": {"bdm": model.provenance["version"], **model.provenance.get("packages", {})},  # at training
    }


def tally(verdicts: Iterable[Verdict]) -> list[tuple[Grade, bool, str, int]]:
    """Count cell types by grade, scarcity of cells, and label."""
    counts = Counter(
        (verdict.grade, verdict.few_cells and verdict.grade == Grade.SAME, verdict.label) for verdict in verdicts
    )
    return [(*verdict, n) for verdict, n in sorted(counts.items())]


def types(results: Results) -> list[dict[str, Any]]:
    """Return table rows of cell types, with verdicts and findings."""
    n_test = results.evaluation.n_cells["test"]
    return [
        {
            "name": name,
            "n_test": int(n_test[name]),
            "verdict": verdict,
            "findings": {finding.score: finding for finding in verdict.findings},
        }
        for name, verdict in results.verdicts.items()
    ]


def groups(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Return table rows of other genes, batches, donors and so on, by kind of group."""
    findings = {(each.kind, each.group, each.score): each for each in results.verdict.findings}
    kinds = [kind for kind in KINDS if kind != ALL]
    table = results.evaluation.scores_of(*kinds)
    known = table[(table["set"] == GENERATED) & table["value"].notna() & table["score"].isin(SCORES)]
    return {
        kind: [
            {**row, "name": SCORES[row["score"]].title, "finding": findings.get((kind, row["group"], row["score"]))}
            for row in known[known["kind"] == kind].to_dict("records")
        ]
        for kind in kinds
        if (known["kind"] == kind).any()
    }


def transmutation(name: str, evaluation: TransmutationEvaluation) -> dict[str, Any]:
    """Return the verdict and tables of a transmutation (scores x sets) by original type."""
    sources = [
        {"name": group, "table": wide(rows, "score"), "n_cells": int(rows["n_cells"].iloc[0])}
        for group, rows in evaluation.scores.groupby("group", sort=False)
    ]
    verdict = evaluation.verdict() if TRANSMUTED in set(evaluation.scores["set"]) else None
    return {"to": evaluation.to, "sources": sources, "verdict": verdict, "figure": f"transmutation/{name}/scores.png"}


def audit_tables(audit: Audit) -> dict[str, Any]:
    """Return the tables of the page's section on the audit."""
    left_out = abbreviated(list(audit.record["left_out"]), n_shown=10)
    attacks, types = list(audit.by_attack()), list(audit.best_by_type(on_model=True))
    return {"attacks": attacks, "audited_types": types, "not_audited": left_out}
