"""``bdm respond``: measure and predict how cell types respond to conditions."""

from pathlib import Path
from typing import Annotated

from bdm._core.errors import counted, error_prefix
from bdm._core.schema import Unset
from bdm.commands.base import Holding, Labels, OutFolder, Summary, reading_alike
from bdm.settings import ResponseSettings

N_SHOWN = 5  # sentences about errors that are printed


def respond(
    data: Annotated[Path, "Cells of two conditions or more, with raw counts."],
    out: Annotated[OutFolder, Holding("responses.json")],
    *,
    labels: Labels = None,
    condition_features: Annotated[
        Path | None,
        "Table of features (`.csv`): perturbations as rows, measured or not, and numbers as columns.",
        Unset("no features"),
    ] = None,
    settings: ResponseSettings,
) -> Summary:
    """Measure how cell types respond to conditions, and test predictions.

    The test predicts each measured type with its response left out. Features, doses or combinations relate
    conditions: then bdm predict also accepts conditions that no cell has, and the test leaves out each condition, too.
    Writes tables (.csv), figures (.png), and the fitted responses for bdm predict.

    Example: bdm respond cells.h5ad responses/ --condition-key condition --control ctrl
    """
    from bdm.applications.relations.related_conditions import read_features
    from bdm.applications.relations.respond import respond
    from bdm.data.read import read_cells
    from bdm.pl import write_result

    cells = read_cells(data, labels=labels, counts=settings.counts)
    features = None if condition_features is None else read_features(condition_features)
    with error_prefix(data):
        responses = respond(cells, settings, features=features)
    del cells  # free memory for writing
    write_result(out, responses)
    measured, sentences = responses.measured, responses.sentences()
    shown = sentences[:N_SHOWN]
    if others := len(sentences) - len(shown):
        shown.append(f"{counted(others, 'more condition')}: see {out / 'errors.csv'}")
    facts = {
        "responses": f"of {counted(len(responses.genes), 'gene')}, measured in {int(measured.to_numpy().sum())} of "
        f"{measured.size} pairs of type and condition",
        "error": "\n".join(shown),
    }
    condition, cell_type = responses.next_prediction()
    then = ("bdm", "predict", out, data, "predicted.h5ad", "--condition", condition, "--cell-type", cell_type)
    return Summary(facts, then=(*then, *reading_alike(labels, settings.counts)))
