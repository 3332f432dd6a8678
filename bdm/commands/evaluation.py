"""``bdm evaluate``, ``bdm evaluate-transmuted``, ``bdm interpret`` and ``bdm report``: scores and their report."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bdm._core.errors import InputError, counted
from bdm.commands.base import Holding, ModelFolder, OutFile, OutFolder, Summary
from bdm.settings import EvaluationSettings, InputKeys, InterpretationSettings, Seed

if TYPE_CHECKING:
    from bdm.applications.transmutation.evaluate_transmuted import Target

logger = logging.getLogger(__name__)

FittedModel = Annotated[Path | None, "Model that was fitted on the cells, if these were not made by bdm prepare."]
Compare = Annotated[tuple[str, ...], "Other cells to evaluate in the same way, as NAME=FILE."]


def evaluate(
    cells: Annotated[
        Path,
        "Training cells, and test cells, which the column split of obs marks by test: made by bdm prepare, or any; "
        "with --model, the cells that the model was fitted on.",
    ],
    generated: Annotated[Path, "Generated cells of any method, the set generated of tables."],
    out: Annotated[OutFolder, Holding("evaluation.json")],
    *,
    compare: Compare = (),
    model: FittedModel = None,
    test_cells: Annotated[Path | None, "Test cells, which no method was fitted on, in a file of their own."] = None,
    keys: InputKeys,
    settings: EvaluationSettings,
    seed: Seed = 0,
) -> Summary:
    """Compare generated cells of any method with held-out test cells.

    Training cells, scored the same way, are the floor. Each comparison samples at most 20,000 cells of a set;
    n_cells.csv has the numbers of each type.

    Example: bdm evaluate prepared.h5ad generated.h5ad evaluation --model model/ --compare flat=flat.h5ad

    Example: bdm evaluate train.h5ad simulated.h5ad evaluation --test-cells test.h5ad --label-key annotation

    Example: bdm evaluate cells.h5ad generated.h5ad evaluation --model model/ --test-cells held_out.h5ad
    """
    from bdm.data.cell_sets import read_generated, read_real_cells
    from bdm.data.cells import GENERATED
    from bdm.evaluation.evaluate import evaluate, score_table, verdict_lines
    from bdm.model.match import population_assigner, read_real_cells_for
    from bdm.model.model import checksums, load_model
    from bdm.pl import write_result

    files = named_files(GENERATED, generated, compare)
    if model is None:
        real, populations = read_real_cells(cells, test_cells, keys, on_disk=True), None
    else:
        loaded = load_model(model)
        real, populations = read_real_cells_for(loaded, cells, test_cells, keys), population_assigner(loaded)
        keys = replace(keys, batch_key=keys.batch_key or loaded.preparation["batch_key"])
    sets = {name: read_generated(file, real, keys, on_disk=True) for name, file in files.items()}
    evaluation = evaluate(real, sets, settings, populations=populations, seed=seed)
    write_result(out, evaluation, checksums({"prepared": cells, "test_cells": test_cells, **files}, model=model))
    logger.info(score_table(evaluation.overall))
    return Summary({name: "\n".join(verdict_lines(evaluation, name)) for name in sets})


def evaluate_transmuted(
    cells: Annotated[
        Path, "Cells that were transmuted, training and test cells: made by bdm prepare; with --model, any."
    ],
    transmuted: Annotated[Path, "Cells made by bdm transmute, the set transmuted of tables."],
    out: Annotated[OutFolder, Holding("transmutation.json")],
    *,
    compare: Compare = (),
    model: FittedModel = None,
    test_cells: Annotated[Path | None, "Test cells, which the model was not fitted on; needs --model."] = None,
    keys: InputKeys,
    seed: Seed = 0,
) -> Summary:
    """Compare transmuted cells with held-out cells of their new type.

    The same cells before transmutation are scored as well (unchanged).

    Example: bdm evaluate-transmuted prepared.h5ad transmuted.h5ad transmutation --compare flat=flat.h5ad
    """
    from bdm.applications.transmutation.evaluate_transmuted import evaluate_transmutation, read_transmuted, relabel
    from bdm.data.cell_sets import read_counts, read_real_cells
    from bdm.data.cells import TRANSMUTED
    from bdm.model.match import population_assigner, read_fitted_cells, real_cells_for
    from bdm.model.model import checksums, load_model
    from bdm.pl import write_result

    files = named_files(TRANSMUTED, transmuted, compare)
    if model is None:
        require_model(test_cells=test_cells, **vars(keys))
        real, before, populations = read_real_cells(cells), read_counts(cells), None
    else:
        loaded = load_model(model)
        before = read_fitted_cells(cells, loaded, keys)
        real, populations = real_cells_for(loaded, before, test_cells, keys), population_assigner(loaded)
    read = {name: read_transmuted(file, cells, before, real) for name, file in files.items()}
    real, to = relabel(real, single_target([file.to for file in read.values()]), populations)
    evaluation = evaluate_transmutation(real, {name: file.cells for name, file in read.items()}, to, seed=seed)
    records = {name: file.record for name, file in read.items()}
    evaluation = replace(evaluation, provenance=evaluation.provenance | {"transmuted": records})
    write_result(out, evaluation, checksums({"prepared": cells, "test_cells": test_cells, **files}, model=model))
    logger.info(repr(evaluation))
    return Summary()


def interpret(
    model: ModelFolder,
    cells: Annotated[Path, "Cells that the model was fitted on, with test cells if any: made by bdm prepare, or raw."],
    generated: Annotated[Path, "Cells made by bdm generate (.h5ad)."],
    out: Annotated[OutFolder, Holding("interpretation.json")],
    *,
    settings: InterpretationSettings,
    keys: InputKeys,
    seed: Seed = 0,
) -> Summary:
    """Find marker genes of each branch, and compare them with held-out cells.

    Writes tables (.csv), figures (.png), and all results for scanpy (branches.h5ad).

    Example: bdm interpret model/ prepared.h5ad generated.h5ad interpretation/
    """
    from bdm.interpretation.interpret import interpret, read_inputs
    from bdm.interpretation.interpretation import agreement_summary
    from bdm.model.model import checksums
    from bdm.pl import write_result

    interpretation = interpret(read_inputs(model, cells, generated, keys, seed=seed), settings, seed=seed)
    write_result(out, interpretation, checksums({"prepared": cells, "generated": generated}, model=model))
    if not interpretation.nodes:
        return Summary({"tree": "one population, without nodes whose branches could be compared"})
    logger.info("%s", agreement_summary(interpretation))
    n_nodes = counted(len(interpretation.nodes), "node")
    return Summary({"tree": f"{n_nodes}; branch_genes.png shows the marker genes of each branch"})


def report(
    results: Annotated[Path, "Folder of a data set's results, as the workflow makes it."], out: OutFile
) -> Summary:
    """Write a report as one page for the browser (.html).

    It shows how realistic the cells are, and how they were made.

    Example: bdm report results/blood report.html
    """
    from bdm._core.store import reject_if_damaged
    from bdm.report.page import report_page
    from bdm.report.summaries import read_results

    with reject_if_damaged(results):
        summaries = read_results(results)
        out.write_text(report_page(summaries), encoding="utf-8")
    return Summary({"verdict": summaries.verdict.text})


def require_model(**values: Path | str | None) -> None:
    """Reject options that are used with a model only."""
    unused = next((name for name, value in values.items() if value is not None), None)
    if unused is not None:
        raise InputError(f"`{unused}=` is used with a model only; give `model=` too.")


def named_files(name: str, file: Path, compare: Sequence[str]) -> dict[str, Path]:
    """Return the files to evaluate by name: ``file``, and ``compare`` (NAME=FILE)."""
    from bdm.data.cells import RESERVED_SET_NAMES

    files = {name: file}
    for item in compare:
        set_name, separator, path = item.partition("=")
        if not (set_name and separator and path):
            raise InputError(f"--compare {item} is not of the form NAME=FILE.")
        if set_name in RESERVED_SET_NAMES or set_name in files:
            raise InputError(f"--compare {item}: the name {set_name} is taken; choose another.")
        files[set_name] = Path(path)
    return files


def single_target(targets: "Sequence[Target]") -> "Target":
    """Return the target of the files; reject files with different cell types."""
    if len(names := {target.cell_type for target in targets}) > 1:
        raise InputError(
            f"Cells were transmuted to different types ({', '.join(sorted(names))}); evaluate one type at a time."
        )
    return targets[0]
