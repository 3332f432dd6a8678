"""``bdm respond``, ``bdm predict`` and ``bdm evaluate-predicted``: responses of cell types to conditions."""

import logging
from pathlib import Path
from typing import Annotated

from bdm._core.errors import at, counted
from bdm._core.schema import Unset
from bdm.commands.base import Ending, Holding, OutCells, OutFolder, Output, Summary, reading_alike
from bdm.settings import (
    Counts,
    Labels,
    PredictedCondition,
    PredictedEvaluationSettings,
    PredictedTypes,
    ResponseSettings,
    Seed,
)

logger = logging.getLogger(__name__)

N_SHOWN = 5  # conditions whose errors are printed


def respond(
    data: Annotated[Path, "Cells of two conditions or more, with raw counts."],
    out: Annotated[OutFolder, Holding("responses.json")],
    *,
    labels: Labels = None,
    tree: Annotated[
        Path | None,
        "Your own tree of cell types: nested lists in `.json`, or Newick in `.nwk`.",
        Unset("average linkage of the control profiles"),
    ] = None,
    settings: ResponseSettings,
) -> Summary:
    """Measure how cell types respond to conditions, and test predictions.

    The test predicts each measured type with its response left out. Writes tables (.csv), figures (.png), and the
    fitted responses for bdm predict.

    Example: bdm respond cells.h5ad responses/ --condition-key condition --control ctrl
    """
    from bdm.applications.relations.respond import respond
    from bdm.data.read import read_cells
    from bdm.hierarchy.files import read_tree
    from bdm.pl import write_result

    cells = read_cells(data, labels=labels, counts=settings.counts)
    clade = None if tree is None else read_tree(tree)
    with at(data):
        responses = respond(cells, settings, tree=clade)
    del cells  # free memory for writing
    write_result(out, responses)
    for condition in responses.conditions:
        for warning in responses.warnings(condition):
            logger.warning("%s", warning)
    measured, conditions = responses.measured, responses.conditions
    sentences = [responses.sentence(condition) for condition in conditions[:N_SHOWN]]
    if len(conditions) > N_SHOWN:
        sentences.append(f"{counted(len(conditions) - N_SHOWN, 'more condition')}: see {out / 'errors.csv'}")
    facts = {
        "responses": f"of {counted(len(responses.genes), 'gene')} in {counted(len(measured), 'type')}, "
        f"{int(measured.to_numpy().sum())} of {measured.size} combinations measured",
        "error": "\n".join(sentences),
    }
    condition, cell_type = responses.next_prediction()
    then = ("bdm", "predict", out, data, "predicted.h5ad", "--condition", condition, "--cell-type", cell_type)
    return Summary(facts, then=(*then, *reading_alike(labels, settings.counts)))


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
    from bdm.applications.relations.predict import cells_to_change
    from bdm.applications.relations.responses import Responses
    from bdm.data.read import read_cells, rna_in

    fitted, adata = Responses.load(responses), rna_in(read_cells(cells, labels=labels, counts=counts))
    with at(cells):
        chosen = cells_to_change(fitted, adata, condition, cell_type, counts=counts)
        predicted = chosen.predict(seed=seed)
    predicted.write_h5ad(out, compression="gzip")
    if effects is not None:
        chosen.effects().to_csv(effects, index=False, float_format="%.4g")
    number = predicted.obs["response"].value_counts()
    if condition != fitted.control and "predicted" in number:
        for warning in fitted.warnings(condition):
            logger.warning("%s", warning)
    facts = {
        "cells": f"{predicted.n_obs:,} in {condition}: response of their type measured in "
        f"{number.get('measured', 0):,}, predicted in {number.get('predicted', 0):,}",
        "error": predicted.uns["bdm"]["expected_error"],
    }
    return Summary(facts)


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
