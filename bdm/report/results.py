"""Results of the workflow for a data set, as a report reads them from their folder."""

import json
import logging
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bdm._core.store import checksum_of
from bdm.audit.card import check_audit
from bdm.audit.results import KIND as AUDIT
from bdm.audit.results import Audit
from bdm.data.modalities import features_in_words, of_rna
from bdm.data.prepare import read_prepared
from bdm.data.read import read_cells
from bdm.errors import InputError
from bdm.evaluation.cells import GENERATED
from bdm.evaluation.results import Evaluation, require_set
from bdm.evaluation.verdict import Verdict
from bdm.extension.results import ExtensionReport
from bdm.interpretation.results import Interpretation, branch_genes
from bdm.lineages.results import Lineage
from bdm.model.model import BranchedModel, is_of_model, load_model
from bdm.responses.results import Responses
from bdm.transmutation.evaluate import TransmutationEvaluation

logger = logging.getLogger(__name__)

NEEDED = {
    "prepared.h5ad": "bdm prepare",
    "model": "bdm train",
    "generated.h5ad": "bdm generate",
    "evaluation/evaluation.json": "bdm evaluate",
    "evaluation/evaluation.safetensors": "bdm evaluate",
    **{f"evaluation/{name}.png": "bdm evaluate" for name in ("overall", "by_type", "properties", "genes", "umap")},
}


@dataclass(frozen=True)
class Results:
    """Results of the workflow for a data set; None, or no tables, for what there is not."""

    name: str
    cells: pd.DataFrame  # obs of the prepared cells
    genes: pd.Index
    features: str  # numbers of genes, proteins and peaks
    record: dict[str, Any]  # uns['bdm'] of the prepared cells
    request: dict[str, Any]  # and of the generated cells
    model: BranchedModel
    branches: pd.DataFrame | None  # losses of validation cells by branch, as bdm train writes them next to the model
    trained: date  # of the model's file: results hold no date, so that the same commands write the same files
    evaluation: Evaluation
    figures: dict[str, bytes]  # by their path in the folder
    interpretation: dict[str, pd.DataFrame]  # tables branch_genes and agreement
    interpreted: dict[str, Any]  # provenance of the interpretation
    transmutations: dict[str, TransmutationEvaluation]
    responses: Responses | None
    lineage: Lineage | None
    audit: Audit | None
    extensions: pd.DataFrame | None  # types that were added to the model
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
        """Numbers of cells and genes in the input of :func:`bdm.data.prepare.prepare`; None if not recorded."""
        return json.loads(self.record["input"]) if "input" in self.record else None


def read_results(folder: Path) -> Results:
    """Read the folder of a data set."""
    folder = Path(folder)
    for name, command in NEEDED.items():
        if not (folder / name).exists():
            raise InputError(
                f"{folder} has no {name}; make it with the workflow, or with {command}, before the report."
            )
    cells, model = read_prepared(folder / "prepared.h5ad", on_disk=True), load_model(folder / "model")
    interpreted, extended = folder / "interpretation", folder / "extension"
    interpretation = (
        Interpretation.load(interpreted) if (interpreted / f"{Interpretation.kind}.json").is_file() else None
    )
    checksum = checksum_of(folder / "model", "model")
    transmutations = sorted(folder.glob("transmutation/*/transmutation.json"))
    moved = {path.parent: folder / "transmuted" / f"{path.parent.name}.h5ad" for path in transmutations}
    audit = read_audit(folder / "audit", model)
    extension = ExtensionReport.load(extended) if (extended / f"{ExtensionReport.kind}.json").is_file() else None
    results = Results(
        name=folder.resolve().name,
        cells=cells.obs,
        genes=cells.var_names[of_rna(cells.var)],
        features=features_in_words(cells.var),
        record=dict(cells.uns["bdm"]),
        request=dict(read_cells(folder / "generated.h5ad", on_disk=True).uns.get("bdm", {})),
        model=model,
        branches=pd.read_csv(branches) if (branches := folder / "model/branches.csv").is_file() else None,
        trained=date.fromtimestamp((folder / "model/model.json").stat().st_mtime),
        evaluation=Evaluation.load(folder / "evaluation"),
        figures={str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/**/*.png"))},
        interpretation=tables_of(interpretation) if interpretation else {},
        interpreted=interpretation.provenance if interpretation else {},
        transmutations={
            path.name: TransmutationEvaluation.load(path) for path, of in moved.items() if is_of_model(of, checksum)
        },
        responses=Responses.load(folder / Responses.kind) if (folder / Responses.kind).is_dir() else None,
        lineage=Lineage.load(folder / Lineage.kind) if (folder / Lineage.kind).is_dir() else None,
        audit=audit,
        extensions=extension.extensions if extension else None,
        cost=read_cost(folder / "benchmarks"),
    )
    require_set(results.evaluation, GENERATED, folder / "evaluation")
    n_genes = results.evaluation.gene_statistics["set"].value_counts().reindex(results.evaluation.sets)
    if not n_genes.eq(len(results.genes)).all():
        raise InputError(f"{folder}/evaluation does not have each gene of prepared.h5ad; evaluate again.")
    return results


def read_audit(folder: Path, model: BranchedModel) -> Audit | None:
    """Read the audit of the data set; None where there is none, or one of other models of bdm."""
    if not (folder / f"{AUDIT}.json").is_file():
        return None
    audit = Audit.load(folder)
    if audit.record["generator"] == "bdm":
        try:
            check_audit(audit, model)
        except InputError as error:
            logger.warning("Not shown: %s. %s", folder, error)
            return None
    return audit


def tables_of(interpretation: Interpretation) -> dict[str, pd.DataFrame]:
    """Tables of an interpretation that the page shows, with the symbols of genes."""
    return {
        "branch_genes": interpretation.names.with_symbols(branch_genes(interpretation)),
        "agreement": interpretation.agreement,
    }


def read_cost(folder: Path) -> pd.DataFrame:
    """Read what Snakemake measured for each step, in the order in which steps ended: ``seconds`` and ``megabytes``."""
    rows = {}
    for path in sorted(folder.glob("*.tsv"), key=lambda path: path.stat().st_mtime):
        measured = pd.read_csv(path, sep="\t", na_values=["-"])
        rows[path.stem] = {"seconds": measured["s"].mean(), "megabytes": measured["max_rss"].mean()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["seconds", "megabytes"])
