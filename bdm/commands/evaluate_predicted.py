"""``bdm evaluate-predicted``: compare predicted cells of a condition with real cells."""

import logging
from pathlib import Path
from typing import Annotated

from bdm.commands.base import OutFolder, Summary
from bdm.settings import PredictedEvaluationSettings, Seed

logger = logging.getLogger(__name__)


def evaluate_predicted(
    control: Annotated[Path, "Real cells without the condition."],
    real: Annotated[Path, "Real cells in the condition, which the method did not see."],
    predicted: Annotated[Path, "Predicted cells in the condition, of any method."],
    out: OutFolder,
    *,
    settings: PredictedEvaluationSettings,
    seed: Seed = 0,
) -> Summary:
    """Compare predicted cells of a condition with real and unchanged cells.

    Cells may be predicted by any method; unchanged cells are the control. X of each file has raw counts, or
    log-normalised values.

    Example: bdm evaluate-predicted control.h5ad stimulated.h5ad predicted.h5ad evaluation --label-key cell_type
    """
    from bdm._core.files import atomic_write, sha256
    from bdm.data.read import read_cells
    from bdm.evaluation import predicted as evaluation_of
    from bdm.pl import write_result

    files = {"control": control, "real": real, "predicted": predicted}
    with atomic_write(out, folder_of=f"{evaluation_of.PredictedEvaluation.kind}.json") as folder:
        cells = {name: read_cells(file) for name, file in files.items()}
        evaluation = evaluation_of.evaluate_predicted(**cells, settings=settings, seed=seed)
        write_result(folder, evaluation, {name: sha256(file) for name, file in files.items()})
    logger.info(str(evaluation))
    return Summary((out,), {"predicted": evaluation.verdict})
