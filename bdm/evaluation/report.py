from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from bdm.data.symbols import GeneNames
from bdm.evaluation.cells import SET_NAMES, match
from bdm.evaluation.evaluate import Evaluation
from bdm.evaluation.genes import gene_statistics
from bdm.evaluation.verdict import overall_verdict, verdicts_by_type
from bdm.files import write_json


def write_report(folder: Path, evaluation: Evaluation, names: GeneNames, *, provenance: dict[str, Any]) -> None:
    """Write ``evaluation.json`` (all scores), ``overall.csv``, ``by_type.csv`` and ``genes.csv``."""
    content = {
        "provenance": provenance,
        "n_cells": by_row(evaluation.n_cells),
        "n_compared": by_row(evaluation.n_compared),
        "bounds": asdict(evaluation.bounds),
        "overall": by_row(evaluation.overall.T),
        "by_type": {name: by_row(evaluation.by_type.loc[name]) for name in evaluation.overall},
    }
    write_json(folder / "evaluation.json", content)
    evaluation.overall.to_csv(folder / "overall.csv", index_label="metric", float_format="%.6g")
    rows_by_type(evaluation).to_csv(folder / "by_type.csv", index=False, float_format="%.6g")
    names.with_symbols(gene_rows(evaluation, names.index)).to_csv(
        folder / "genes.csv", index=False, float_format="%.4g"
    )


def by_row(table: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Turn a table into nested dictionaries, row by row, with None for NaN."""
    return dict(table.astype(object).where(table.notna(), None).to_dict(orient="index"))


def rows_by_type(evaluation: Evaluation) -> pd.DataFrame:
    """List the scores by type in one row for each type and set; those of types not judged are empty."""
    index = pd.MultiIndex.from_product([evaluation.n_cells.index, evaluation.overall], names=["cell_type", "set"])
    scores = evaluation.by_type.swaplevel().reindex(index)
    numbers = evaluation.n_cells[["test", "train"]].add_prefix("n_")
    rows = scores.reset_index().join(numbers, on="cell_type")
    return rows[["cell_type", *numbers, "set", *scores]]


def gene_rows(evaluation: Evaluation, genes: pd.Index) -> pd.DataFrame:
    """List statistics of each gene in each judged set, and in as many test cells; those of the last draw of cells."""
    tables = []
    for name, cells in evaluation.judged.items():
        matched = match(cells, evaluation.test, seed=evaluation.seed)
        columns = {"set": name, "gene": genes}
        for statistic, agreement in vars(gene_statistics(matched.judged, matched.test)).items():
            columns |= {statistic: agreement.judged, f"{statistic}_test": agreement.test}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def summary(evaluation: Evaluation) -> str:
    """Write the overall scores as a table for the eye."""
    return str(evaluation.overall.rename(columns=SET_NAMES).to_string(float_format="{:.3f}".format))


def verdict_lines(evaluation: Evaluation, name: str) -> list[str]:
    """Verdict on a set, overall and by type."""
    tables = evaluation.by_type, evaluation.n_compared
    verdicts = verdicts_by_type(*tables, name)
    lines = [f"{overall_verdict(evaluation.overall, evaluation.n_compared, name).told}"]
    for short in dict.fromkeys(verdict.short for verdict in sorted(verdicts.values(), key=lambda of: of.grade)):
        types = [cell_type for cell_type, verdict in verdicts.items() if verdict.short == short]
        others = f" and {len(types) - 5} more" if len(types) > 5 else ""
        lines.append(f"{short}: {', '.join(types[:5])}{others}")
    return lines
