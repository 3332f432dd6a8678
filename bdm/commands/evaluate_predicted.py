"""``bdm evaluate-predicted``: compare predicted cells of a condition with real cells."""

import logging
from pathlib import Path
from typing import Annotated

from bdm.commands.base import Holding, OutFolder, Summary
from bdm.settings import PredictedEvaluationSettings, Seed

logger = logging.getLogger(__name__)


def evaluate_predicted(
    control: Annotated[Path, "Real cells without the condition."],
    real: Annotated[Path, "Real cells in the condition, which the method did not see."],
    predicted: Annotated[Path, "Predicted cells in the condition, of any method."],
    out: Annotated[OutFolder, Holding("predicted.json")],
    *,
    settings: PredictedEvaluationSettings,
    seed: Seed = 0,
) -> Summary:
    """Compare predicted cells of a condition with real and unchanged cells.

    Cells may be predicted by any method; unchanged cells are the control. X of each file has raw counts, or
    log-normalised values.

    Example: bdm evaluate-predicted control.h5ad stimulated.h5ad predicted.h5ad evaluation --label-key cell_type
    """
    from bdm._core.files import sha256
    from bdm.data.read import read_cells
    from bdm.evaluation.predicted import evaluate_predicted
    from bdm.pl import write_result

    files = {"control": control, "real": real, "predicted": predicted}
    cells = {name: read_cells(file) for name, file in files.items()}
    evaluation = evaluate_predicted(**cells, settings=settings, seed=seed)
    write_result(out, evaluation, {name: sha256(file) for name, file in files.items()})
    logger.info(str(evaluation))
    return Summary({"predicted": evaluation.verdict})
