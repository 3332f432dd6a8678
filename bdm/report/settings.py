"""Cells and genes in words, settings that differ from the defaults, and commands that reproduce the results."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from math import ceil
from pathlib import Path
from shlex import quote
from typing import Any

from bdm.audit.results import Audit
from bdm.audit.settings import AuditSettings
from bdm.errors import OPTIONS_FOR_NONE
from bdm.evaluation.cells import GENERATED, TRANSMUTED
from bdm.evaluation.verdict import LIMITS
from bdm.hierarchy.tree import Hierarchy
from bdm.model.extension import Extension
from bdm.report.results import Results
from bdm.schema import options_of
from bdm.settings import (
    AutoencoderSettings,
    DenoiserSettings,
    EvaluationSettings,
    FitSettings,
    GenerationSettings,
    HierarchySettings,
    InputKeys,
    InterpretationSettings,
    PrepareSettings,
    SamplerSettings,
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


STAGES = (
    PrepareSettings,
    AutoencoderSettings,
    HierarchySettings,
    DenoiserSettings,
    GenerationSettings,
    EvaluationSettings,
)
AMBIGUOUS = ("n_steps", "learning_rate")  # settings of several stages, whose options of bdm audit begin with the stage
OPTIONS = {setting.name for stage in STAGES for setting in options_of(stage)}  # others are for Python only


@dataclass(frozen=True)
class Setting:
    """A setting whose value differs from the default."""

    command: str
    name: str
    value: Any
    default: Any

    @property
    def option(self) -> str:
        """Write it as an option of its command."""
        if self.value is None and self.name in OPTIONS_FOR_NONE:
            return f"--{OPTIONS_FOR_NONE[self.name]}"
        flag = f"--{self.name.replace('_', '-')}"
        if isinstance(self.value, bool):
            return flag
        values = self.value if isinstance(self.value, list | tuple) else [self.value]
        return " ".join(f"{flag} {quote(str(value))}" for value in values)


def changed(results: Results) -> list[Setting]:
    """List the settings that differ from the defaults, in the order of the commands."""
    return [setting for command, used, defaults in _settings(results) for setting in _changed(command, used, defaults)]


def _changed(command: str, used: dict[str, Any], defaults: dict[str, Any]) -> list[Setting]:
    return [
        Setting(command, name, used[name], default)
        for name, default in defaults.items()
        if name != "seed" and name in used and _as_stored(used[name]) != _as_stored(default)
    ]


def _options(used: dict[str, Any], defaults: dict[str, Any]) -> str:
    return "".join(f" {setting.option}" for setting in _changed("", used, defaults))


def _as_stored(value: Any) -> Any:
    """Turn a tuple into a list, as files have it."""
    return list(value) if isinstance(value, tuple) else value


def _settings(results: Results) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    record = results.model.autoencoder.provenance
    yield "prepare", record.get("prepare", {}), asdict(PrepareSettings())
    yield "autoencoder", record.get("settings", {}), asdict(AutoencoderSettings())
    tree = results.model.hierarchy
    yield "hierarchy", {**tree.provenance, "threshold": tree.threshold}, asdict(HierarchySettings())
    yield "train", results.model.provenance.get("settings", {}), asdict(DenoiserSettings())
    sampling = json.loads(results.request.get("settings", "{}"))
    yield (
        "generate",
        sampling | {"n_cells": n_generated(results)},
        asdict(GenerationSettings()) | {"n_cells": AS_IN_DATA},
    )
    yield "evaluate", results.evaluation.provenance.get("settings", {}), asdict(EvaluationSettings())
    yield "interpret", results.interpreted.get("settings", {}), asdict(InterpretationSettings())


def commands(results: Results) -> list[str]:
    """Give the commands that make the results again, from the data on."""
    options = dict.fromkeys(_seeds(results), "")
    for setting in changed(results):
        if setting.name in OPTIONS and setting.command in options:
            options[setting.command] += f" {setting.option}"
    if "labels" in results.record:
        options["prepare"] += f" --labels {quote(results.record['labels'])}"
    if results.model.hierarchy.given:
        options["hierarchy"] += _tree(results.model.hierarchy)
    for command, seed in _seeds(results).items():
        options[command] += f" --seed {seed}"
    lines = [
        f"bdm prepare {quote(str(results.record.get('data', 'cells.h5ad')))} prepared.h5ad{options['prepare']}",
        f"bdm autoencoder prepared.h5ad autoencoder{options['autoencoder']}",
        f"bdm hierarchy autoencoder hierarchy.json{options['hierarchy']}",
        f"bdm train autoencoder hierarchy.json model{options['train']}",
    ]
    cells, model = "prepared.h5ad", "model"
    for number, (_, together) in enumerate(groupby(results.model.extensions, lambda of: of.provenance), start=1):
        lines.append(_extend(list(together), model, cells, number))
        cells, model = f"prepared_{number}.h5ad", f"model_{number}"
    given = results.evaluation.provenance.get("sha256", {})
    with_model = f" --model {model}" if "model" in given else ""
    test_cells = " --test-cells test_cells.h5ad" if "test_cells" in given else ""
    return [
        *lines,
        f"bdm generate {model} generated.h5ad {wanted(results, cells)}{options['generate']}",
        f"bdm evaluate {cells} evaluation generated.h5ad{with_model}{test_cells}{options['evaluate']}",
        *_interpretation(results, model, cells),
        *_moves(results, model, cells),
        *_experiments(results, model),
        *([] if results.audit is None else [audit_command(results.audit.audit, results.model.hierarchy)]),
    ]


def audit_command(audit: Audit, hierarchy: Hierarchy) -> str:
    """Give the command that makes the audit of a model with this hierarchy, or of cells of any generator, again."""
    record = audit.record
    options = _options(record["audit"], asdict(AuditSettings()))
    defaults = {**asdict(FitSettings()), "sampling": asdict(GenerationSettings())}
    for stage, used in {**record.get("fit", {}), "sampling": record.get("sampling", {})}.items():
        for setting in _changed(stage, used, defaults[stage]):
            named = replace(setting, name=f"{stage}_{setting.name}") if setting.name in AMBIGUOUS else setting
            options += f" {named.option}" if setting.name in OPTIONS else ""
    if record.get("tree_given"):
        options += _tree(hierarchy)
    if record.get("generator") != "bdm":
        options += "".join(f" --cells fold-{number}.h5ad" for number in range(1, record["audit"]["n_folds"] + 1))
    return f"bdm audit prepared.h5ad audit{options} --seed {record['seed']}"


def _tree(hierarchy: Hierarchy) -> str:
    """Give the option for the tree that a hierarchy was made from."""
    return f" --tree {quote(hierarchy.provenance.get('tree', 'tree.nwk'))}"


def _seeds(results: Results) -> dict[str, int]:
    """Give the seed of each step as it is recorded, else the model's."""
    model = results.model
    found = {
        "prepare": model.autoencoder.provenance.get("prepare", {}),
        "autoencoder": model.autoencoder.provenance,
        "hierarchy": model.hierarchy.provenance,
        "train": model.provenance,
        "generate": results.request,
        "evaluate": results.evaluation.provenance,
    }
    return {command: record.get("seed", model.provenance["seed"]) for command, record in found.items()}


def _extend(extensions: Sequence[Extension], model: str, cells: str, number: int) -> str:
    """Give the command that added some types at once."""
    record = extensions[0].provenance
    types = {
        "cell_type": [extension.cell_type for extension in extensions if extension.attachment is not None],
        "update": [extension.cell_type for extension in extensions if extension.attachment is None],
    }
    defaults = {"cell_type": [], "update": [], **asdict(InputKeys()), "missing_as_zero": False}
    options = _options(types | record.get("options", {}), defaults)
    files = f"--known {cells} --joined prepared_{number}.h5ad"
    new_cells = quote(record.get("cells_name", "new_cells.h5ad"))
    return f"bdm extend {model} {new_cells} model_{number}{options} {files} --seed {record.get('seed', 0)}"


def _interpretation(results: Results, model: str, cells: str) -> Iterator[str]:
    if results.interpreted:
        record, asked = results.interpreted, {"markers": "markers.csv", "gene_sets": "gene_sets.gmt"}
        used = record["settings"] | {name: file for name, file in asked.items() if name in record["sha256"]}
        options = _options(used, {**asdict(InterpretationSettings()), "markers": None, "gene_sets": None})
        yield f"bdm interpret {model} {cells} generated.h5ad interpretation{options} --seed {record['seed']}"


def _moves(results: Results, model: str, cells: str) -> Iterator[str]:
    defaults = {**asdict(SamplerSettings()), "to": None, "from": [], "like": []}
    for name, transmutation in results.transmutations.items():
        record, out, folder = transmutation.provenance, quote(f"transmuted/{name}.h5ad"), quote(f"transmutation/{name}")
        how = record.get("transmuted", {}).get(TRANSMUTED)
        if how:
            yield f"bdm transmute {model} {cells} {out}{_options(how, defaults)} --seed {how['seed']}"
        yield f"bdm evaluate-transmuted {cells} {folder} {out} --seed {record['seed']}"


def _experiments(results: Results, model: str) -> Iterator[str]:
    for name, experiment in results.experiments.items():
        design, out, truth = (
            quote(file) for file in (f"{name}.yaml", f"simulated/{name}.h5ad", f"simulated/{name}_truth.csv")
        )
        yield f"bdm simulate {model} {design} {out} --truth {truth} --seed {experiment.seed}"


AS_IN_DATA, BY_TYPE = "as in the data", "by type"


def n_generated(results: Results) -> str:
    """Return the number of generated cells of each type, if it is the same of all, or how the numbers were given."""
    numbers = results.evaluation.n_cells[GENERATED][results.evaluation.n_cells[GENERATED] > 0]
    given = results.cells["cell_type"].value_counts().reindex(numbers.index, fill_value=0)
    if numbers.eq(given).all():
        return AS_IN_DATA
    return str(numbers.iloc[0]) if numbers.nunique() == 1 else BY_TYPE


def wanted(results: Results, cells: str) -> str:
    """Give the option for the number of generated cells."""
    options = {AS_IN_DATA: f"--cells-like {cells}", BY_TYPE: "--cells-from numbers.csv"}
    return options.get(number := n_generated(results), f"--cells {number}")


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
