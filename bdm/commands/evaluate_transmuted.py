"""``bdm evaluate-transmuted``: compare transmuted cells with held-out cells of their new type."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bdm._core.errors import InputError
from bdm.commands.base import Compare, OfModel, OutFolder, Summary, TestCells
from bdm.commands.evaluate import check_used, named_files
from bdm.settings import InputKeys, Seed

if TYPE_CHECKING:
    from bdm.applications.transmutation.evaluate_transmuted import Target

logger = logging.getLogger(__name__)


def evaluate_transmuted(
    cells: Annotated[
        Path, "Cells that were transmuted, training and test cells: made by bdm prepare; with --model, any."
    ],
    transmuted: Annotated[Path, "Cells made by bdm transmute, the set transmuted of tables."],
    out: OutFolder,
    *,
    compare: Compare = (),
    model: OfModel = None,
    test_cells: TestCells = None,
    keys: InputKeys,
    seed: Seed = 0,
) -> Summary:
    """Compare transmuted cells with held-out cells of their new type.

    The same cells before transmutation are scored as well (unchanged).

    Example: bdm evaluate-transmuted prepared.h5ad transmuted.h5ad transmutation --compare flat=flat.h5ad
    """
    from bdm._core.files import atomic_write
    from bdm.applications.transmutation.evaluate_transmuted import evaluate_transmutation, read_transmuted, relabel
    from bdm.data.cell_sets import read_counts, read_real_cells
    from bdm.data.cells import TRANSMUTED
    from bdm.model.match import populations_by, read_fitted_cells, real_cells_for
    from bdm.model.model import checksums, load_model
    from bdm.pl import write_result

    check_used(model, test_cells, keys)
    files = named_files(TRANSMUTED, transmuted, compare)
    with atomic_write(out, folder_of="transmutation.json") as folder:
        if model is None:
            real, before, populations = read_real_cells(cells), read_counts(cells), None
        else:
            loaded = load_model(model)
            before = read_fitted_cells(cells, loaded, keys)
            real, populations = real_cells_for(loaded, before, test_cells, keys), populations_by(loaded)
        read = {name: read_transmuted(file, cells, before, real) for name, file in files.items()}
        real, to = relabel(real, one_type([file.to for file in read.values()]), populations)
        evaluation = evaluate_transmutation(real, {name: file.cells for name, file in read.items()}, to, seed=seed)
        records = {name: file.record for name, file in read.items()}
        evaluation = replace(evaluation, provenance=evaluation.provenance | {"transmuted": records})
        hashes = checksums({"prepared": cells, "test_cells": test_cells, **files}, model=model)
        write_result(folder, evaluation, hashes)
    logger.info(repr(evaluation))
    return Summary((out,))


def one_type(new_types: "Sequence[Target]") -> "Target":
    """Return the target of the files; reject files with different cell types."""
    if len(names := {new.cell_type for new in new_types}) > 1:
        raise InputError(
            f"Cells were transmuted to different types ({', '.join(sorted(names))}); evaluate one type at a time."
        )
    return new_types[0]
