import json
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bdm.data.prepare import read_prepared
from bdm.data.read import read_cells
from bdm.errors import InputError
from bdm.evaluation.resampling import FLOOR
from bdm.evaluation.verdict import Verdict, overall_verdict, verdicts_by_type
from bdm.files import read_json
from bdm.model.model import BranchedModel, load_model

NEEDED = {
    "prepared.h5ad": "bdm prepare",
    "model": "bdm train",
    "generated.h5ad": "bdm generate",
    "evaluation/evaluation.json": "bdm evaluate",
    "evaluation/genes.csv": "bdm evaluate",
    "evaluation/umap.png": "bdm evaluate",
}
QUERIES = "branched"
# Columns that hold text; all others are numbers
TEXTS = ["gene", "symbol", "set", "cell_type", "cell_types", "node", "child", "children"]
TEXTS += ["attachment_branch", "nearest", "new_batches", "type_specific_genes"]


@dataclass(frozen=True)
class Results:
    """What the workflow found out about a data set, as its files have it.

    Attributes
    ----------
    name
        Of the data set.
    cells, genes
        ``obs`` of the prepared cells, and the names of their genes.
    record, request
        How they were prepared, and which cells were generated: ``uns['bdm']`` of both files.
    trained
        Date of the model's file. Results hold no date themselves, so that the same commands write the same files.
    evaluation
        Content of ``evaluation.json``.
    gene_statistics
        Of judged and of test cells, by set.
    map
        Picture of the UMAP.
    interpretation, interpreted
        Its tables by name, and how it was made; none where the model was not interpreted.
    moves
        Content of ``transmutation.json`` by the name of the move.
    extensions
        Types that were added to the model; None where none were.
    cost
        Seconds and megabytes by the name of the step.
    """

    name: str
    cells: pd.DataFrame
    genes: pd.Index
    record: dict[str, Any]
    request: dict[str, Any]
    model: BranchedModel
    trained: date
    evaluation: dict[str, Any]
    gene_statistics: pd.DataFrame
    map: bytes
    interpretation: dict[str, pd.DataFrame]
    interpreted: dict[str, Any]
    moves: dict[str, dict[str, Any]]
    extensions: pd.DataFrame | None
    cost: pd.DataFrame

    @cached_property
    def overall(self) -> pd.DataFrame:
        """Scores x sets."""
        return pd.DataFrame(self.evaluation["overall"]).astype(float)

    @cached_property
    def by_type(self) -> pd.DataFrame:
        """(set, cell_type) x scores."""
        sets = self.evaluation["by_type"].items()
        return pd.concat({name: pd.DataFrame.from_dict(rows, orient="index") for name, rows in sets}).astype(float)

    @cached_property
    def n_cells(self) -> pd.DataFrame:
        """Cells at hand: cell types x ``test``, ``train`` and the generated sets."""
        return pd.DataFrame.from_dict(self.evaluation["n_cells"], orient="index")

    @cached_property
    def n_compared(self) -> pd.DataFrame:
        """Cells compared at a time: cell types x ``test`` and the judged sets."""
        return pd.DataFrame.from_dict(self.evaluation["n_compared"], orient="index")

    @cached_property
    def verdict(self) -> Verdict:
        """Verdict on all generated cells."""
        return overall_verdict(self.overall, self.n_compared, QUERIES)

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Verdicts by cell type."""
        return verdicts_by_type(self.by_type, self.n_compared, QUERIES)

    @property
    def input(self) -> dict[str, Any] | None:
        """Numbers of cells and genes before :func:`bdm.data.prepare.prepare` chose among them; None if not recorded."""
        return json.loads(self.record["input"]) if "input" in self.record else None

    @property
    def sets(self) -> list[str]:
        """Judged sets, the floor first."""
        return [FLOOR, *(name for name in self.overall if name != FLOOR)]


def read_results(folder: Path) -> Results:
    """Read the folder of a data set.

    Raises
    ------
    InputError
        If something that a report needs is not there, or is damaged.
    """
    folder = Path(folder)
    for name, command in NEEDED.items():
        if not (folder / name).exists():
            raise InputError(f"{folder} has no {name}; make it by the workflow, or by {command}, and report then.")
    cells, model = read_prepared(folder / "prepared.h5ad", on_disk=True), load_model(folder / "model")
    interpreted = folder / "interpretation/interpretation.json"
    moves = sorted(folder.glob("transmutation/*/transmutation.json"))
    added = folder / "extension/extensions.csv"
    results = Results(
        name=folder.resolve().name,
        cells=cells.obs,
        genes=cells.var_names,
        record=dict(cells.uns["bdm"]),
        request=dict(read_cells(folder / "generated.h5ad", on_disk=True).uns.get("bdm", {})),
        model=model,
        trained=date.fromtimestamp((folder / "model/model.json").stat().st_mtime),
        evaluation=read_json(folder / "evaluation/evaluation.json"),
        gene_statistics=read_table(folder / "evaluation/genes.csv"),
        map=(folder / "evaluation/umap.png").read_bytes(),
        interpretation={
            path.stem: read_table(path)
            for path in map((folder / "interpretation").joinpath, ("branch_genes.csv", "agreement.csv"))
            if path.is_file()
        },
        interpreted=read_json(interpreted)["provenance"] if interpreted.is_file() else {},
        moves={path.parent.name: read_json(path) for path in moves},
        extensions=read_table(added) if added.is_file() else None,
        cost=read_cost(folder / "benchmarks"),
    )
    if QUERIES not in results.overall or FLOOR not in results.overall:
        raise InputError(f"{folder}/evaluation/evaluation.json has no cells named {QUERIES}; evaluate again.")
    if not results.gene_statistics["set"].value_counts().reindex(results.sets).eq(len(results.genes)).all():
        raise InputError(f"{folder}/evaluation/genes.csv does not have each gene of prepared.h5ad; evaluate again.")
    return results


def read_table(path: Path) -> pd.DataFrame:
    """Read a table in which names are text, also such as NA or 1."""
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); make it again.") from error
    return table.assign(**{column: numeric(table[column]) for column in table.columns.difference(TEXTS)})


def numeric(column: pd.Series) -> pd.Series:
    """Read numbers, and truth values as such; NaN where there is nothing."""
    values = {"": float("nan"), "True": 1, "False": 0}
    return pd.to_numeric(pd.Series([values.get(text, text) for text in column], column.index, dtype=object))


def read_cost(folder: Path) -> pd.DataFrame:
    """Read what Snakemake measured of each step: ``seconds``, ``megabytes``, in the order in which they were done.

    Of a step that several jobs did, seconds are summed, and the memory is that of the largest.
    """
    rows = []
    for path in sorted(folder.rglob("*.tsv"), key=lambda path: path.stat().st_mtime):
        step = path.stem if path.parent == folder else path.parent.name
        measured = pd.read_csv(path, sep="\t", na_values=["-"])
        rows.append({"step": step, "seconds": measured["s"].mean(), "megabytes": measured["max_rss"].mean()})
    table = pd.DataFrame(rows, columns=["step", "seconds", "megabytes"])
    return table.groupby("step", sort=False).agg({"seconds": "sum", "megabytes": "max"})
