"""``bdm predict-modality``: predict proteins or peaks of cells from their RNA."""

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, MinLen

from bdm.commands.base import ModelFolder, OutCells, Summary
from bdm.settings import InputKeys, Seed

Name = Annotated[str, MinLen(1), "Modality of the model to predict, such as `prot`."]
Samples = Annotated[int, Ge(20), "Samples of each cell, from which the interval is computed."]


def predict_modality(
    model: ModelFolder,
    cells: Annotated[Path, "Cells with raw counts of RNA, in any format that prepare reads."],
    out: OutCells,
    *,
    modality: Name = "prot",
    n_samples: Samples = 200,
    keys: InputKeys,
    seed: Seed = 0,
) -> Summary:
    """Predict proteins or peaks of cells from their RNA.

    Writes means and 90% intervals; the model must be fitted to both modalities. Cell types are used if the cells have
    them in the model's column; otherwise, all types are possible. If the model has covariates, cells need values of
    them.

    Example: bdm predict-modality model/ rna.h5ad proteins.h5ad --modality prot
    """
    from bdm._core.errors import at
    from bdm._core.files import atomic_write
    from bdm.data.matrix import write_h5ad
    from bdm.generation.modality import modality_named, question_of
    from bdm.generation.modality import predict_modality as predict
    from bdm.model.match import cells_for
    from bdm.model.model import checksums, load_model

    with atomic_write(out) as path:
        loaded = load_model(model)
        chosen = modality_named(loaded, modality)
        with at(cells):
            question = question_of(cells_for(cells, loaded, keys, on_disk=False), loaded, keys)
        predicted = predict(loaded, question, chosen, n_samples=n_samples, seed=seed)
        made_from = checksums({"cells": cells}, model=model)
        predicted.uns["bdm"] |= {f"{name}_sha256": checksum for name, checksum in made_from.items()}
        write_h5ad(path, predicted)
    types = "by their types" if question.cell_type is not None else "of any type"
    return Summary((out,), {"cells": f"{predicted.n_obs:,} {types} x {predicted.n_vars:,} features of {chosen.name}"})
