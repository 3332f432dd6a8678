"""``bdm evaluate``: compare generated cells with held-out test cells."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from bdm._core.errors import InputError
from bdm.commands.base import Holding, Model, OutFolder, Summary
from bdm.settings import EvaluationSettings, InputKeys, Seed

logger = logging.getLogger(__name__)
FittedModel = Annotated[
    Path | None, Model, "Model that was fitted on the cells, if these were not made by bdm prepare."
]
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
    from bdm.evaluation.evaluate import evaluate, score_text, verdict_lines
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
    logger.info(score_text(evaluation.overall))
    return Summary({name: "\n".join(verdict_lines(evaluation, name)) for name in sets})


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
