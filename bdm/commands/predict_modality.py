"""``bdm predict-modality``: predict proteins or peaks of cells from their RNA."""

from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from bdm.commands.base import ModelFolder, OutCells, Summary
from bdm.settings import InputKeys, Samples, Seed


def predict_modality(
    model: ModelFolder,
    cells: Annotated[Path, "Cells with raw counts of RNA, in any format that prepare reads."],
    out: OutCells,
    *,
    modality: Annotated[str, MinLen(1), "Modality of the model to predict, such as `prot`."] = "prot",
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
    from bdm._core.errors import error_prefix
    from bdm.data.matrix import write_h5ad
    from bdm.generation import modality as modalities
    from bdm.model.match import cells_for
    from bdm.model.model import checksums, load_model

    loaded = load_model(model)
    target = modalities.find_modality(loaded, modality)
    with error_prefix(cells):
        request = modalities.match_request(cells_for(cells, loaded, keys, on_disk=False), loaded, keys)
    predicted = modalities.predict_modality(loaded, request, target, n_samples=n_samples, seed=seed)
    sha256 = checksums({"cells": cells}, model=model)
    predicted.uns["bdm"] |= {f"{name}_sha256": checksum for name, checksum in sha256.items()}
    write_h5ad(out, predicted)
    types = "by their types" if request.cell_type is not None else "of any type"
    return Summary({"cells": f"{predicted.n_obs:,} {types} x {predicted.n_vars:,} features of {target.name}"})
