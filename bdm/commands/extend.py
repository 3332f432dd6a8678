"""``bdm extend``: add new cell types to a model."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from bdm._core.schema import Unset
from bdm.commands.base import Holding, ModelFolder, OutModel, Output, Summary
from bdm.commands.train import generating
from bdm.settings import InputKeys, Seed


def extend(
    model: ModelFolder,
    cells: Annotated[Path, "Cells with the new types, with raw counts."],
    out: OutModel,
    *,
    cell_type: Annotated[tuple[str, ...], "Cell types to add.", Unset("all new types")] = (),
    keys: InputKeys,
    missing_as_zero: Annotated[bool, "Treat missing genes as not expressed."] = False,
    known: Annotated[Path | None, "Cells that the model was fitted on, made by bdm prepare."] = None,
    joined: Annotated[
        Path | None, Output, "File of prepared cells to write: the known ones, if given, and the new."
    ] = None,
    report: Annotated[
        Path | None, Output, Holding("extension_report.json"), "Folder of tables and figures to write."
    ] = None,
    seed: Seed = 0,
) -> Summary:
    """Add cell types to a model.

    The model generates the same cells of all other types as before.

    Example: bdm extend model/ new.h5ad extended/ --cell-type "CD56+ NK"
    """
    from bdm._core.files import sha256
    from bdm._core.store import checksum_of
    from bdm.applications.extension.extend import ExtensionReport, describe, extend
    from bdm.applications.extension.new_cells import join_known_cells, select_new_cells
    from bdm.data.matrix import write_h5ad
    from bdm.data.prepare import read_prepared
    from bdm.model.match import cells_for
    from bdm.model.model import load_model
    from bdm.pl import write_result
    from bdm.report.card import save_with_card

    loaded = load_model(model)
    adata = cells_for(cells, loaded, keys, on_disk=False)
    new = select_new_cells(adata, loaded, cell_types=cell_type, keys=keys, missing_as_zero=missing_as_zero, seed=seed)
    prepared = join_known_cells(new, loaded, known and read_prepared(known))
    steps = extend(
        loaded,
        new,
        seed=seed,
        ancestor_sha256=checksum_of(model, "model"),
        cells_name=cells.name,
        cells_sha256=sha256(cells),
        options={**asdict(keys), "missing_as_zero": missing_as_zero},
    )
    save_with_card(out, steps[-1].model)
    if joined is not None:
        write_h5ad(joined, prepared)
    extension = ExtensionReport.from_extensions(steps)
    if report is not None:
        write_result(report, extension)
    types = "\n".join(map(describe, extension.extensions.to_dict("records")))
    return Summary({"types": types}, then=generating(out))
