"""``bdm simulate``: simulate a designed experiment with a known truth."""

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Lt

from bdm._core.errors import counted, error_prefix
from bdm._core.schema import Unset
from bdm.commands.base import DesignFile, Device, ModelFolder, OutGenerated, Output, Summary

DesignSeed = Annotated[int | None, Ge(0), Lt(2**63), "Seed of every random draw.", Unset("the design's")]


def simulate(
    model: ModelFolder,
    design: DesignFile,
    out: OutGenerated,
    *,
    truth: Annotated[
        Path | None, Output, "Table of the changed genes to write, too (`.csv`).", Unset("no table")
    ] = None,
    device: Device = "auto",
    seed: DesignSeed = None,
) -> Summary:
    """Simulate a designed experiment with a known truth.

    The design sets samples, composition, changes of expression, depth and artefacts. To list its keys, run
    python -c "import bdm; help(bdm.BranchedDiffusion.simulate)".

    Example: bdm simulate model/ design.yaml experiment.h5ad --truth truth.csv
    """
    from bdm._core.files import write_table
    from bdm.applications.design.design import read_design
    from bdm.applications.design.experiment import compile_design
    from bdm.applications.design.simulate import simulated_cells
    from bdm.data.modalities import check_form
    from bdm.generation.generate import write_cells
    from bdm.model.model import checksums, load_model

    checked = read_design(design, seed=seed)
    loaded = load_model(model, device=device)
    check_form(out, loaded.form)
    with error_prefix(design):
        experiment = compile_design(loaded, checked)
    cells = simulated_cells(experiment)
    write_cells(out, cells, checksums({}, model=model))
    if truth is not None:
        write_table(cells.uns["truth"]["genes"], truth)
    n_cells, n_changes = sum(experiment.request.n_by_type.values()), counted(len(experiment.changes), "change")
    return Summary({"cells": f"{n_cells:,} of {counted(len(experiment.samples), 'sample')}, with {n_changes}"})
