"""``bdm evaluate``: compare generated cells with held-out test cells."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from bdm._core.errors import InputError
from bdm.commands.base import Compare, HeldOutCells, OfModel, OutFolder, Summary
from bdm.settings import EvaluationSettings, InputKeys, Seed

logger = logging.getLogger(__name__)


def evaluate(
    cells: Annotated[
        Path,
        "Training cells, and test cells, which the column split of obs marks by test: made by bdm prepare, or any; "
        "with --model, the cells that the model was fitted on.",
    ],
    generated: Annotated[Path, "Generated cells of any method, the set generated of tables."],
    out: OutFolder,
    *,
    compare: Compare = (),
    model: OfModel = None,
    test_cells: HeldOutCells = None,
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
    from bdm._core.files import atomic_write
    from bdm.data.cell_sets import read_generated, read_real_cells
    from bdm.data.cells import GENERATED
    from bdm.evaluation.evaluate import evaluate as evaluate_cells
    from bdm.evaluation.evaluate import score_table, verdict_lines
    from bdm.model.match import populations_by, read_real_cells_for
    from bdm.model.model import checksums, load_model
    from bdm.pl import write_result

    files = named_files(GENERATED, generated, compare)
    with atomic_write(out, folder_of="evaluation.json") as folder:
        if model is None:
            real, populations = read_real_cells(cells, test_cells, keys, on_disk=True), None
        else:
            loaded = load_model(model)
            real, populations = read_real_cells_for(loaded, cells, test_cells, keys), populations_by(loaded)
            keys = replace(keys, batch_key=keys.batch_key or loaded.preparation["batch_key"])
        sets = {name: read_generated(file, real, keys, on_disk=True) for name, file in files.items()}
        evaluation = evaluate_cells(real, sets, settings, populations=populations, seed=seed)
        hashes = checksums({"prepared": cells, "test_cells": test_cells, **files}, model=model)
        write_result(folder, evaluation, hashes)
    logger.info(score_table(evaluation.overall))
    facts = {name: "\n".join(verdict_lines(evaluation, name)) for name in sets}
    return Summary((out,), facts)


def check_used(model: Path | None, test_cells: Path | None, keys: InputKeys) -> None:
    """Reject options for unprepared cells if no model is given."""
    given = {"test_cells": test_cells, **vars(keys)}
    unused = next((name for name, value in given.items() if value is not None), None)
    if model is None and unused:
        raise InputError(f"`{unused}=` is used with a model only; give `model=` too.")


def named_files(name: str, file: Path, compare: Sequence[str]) -> dict[str, Path]:
    """Return the files to evaluate by name: ``file``, and ``compare`` (NAME=FILE)."""
    from bdm.data.cells import RESERVED_SET_NAMES

    files = {name: file}
    for item in compare:
        other, separator, path = item.partition("=")
        if not (other and separator and path):
            raise InputError(f"--compare {item} is not of the form NAME=FILE.")
        if other in RESERVED_SET_NAMES or other in files:
            raise InputError(f"--compare {item}: the name {other} is taken; choose another.")
        files[other] = Path(path)
    return files
