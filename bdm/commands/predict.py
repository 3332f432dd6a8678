"""``bdm predict``: predict cells in another condition."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from bdm.commands.base import Ending, OutCells, Output, Summary
from bdm.settings import Counts, Labels, PredictedCondition, PredictedTypes, Seed

logger = logging.getLogger(__name__)


def predict(
    responses: Annotated[Path, "Folder made by bdm respond."],
    cells: Annotated[Path, "Cells to change, measured or generated, with raw counts."],
    out: OutCells,
    *,
    condition: PredictedCondition,
    cell_type: PredictedTypes = (),
    effects: Annotated[
        Path | None, Output, Ending(".csv"), "Table of log fold changes to write as well (.csv)."
    ] = None,
    counts: Counts = "auto",
    labels: Labels = None,
    seed: Seed = 0,
) -> Summary:
    """Change cells to another condition, one for one, as raw counts.

    The measured response of a cell type is used, or a predicted one if it was not measured.

    Example: bdm predict responses/ cells.h5ad predicted.h5ad --condition stim --cell-type "B cells"
    """
    from bdm._core.errors import at
    from bdm._core.files import atomic_write
    from bdm.applications.responses.predict import effects_of_cells, predict
    from bdm.applications.responses.responses import Responses
    from bdm.data.read import read_cells, rna_in

    with atomic_write(out) as path, nullcontext() if effects is None else atomic_write(effects) as table:
        loaded, given = Responses.load(responses), rna_in(read_cells(cells, labels=labels, counts=counts))
        with at(cells):
            predicted = predict(loaded, given, condition, cell_types=cell_type, counts=counts, seed=seed)
        predicted.write_h5ad(path, compression="gzip")
        if table is not None:
            effects_of_cells(loaded, given, condition, cell_types=cell_type, counts=counts).to_csv(
                table, index=False, float_format="%.4g"
            )
    number = predicted.obs["response"].value_counts()
    if condition != loaded.control and "predicted" in number:
        for warning in loaded.warnings(condition):
            logger.warning("%s", warning)
    facts = {
        "cells": f"{predicted.n_obs:,} in {condition}: response of their type measured in "
        f"{number.get('measured', 0):,}, predicted in {number.get('predicted', 0):,}",
        "error": predicted.uns["bdm"]["expected_error"],
    }
    return Summary((out, effects), facts)
