"""``bdm predict``: predict cells in another condition."""

from pathlib import Path
from typing import Annotated

from annotated_types import Gt, MinLen

from bdm._core.errors import abbreviated, error_prefix
from bdm._core.schema import Unset
from bdm.commands.base import Ending, Labels, OutCells, Output, Summary
from bdm.settings import Counts, Seed


def predict(
    responses: Annotated[Path, "Folder made by bdm respond."],
    cells: Annotated[Path, "Cells to change, measured or generated, with raw counts."],
    out: OutCells,
    *,
    condition: Annotated[
        tuple[str, ...],
        MinLen(1),
        "New condition of control cells, measured or related to measured ones; or the control, to change other cells "
        "back.",
    ],
    dose: Annotated[float | None, Gt(0), "Dose in the new condition.", Unset("no dose")] = None,
    cell_type: Annotated[tuple[str, ...], "Cell types to change.", Unset("all")] = (),
    extrapolate: Annotated[bool, "Also predict doses, and numbers among features, beyond the measured ones."] = False,
    effects: Annotated[
        Path | None, Output, Ending(".csv"), "Table of log fold changes to write as well (.csv)."
    ] = None,
    counts: Counts = "auto",
    labels: Labels = None,
    seed: Seed = 0,
) -> Summary:
    """Change cells to another condition, one for one, as raw counts.

    The measured response of a cell type is used, or a predicted one if it was not measured. The condition may be a row
    of the table of features, a combination of known perturbations, or a perturbation with another dose. With several
    conditions, cells are changed to each, and the name of a cell ends with its condition.

    Example: bdm predict responses/ cells.h5ad predicted.h5ad --condition stim --cell-type "B cells"
    """
    import pandas as pd

    from bdm._core.files import write_table
    from bdm.applications.relations.predict import cells_to_change, predict_each
    from bdm.applications.relations.responses import Responses
    from bdm.data.matrix import write_h5ad
    from bdm.data.read import read_cells, rna_in

    fitted, adata = Responses.load(responses), rna_in(read_cells(cells, labels=labels, counts=counts))
    with error_prefix(cells):
        chosen = [
            cells_to_change(fitted, adata, name, cell_type, dose=dose, extrapolate=extrapolate, counts=counts)
            for name in dict.fromkeys(condition)
        ]
        predicted = predict_each(chosen, seed=seed)
    write_h5ad(out, predicted)
    if effects is not None:
        write_table(pd.concat([each.effects() for each in chosen]), effects, digits=4)
    number, names = predicted.obs["response"].value_counts(), abbreviated([each.condition for each in chosen])
    facts = {
        "cells": f"{predicted.n_obs:,} in {names}: response of their type measured in "
        f"{number.get('measured', 0):,}, predicted in {number.get('predicted', 0):,}",
        "error": predicted.uns["bdm"]["expected_error"],
    }
    return Summary(facts)
