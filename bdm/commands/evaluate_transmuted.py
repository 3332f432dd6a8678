"""``bdm evaluate-transmuted``: compare transmuted cells with held-out cells of their new type."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from bdm._core.errors import InputError
from bdm.commands.base import Holding, OutFolder, Summary
from bdm.commands.evaluate import Compare, FittedModel, named_files
from bdm.settings import InputKeys, Seed

logger = logging.getLogger(__name__)


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
    from bdm.applications.transmutation import evaluate_transmuted as transmutation
    from bdm.data.cell_sets import read_counts, read_real_cells
    from bdm.data.cells import TRANSMUTED, Cells
    from bdm.data.read import read_cells
    from bdm.model.match import population_assigner, read_fitted_cells, real_cells_for
    from bdm.model.model import checksums, load_model
    from bdm.pl import write_result

    files = named_files(TRANSMUTED, transmuted, compare)
    if model is None:
        for name, value in {"test_cells": test_cells, **vars(keys)}.items():
            if value is not None:
                raise InputError(f"`{name}=` is used with a model only; give `model=` too.")
        real, before, populations = read_real_cells(cells), read_counts(cells), None
    else:
        loaded = load_model(model)
        before = read_fitted_cells(cells, loaded, keys)
        real, populations = real_cells_for(loaded, before, test_cells, keys), population_assigner(loaded)
    sets, targets, records = {}, [], {}
    for name, file in files.items():
        stored = read_cells(file)
        after, rows = transmutation.check_transmuted(stored, before.obs_names, real, names=(str(file), str(cells)))
        sets[name] = transmutation.TransmutedCells(after, Cells.from_anndata(before[rows]))
        targets.append(transmutation.read_target(stored, str(file)))
        records[name] = transmutation.transmutation_record(stored)
    if len(names := {cell_type for cell_type, _ in targets}) > 1:
        raise InputError(
            f"Cells were transmuted to different types ({', '.join(sorted(names))}); evaluate one type at a time."
        )
    real, to = transmutation.relabel(real, *targets[0], populations)
    evaluation = transmutation.evaluate_transmutation(real, sets, to, seed=seed)
    evaluation = replace(evaluation, provenance=evaluation.provenance | {"transmuted": records})
    write_result(out, evaluation, checksums({"prepared": cells, "test_cells": test_cells, **files}, model=model))
    logger.info(repr(evaluation))
    return Summary({name: evaluation.verdict(name).text for name in sets})
