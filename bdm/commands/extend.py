"""``bdm extend``: add new cell types to a model."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from bdm.commands.base import ModelFolder, OutFolder, Output, Summary, generating
from bdm.settings import InputKeys, MissingAsZero, NewTypes, Seed


def extend(
    model: ModelFolder,
    cells: Annotated[Path, "Cells with the new types, with raw counts."],
    out: OutFolder,
    *,
    cell_type: NewTypes = (),
    keys: InputKeys,
    missing_as_zero: MissingAsZero = False,
    known: Annotated[Path | None, "Cells that the model was fitted on, made by bdm prepare."] = None,
    joined: Annotated[
        Path | None, Output, "File of prepared cells to write: the known ones, if given, and the new."
    ] = None,
    report: Annotated[Path | None, Output, "Folder of tables and figures to write."] = None,
    seed: Seed = 0,
) -> Summary:
    """Add cell types to a model.

    The model generates the same cells of all other types as before.

    Example: bdm extend model/ new.h5ad extended/ --cell-type "CD56+ NK"
    """
    from bdm._core.files import atomic_write, provenance, sha256
    from bdm._core.store import checksum_of
    from bdm.applications.extension.extend import ExtendSettings, ExtensionReport, describe, extend_all
    from bdm.applications.extension.new_cells import join_known_cells, select_new_cells
    from bdm.data.matrix import write_h5ad
    from bdm.data.prepare import read_prepared
    from bdm.model.match import cells_for
    from bdm.model.model import load_model
    from bdm.pl import write_result
    from bdm.report.card import save_with_card

    with ExitStack() as files:
        folder = files.enter_context(atomic_write(out, folder_of="model.json"))
        loaded = load_model(model)
        how: dict[str, Any] = {"keys": keys, "missing_as_zero": missing_as_zero}
        new = select_new_cells(
            cells_for(cells, loaded, keys, on_disk=False), loaded, cell_types=cell_type, seed=seed, **how
        )
        prepared = join_known_cells(new, loaded, known and read_prepared(known))
        settings = ExtendSettings()
        record = provenance(
            seed=seed,
            settings=asdict(settings),
            ancestor_sha256=checksum_of(model, "model"),
            cells_name=cells.name,
            cells_sha256=sha256(cells),
            options={**asdict(keys), "missing_as_zero": missing_as_zero},
        )
        steps = list(extend_all(loaded, new, settings, seed=seed, provenance=record))
        save_with_card(folder, steps[-1].model)
        if joined is not None:
            write_h5ad(files.enter_context(atomic_write(joined)), prepared)
        of_steps = ExtensionReport.from_extensions(steps)
        if report is not None:
            written = files.enter_context(atomic_write(report, folder_of="extension_report.json"))
            write_result(written, of_steps)
    types = "\n".join(map(describe, of_steps.extensions.to_dict("records")))
    return Summary((out, joined, report), {"types": types}, then=generating(out))
