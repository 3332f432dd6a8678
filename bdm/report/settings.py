"""What results were made from: cells and genes in words, settings that differ from the defaults, and checksums."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
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


def setting(results: Results, name: str) -> Any:
    """Return a setting of ``bdm prepare``."""
    return results.model.autoencoder.provenance.get("prepare", {}).get(name, getattr(DEFAULTS, name))


def genes_chosen(results: Results) -> str:
    """Describe how genes were selected."""
    genes, least = setting(results, "genes"), setting(results, "min_cells_per_gene")
    n_requested, kept = setting(results, "n_genes"), setting(results, "keep_genes")
    among = f"counts in {least:,} training cells or more" if least > 1 else "counts in a training cell"
    if genes == "all":
        return f"all genes with {among}"
    if genes != "seurat_v3":
        return f"{described(genes, 'genes')} with {among}"
    if len(results.genes) < n_requested:
        return (
            f"all genes with {among}, which are fewer than the {n_requested:,} most variable ones requested (seurat_v3)"
        )
    within = ", ranked within batches" if setting(results, "batch_key") else ""
    added = "" if kept is None else f", and {described(kept, 'keep_genes')}"
    variable = f"the {n_requested:,} most variable genes by training cells (seurat_v3{within})"
    return f"{variable}{added}, among those with {among}"


def described(genes: str | list[str], option: str) -> str:
    """Describe the genes of a setting: a file, a list, or the built-in markers."""
    if genes == "markers":
        return "the built-in markers"
    return (
        f"the genes in {Path(genes).name}"
        if isinstance(genes, str)
        else f"the genes named by {option} ({len(genes):,})"
    )


def types_left_out(results: Results) -> list[dict[str, Any]]:
    """Rows of the table of cell types that were left out: name, number of cells, and reason."""
    least, donors = setting(results, "min_cells_per_type"), setting(results, "min_donors")
    reasons = {
        "leave_out": "left out on request (leave_out)",
        "min_cells_per_type": f"fewer than {least:,} cells (min_cells_per_type)",
        "min_donors": f"cells of fewer than {donors:,} effective donors (min_donors)",
    }
    left_out = (results.input or {}).get("types_left_out", [])
    return [{**row, "why": reasons.get(row["setting"], row["setting"])} for row in left_out]


def cells_left_out(results: Results) -> list[tuple[int, str]]:
    """Numbers of cells that were left out, of types that were not, with the reasons."""
    if results.input is None:
        return []
    least = setting(results, "min_genes_per_cell")
    reasons = {
        "drop_unlabelled": "without a cell type (drop_unlabelled)",
        "min_genes_per_cell": f"with counts of fewer than {least:,} genes (min_genes_per_cell)",
    }
    found = [(n, reasons.get(name, name)) for name, n in results.input["cells_left_out"].items()]
    known = sum(n for n, _ in found) + sum(row["n_cells"] for row in results.input["types_left_out"])
    if not results.model.extensions:
        found.append((results.input["n_cells"] - known - len(results.cells), "without counts of the chosen genes"))
    return [(n, why) for n, why in found if n > 0]


def cells_for_verdict(results: Results, n_test: int = LIMITS.min_cells) -> int | None:
    """Return how many cells of a type in the input give ``n_test`` test cells; None where there are no test cells."""
    test = setting(results, "test")
    return ceil(n_test / test) if test > 0 else None


@dataclass(frozen=True)
class ChangedSetting:
    """A setting of a command whose value differs from the default."""

    command: str
    name: str
    value: Any
    default: Any


def changed(results: Results) -> list[ChangedSetting]:
    """List the settings, and seeds, that differ from the defaults, in the order of the commands."""
    return [
        ChangedSetting(command, name, used[name], default)
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
