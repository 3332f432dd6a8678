from pathlib import Path
from typing import Any

from bdm.evaluation.report import by_row
from bdm.files import write_json
from bdm.transmutation.evaluate import TransmutationEvaluation


def write_report(folder: Path, evaluation: TransmutationEvaluation, *, provenance: dict[str, Any]) -> None:
    """Write ``transmutation.json`` (everything) and ``scores.csv``."""
    content = {
        "provenance": provenance,
        "to": evaluation.to,
        "scores": {name: by_row(evaluation.table.loc[name]) for name in evaluation.original_types},
    }
    write_json(folder / "transmutation.json", content)
    evaluation.table.to_csv(folder / "scores.csv", float_format="%.6g")


def summary(evaluation: TransmutationEvaluation) -> str:
    """Tell the scores as a table for the eye."""
    table = evaluation.table.to_string(float_format="{:.3f}".format)
    return f"Moved to {evaluation.to}:\n{table}"
