"""What results were made from: cells and genes in words, settings that differ from the defaults, and checksums."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from math import ceil
from typing import Any

from bdm.evaluation.cells import GENERATED
from bdm.evaluation.verdict import LIMITS
from bdm.report.results import Results
from bdm.settings import (
    AuditSettings,
    AutoencoderSettings,
    EvaluationSettings,
    GenerationSettings,
    HierarchySettings,
    InterpretationSettings,
    PrepareSettings,
    PriorSettings,
)

DEFAULTS = PrepareSettings()
REASONS = {  # to leave out cells, by the setting
    "leave_out": "left out on request",
    "min_cells_per_type": "fewer than {:,} cells",
    "min_donors": "cells of fewer than {:,} effective donors",
    "drop_unlabelled": "without a cell type",
    "min_genes_per_cell": "with counts of fewer than {:,} genes",
}


def setting(results: Results, name: str) -> Any:
    """Return a setting of ``bdm prepare``."""
    return results.model.autoencoder.provenance.get("prepare", {}).get(name, getattr(DEFAULTS, name))


def genes_chosen(results: Results) -> str:
    """Describe how genes were selected; the page shows their number, and all settings that are not the defaults."""
    kinds = {"all": "all", "seurat_v3": "the most variable", "markers": "the built-in marker"}
    genes, kept = setting(results, "genes"), setting(results, "keep_genes")
    kind = kinds.get(genes, "the requested") if isinstance(genes, str) else "the requested"
    added = "" if kept is None else ", and the genes of keep_genes,"
    return f"{kind} genes{added} with counts in {setting(results, 'min_cells_per_gene'):,} training cells or more"


def why(results: Results, name: str) -> str:
    """Give the reason to leave out cells."""
    return f"{REASONS[name].format(setting(results, name))} ({name})"


def types_left_out(results: Results) -> list[dict[str, Any]]:
    """Rows of the table of cell types that were left out: name, number of cells, and reason."""
    return [{**row, "why": why(results, row["setting"])} for row in (results.input or {}).get("types_left_out", [])]


def cells_left_out(results: Results) -> list[tuple[int, str]]:
    """Numbers of cells that were left out, of types that were not, with the reasons."""
    if results.input is None:
        return []
    found = [(n, why(results, name)) for name, n in results.input["cells_left_out"].items()]
    known = sum(n for n, _ in found) + sum(row["n_cells"] for row in results.input["types_left_out"])
    if not results.model.extensions:
        found.append((results.input["n_cells"] - known - len(results.cells), "without counts of the chosen genes"))
    return [(n, reason) for n, reason in found if n > 0]


def cells_for_verdict(results: Results) -> int | None:
    """Return how many cells of a type in the input give a verdict; None where there are no test cells."""
    test = setting(results, "test")
    return ceil(LIMITS.min_cells / test) if test > 0 else None


def changed(results: Results) -> list[dict[str, Any]]:
    """List the settings, and seeds, that differ from the defaults, in the order of the commands."""
    return [
        {"command": command, "name": name, "value": used[name], "default": default}
        for command, used, defaults in used_settings(results)
        for name, default in {**defaults, "seed": 0}.items()
        if name in used and as_stored(used[name]) != as_stored(default)
    ]


def used_settings(results: Results) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield each command with the settings, and the seed, that were used, and the default settings."""
    model = results.model
    autoencoder, tree, evaluation = model.autoencoder.provenance, model.hierarchy, results.evaluation.provenance
    yield "prepare", autoencoder.get("prepare", {}), asdict(DEFAULTS)
    yield "autoencoder", settings_in(autoencoder), asdict(AutoencoderSettings())
    yield "hierarchy", {**tree.provenance, "threshold": tree.threshold}, {**asdict(HierarchySettings()), "tree": None}
    yield "train", settings_in(model.provenance), asdict(PriorSettings())
    sampling = json.loads(results.request.get("settings", "{}")) | {"n_cells": n_generated(results)}
    defaults = {**asdict(GenerationSettings()), "n_cells": AS_IN_DATA}
    yield "generate", {"seed": results.request.get("seed", 0), **sampling}, defaults
    yield "evaluate", settings_in(evaluation), asdict(EvaluationSettings())
    yield "interpret", settings_in(results.interpreted), asdict(InterpretationSettings())
    if results.audit is not None:
        record = results.audit.record
        yield "audit", {"seed": record["seed"], **record["audit"]}, asdict(AuditSettings())


def settings_in(record: dict[str, Any]) -> dict[str, Any]:
    """Give the settings and the seed of a record."""
    return {"seed": record.get("seed", 0), **record.get("settings", {})}


def as_stored(value: Any) -> Any:
    """Turn a tuple into a list, as files have it."""
    return list(value) if isinstance(value, tuple) else value


AS_IN_DATA, BY_TYPE = "as in the data", "by type"


def n_generated(results: Results) -> str:
    """Return the number of generated cells of each type, if it is the same of all, or how the numbers were given."""
    numbers = results.evaluation.n_cells[GENERATED][results.evaluation.n_cells[GENERATED] > 0]
    given = results.cells["cell_type"].value_counts().reindex(numbers.index, fill_value=0)
    if numbers.eq(given).all():
        return AS_IN_DATA
    return str(numbers.iloc[0]) if numbers.nunique() == 1 else BY_TYPE


def checksums(results: Results) -> dict[str, str]:
    """Return the SHA-256 of the files that were evaluated, by their description."""
    evaluated = results.evaluation.provenance.get("sha256", {})
    found = {
        "the data": results.model.autoencoder.provenance.get("data_sha256"),
        "the labels": results.record.get("labels_sha256"),
        "the model": evaluated.get("model"),
        "the prepared cells (prepared.h5ad)": evaluated.get("prepared"),
        "the generated cells (generated.h5ad)": evaluated.get(GENERATED),
    }
    return {name: value for name, value in found.items() if value}


def versions(results: Results) -> dict[str, str]:
    """Return the versions of bdm and of its packages with which the model was trained."""
    record = results.model.provenance
    packages = record.get("packages", {})
    packages = json.loads(packages) if isinstance(packages, str) else packages
    return {"bdm": record["version"], **packages}
