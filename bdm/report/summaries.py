"""Read the results of a data set, and make the report's tables."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from bdm._core.errors import InputError, abbreviated, as_keys
from bdm._core.schema import settings_of
from bdm._core.store import Result, checksum_of
from bdm.applications.audit.audit import Audit, check_audit
from bdm.applications.extension.extend import ExtensionReport
from bdm.applications.relations.lineage import Lineage
from bdm.applications.relations.responses import Responses
from bdm.applications.transmutation.evaluate_transmuted import TransmutationEvaluation
from bdm.data.cells import FLOOR, GENERATED
from bdm.data.genes import display_names
from bdm.data.modalities import features_in_words, is_rna, parts_of_rna
from bdm.data.prepare import read_prepared
from bdm.data.read import read_cells
from bdm.evaluation.evaluate import Evaluation
from bdm.evaluation.table import MIN_CELLS, POPULATION
from bdm.evaluation.verdict import Verdict
from bdm.interpretation.contrasts import fewest_names
from bdm.interpretation.interpretation import Interpretation, branch_gene_rows
from bdm.model.model import BranchedModel, is_of_model, load_model
from bdm.settings import (
    AuditSettings,
    AutoencoderSettings,
    EvaluationSettings,
    GenerationSettings,
    HierarchySettings,
    InterpretationSettings,
    PrepareSettings,
    TrainSettings,
)

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded", bound=Result)

NEEDED = {
    "prepared.h5ad": "bdm prepare",
    "model": "bdm train",
    "generated.h5ad": "bdm generate",
    "evaluation/evaluation.json": "bdm evaluate",
    "evaluation/evaluation.safetensors": "bdm evaluate",
    **{f"evaluation/{name}.png": "bdm evaluate" for name in ("overall", "by_type", "genes", "umap")},
}


@dataclass(frozen=True)
class Results:
    """Results for a data set; missing results are None or empty."""

    name: str
    cells: pd.DataFrame  # obs of the prepared cells
    genes: pd.Index
    features: str  # numbers of genes, proteins and peaks
    record: dict[str, Any]  # uns['bdm'] of the prepared cells
    request: dict[str, Any]  # uns['bdm'] of the generated cells
    model: BranchedModel
    network: pd.DataFrame | None  # held-out losses with and without the network of the prior, from bdm train
    trained: date  # date of the model's file; results hold no dates, so that equal commands write equal files
    evaluation: Evaluation
    figures: dict[str, bytes]  # by path in the folder
    interpretation: dict[str, pd.DataFrame]  # tables branch_genes and agreement
    interpreted: dict[str, Any]  # provenance of the interpretation
    transmutations: dict[str, TransmutationEvaluation]
    responses: Responses | None
    lineage: Lineage | None
    audit: Audit | None
    extensions: pd.DataFrame | None  # cell types added to the model
    cost: pd.DataFrame  # seconds and megabytes by step

    @cached_property
    def verdict(self) -> Verdict:
        """Verdict on all generated cells."""
        return self.evaluation.verdict()

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Verdicts by cell type."""
        return self.evaluation.verdicts_by_type()

    @property
    def input(self) -> dict[str, Any] | None:
        """Numbers of cells and genes before preparation; None if not recorded."""
        return json.loads(self.record["input"]) if "input" in self.record else None

    @property
    def warnings(self) -> list[list[str]]:
        """Warnings of ``bdm prepare`` as alternating text and code (configuration keys)."""
        return [as_keys(text).split("`") for text in json.loads(self.record.get("warnings", "[]"))]


def read_results(folder: Path) -> Results:
    """Read the results of a data set from its folder."""
    folder = Path(folder)
    for name, command in NEEDED.items():
        if not (folder / name).exists():
            raise InputError(
                f"{folder} has no {name}; make it with the workflow, or with {command}, before the report."
            )
    cells, model = read_prepared(folder / "prepared.h5ad", on_disk=True), load_model(folder / "model")
    checksum = checksum_of(folder / "model", "model")
    transmutations = sorted(folder.glob("transmutation/*/transmutation.json"))
    transmuted = {path.parent: folder / "transmuted" / f"{path.parent.name}.h5ad" for path in transmutations}
    audit = read_audit(folder / "audit", model)
    extension = load_if_present(ExtensionReport, folder / "extension")
    interpretation = load_if_present(Interpretation, folder / "interpretation")
    results = Results(
        name=folder.resolve().name,
        cells=cells.obs,
        genes=cells.var_names[is_rna(cells.var)],
        features=features_in_words(cells.var),
        record=dict(cells.uns["bdm"]),
        request=dict(read_cells(folder / "generated.h5ad", on_disk=True).uns.get("bdm", {})),
        model=model,
        network=pd.read_csv(decision) if (decision := folder / "model/decision.csv").is_file() else None,
        trained=date.fromtimestamp((folder / "model/model.json").stat().st_mtime),
        evaluation=Evaluation.load(folder / "evaluation"),
        figures={str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/**/*.png"))},
        interpretation=tables_of(interpretation) if interpretation else {},
        interpreted=interpretation.provenance if interpretation else {},
        transmutations={
            path.name: TransmutationEvaluation.load(path)
            for path, cells in transmuted.items()
            if is_of_model(cells, checksum)
        },
        responses=load_if_present(Responses, folder / "responses"),
        lineage=load_if_present(Lineage, folder / "lineage"),
        audit=audit,
        extensions=extension.extensions if extension else None,
        cost=read_cost(folder / "benchmarks"),
    )
    if not {GENERATED, FLOOR} <= set(results.evaluation.sets):
        raise InputError(f"{folder}/evaluation has no generated cells, or no floor; evaluate again.")
    n_genes = results.evaluation.gene_statistics["set"].value_counts().reindex(results.evaluation.sets)
    if not n_genes.eq(parts_of_rna(cells.var)[0].n_features).all():
        raise InputError(f"{folder}/evaluation does not have each gene of prepared.h5ad; evaluate again.")
    return results


def tables_of(interpretation: Interpretation) -> dict[str, pd.DataFrame]:
    """Return the tables of an interpretation on the page, with gene symbols."""
    table = interpretation.names.with_symbols(branch_gene_rows(interpretation))
    return {"branch_genes": table, "agreement": interpretation.agreement}


def load_if_present(kind: type[Loaded], folder: Path) -> Loaded | None:
    """Read a result from its folder; None if it is missing."""
    return kind.load(folder) if (folder / f"{kind.kind}.json").is_file() else None


def read_audit(folder: Path, model: BranchedModel) -> Audit | None:
    """Read the audit; None if it is missing or of other models."""
    audit = load_if_present(Audit, folder)
    if audit is not None and audit.record["generator"] == "bdm":
        try:
            check_audit(audit, model)
        except InputError as error:
            logger.warning("Not shown: %s. %s", folder, error)
            return None
    return audit


def read_cost(folder: Path) -> pd.DataFrame:
    """Read Snakemake's benchmarks: seconds and megabytes by step, in order of completion."""
    rows = {}
    for path in sorted(folder.glob("*.tsv"), key=lambda path: path.stat().st_mtime):
        benchmark = pd.read_csv(path, sep="\t", na_values=["-"])
        rows[path.stem] = {"seconds": benchmark["s"].mean(), "megabytes": benchmark["max_rss"].mean()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["seconds", "megabytes"])


# ---- tables

POPULATION_SCORES = ("relative_energy", "forest_auc")
N_GENES = 5  # marker genes to show for each branch


def populations(results: Results) -> dict[str, Any]:
    """Return populations by cell type, commonest types first, with numbers and settings."""
    hierarchy, adapters = results.model.hierarchy, results.model.autoencoder.adapters
    table = pd.DataFrame(
        [
            (cell_type, name, hierarchy.by_name[name].n_cells, name in adapters, hierarchy.by_name[name].nearer_to)
            for cell_type in hierarchy.cell_types
            for name in hierarchy.populations_of(cell_type)
        ],
        columns=["cell_type", "name", "n_cells", "type_specific", "nearer_to"],
    ).sort_values("n_cells", ascending=False, kind="stable")
    n_cells = table.groupby("cell_type")["n_cells"].transform("sum")
    table = table.assign(share=table["n_cells"] / n_cells)
    ordered = table.loc[n_cells.sort_values(ascending=False, kind="stable").index]
    by_type = {str(cell_type): rows for cell_type, rows in ordered.groupby("cell_type", sort=False)}
    used = asdict(AutoencoderSettings()) | results.model.autoencoder.provenance.get("settings", {})
    min_donors = setting(results, "min_donors")
    donors = f" and {min_donors:,} effective donors" if min_donors > 1 else ""
    return {
        "by_type": by_type,
        "n": len(table),
        "n_divided": sum(len(rows) > 1 for rows in by_type.values()),
        "n_type_specific": int(table["type_specific"].sum()),
        "stray": [*table[table["nearer_to"].notna()].itertuples()],
        "one_donor": ", ".join(results.model.autoencoder.one_donor),
        "setting": str(used["sub_populations"]),
        "least": f"{used['min_cells_per_sub_population']:,} cells{donors} or more",
    }


def population_scores(results: Results, by_type: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return test cells, shares and scores of sub-populations, by cell type."""
    table = results.evaluation.scores_of(POPULATION)
    table = table[(table["set"] == GENERATED) & table["value"].notna()].set_index(["group", "score"])
    values = pd.DataFrame({GENERATED: table["value"], FLOOR: table["floor"]}).unstack("score")
    tables = {}
    for cell_type, rows in by_type.items():
        known = values.reindex(rows["name"])
        if len(rows) > 1 and len(table) and known[GENERATED, "share"].notna().any():
            columns = {("share", "test"): known[GENERATED, "share_test"]}
            columns |= {("share", name): known[name, "share"].fillna(0) for name in (FLOOR, GENERATED)}
            columns |= {(score, name): known[name, score] for score in POPULATION_SCORES for name in (FLOOR, GENERATED)}
            tables[cell_type] = pd.DataFrame({("n_test", ""): known[GENERATED, "n_test"], **columns})
    return tables


def nodes(results: Results) -> Iterator[dict[str, Any]]:
    """Yield nodes from the root on, with marker genes and their agreement."""
    if "branch_genes" not in results.interpretation:
        return
    agreement = results.interpretation.get("agreement", pd.DataFrame(columns=["node"]))
    agreement = agreement.drop_duplicates("node").set_index("node")  # RNA is the first modality
    hierarchy, table = results.model.hierarchy, results.interpretation["branch_genes"]
    up = table[table["model_log2_fold_change"].astype(float) > 0].sort_values("model_rank")
    by_branch = {child: up[up["child"] == child].head(N_GENES) for child in table["child"].unique()}
    genes = {child: display_names(rows).tolist() for child, rows in by_branch.items()}
    for name, rows in table.groupby("node", sort=False):
        children = rows["child"].unique()
        labels = [abbreviated(fewest_names(tuple(hierarchy.leaves(child)), hierarchy)) for child in children]
        scores = agreement.loc[name] if name in agreement.index else pd.Series(dtype=float)
        markers = [gene for child in children for gene in by_branch[child]["gene"]]
        shown = [gene for child in children for gene in genes[child]]
        words = dict.fromkeys([name, *hierarchy.types_below(name), *hierarchy.leaves(name), *shown, *markers])
        yield {
            "name": name,
            "level": rows["level"].iloc[0],
            "sides": [(label, genes[child]) for label, child in zip(labels, children, strict=True)],
            "agreement": scores.get("pearson", float("nan")),
            "of_training_cells": scores.get("pearson_equal", float("nan")),
            "words": " ".join(words).lower(),  # search terms
        }


DEFAULTS = PrepareSettings()
REASONS = {  # reason to leave out cells, by setting
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
    """Describe the selection of genes in words."""
    variable, *others = parts_of_rna(results.model.autoencoder.genes)
    kinds = {"all": "all", "seurat_v3": "the most variable"}
    kind = kinds.get(str(setting(results, "genes")), "the requested")
    seen = f"with counts in {setting(results, 'min_cells_per_gene'):,} training cells or more"
    if not others:
        return f"{kind} genes {seen}"
    return f"those {seen}; the latent and most scores are from {kind} {variable.n_features:,} of them"


def reason_for(results: Results, name: str) -> str:
    """Return the reason for leaving out cells, with the setting."""
    return f"{REASONS[name].format(setting(results, name))} ({name})"


def types_left_out(results: Results) -> list[dict[str, Any]]:
    """Return table rows of omitted cell types: name, number and reason."""
    rows = (results.input or {}).get("types_left_out", [])
    return [{**row, "why": reason_for(results, row["setting"])} for row in rows]


def cells_left_out(results: Results) -> list[tuple[int, str]]:
    """Return numbers of omitted cells from kept cell types, with reasons."""
    if results.input is None:
        return []
    omitted = [(n, reason_for(results, name)) for name, n in results.input["cells_left_out"].items()]
    n_explained = sum(n for n, _ in omitted) + sum(row["n_cells"] for row in results.input["types_left_out"])
    if not results.model.extensions:
        n_empty = results.input["n_cells"] - n_explained - len(results.cells)
        omitted.append((n_empty, "without counts of the chosen genes"))
    return [(n, reason) for n, reason in omitted if n > 0]


def cells_for_verdict(results: Results) -> int | None:
    """Return cells a type needs for a verdict; None without test cells."""
    test = setting(results, "test")
    return ceil(MIN_CELLS / test) if test > 0 else None


def changed_settings(results: Results) -> list[dict[str, Any]]:
    """Return settings and seeds that differ from defaults, with the commands that share a value."""

    def stored(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value  # files have lists

    rows: dict[str, dict[str, Any]] = {}
    for command, used, defaults in used_settings(results):
        for name, default in {**defaults, "seed": 0}.items():
            if name in used and stored(used[name]) != stored(default):
                row = {"name": name, "value": used[name], "default": default}
                rows.setdefault(repr(row), row | {"commands": []})["commands"].append(command)
    return list(rows.values())


def used_settings(results: Results) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield commands with used settings (including the seed) and default settings."""
    model = results.model
    autoencoder, tree, evaluation = model.autoencoder.provenance, model.hierarchy, results.evaluation.provenance
    keys = {item.name: item.key for item in settings_of(PrepareSettings)}
    workflow_defaults = {name: key.default for name, key in keys.items() if key.default is not None}
    yield "prepare", autoencoder.get("prepare", {}), asdict(DEFAULTS) | workflow_defaults
    yield "autoencoder", settings_in(autoencoder), asdict(AutoencoderSettings())
    yield "hierarchy", {**tree.provenance, "threshold": tree.threshold}, {**asdict(HierarchySettings()), "tree": None}
    yield "train", settings_in(model.provenance), asdict(TrainSettings())
    sampling = json.loads(results.request.get("settings", "{}")) | {"n_cells": n_generated(results)}
    defaults = {**asdict(GenerationSettings()), "n_cells": AS_IN_DATA}
    yield "generate", {"seed": results.request.get("seed", 0), **sampling}, defaults
    yield "evaluate", settings_in(evaluation), asdict(EvaluationSettings())
    yield "interpret", settings_in(results.interpreted), asdict(InterpretationSettings())
    if results.audit is not None:
        record = results.audit.record
        yield "audit", {"seed": record["seed"], **record["audit"]}, asdict(AuditSettings())


def settings_in(record: dict[str, Any]) -> dict[str, Any]:
    """Return the settings and the seed of a record."""
    return {"seed": record.get("seed", 0), **record.get("settings", {})}


AS_IN_DATA = "as in the data"


def n_generated(results: Results) -> str:
    """Describe the number of generated cells of each type."""
    numbers = results.evaluation.n_cells[GENERATED][results.evaluation.n_cells[GENERATED] > 0]
    numbers_in_data = results.cells["cell_type"].value_counts().reindex(numbers.index, fill_value=0)
    if numbers.eq(numbers_in_data).all():
        return AS_IN_DATA
    return str(numbers.iloc[0]) if numbers.nunique() == 1 else "by type"


def evaluated_files(results: Results) -> dict[str, str]:
    """Return the SHA-256 of evaluated files by description."""
    evaluated = results.evaluation.provenance.get("sha256", {})
    checksums = {
        "the data": results.model.autoencoder.provenance.get("data_sha256"),
        "the labels": results.record.get("labels_sha256"),
        "the model": evaluated.get("model"),
        "the prepared cells (prepared.h5ad)": evaluated.get("prepared"),
        "the generated cells (generated.h5ad)": evaluated.get(GENERATED),
    }
    return {name: value for name, value in checksums.items() if value}
