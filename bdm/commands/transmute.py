"""``bdm transmute``: transmute cells to another cell type."""

from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from bdm._core.schema import Unset
from bdm.commands.base import AtValues, Device, Extrapolate, ModelFolder, OutGenerated, Summary
from bdm.commands.generate import evaluating
from bdm.settings import InputKeys, Seed


def transmute(
    model: ModelFolder,
    cells: Annotated[Path, "Cells to transmute, with raw counts."],
    out: OutGenerated,
    *,
    to: Annotated[str, MinLen(1), "Cell type or sub-population to transmute to."],
    from_: Annotated[tuple[str, ...], "Cell types to transmute.", Unset("all others")] = (),
    at: AtValues = (),
    extrapolate: Extrapolate = False,
    keys: InputKeys,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Transmute cells to another type through their common ancestor in the hierarchy.

    Example: bdm transmute model/ prepared.h5ad transmuted.h5ad --to "CD56+ NK" --from "CD19+ B"
    """
    import numpy as np

    from bdm.applications.transmutation.transmute import select_sources, transmuted_cells
    from bdm.data.modalities import check_form
    from bdm.generation.covariate_values import parse_at
    from bdm.generation.generate import write_cells
    from bdm.model.match import cells_for
    from bdm.model.model import checksums, load_model

    loaded = load_model(model, device=device)
    check_form(out, loaded.form)
    values, adata = parse_at(at), cells_for(cells, loaded, keys, on_disk=False)
    sources = select_sources(adata, loaded, to, keys, cell_types=from_, at=values, extrapolate=extrapolate)
    transmuted = transmuted_cells(loaded, sources, seed=seed)
    write_cells(out, transmuted, checksums({"cells": cells}, model=model))
    n_by_type = zip(*np.unique(sources.cell_type, return_counts=True), strict=True)
    original_types = ", ".join(f"{number:,} {name}" for name, number in n_by_type)
    facts = {"cells": f"{len(sources.cell_type):,} transmuted to {to}: {original_types}"}
    return Summary(facts, then=evaluating(adata, loaded, "bdm", "evaluate-transmuted", cells, out, "transmutation/"))
