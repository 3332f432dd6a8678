"""``bdm simulate``: simulate a designed experiment with a known truth."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from bdm.commands.base import Summary
from bdm.commands.options import Device, DryRun, ModelFolder, OutCells, Output, check_replaced
from bdm.errors import at
from bdm.schema import Unset
from bdm.settings import DesignFile

DesignSeed = Annotated[int | None, Ge(0), "Seed of every random draw.", Unset("the design's")]


def simulate(
    model: ModelFolder,
    design: DesignFile,
    out: OutCells,
    *,
    truth: Annotated[
        Path | None, Output, "Table of the changed genes to write, too (`.csv`).", Unset("no table")
    ] = None,
    part: Annotated[str | None, "Simulate one part only, such as 2-of-8, for bdm merge."] = None,
    device: Device = "auto",
    seed: DesignSeed = None,
    dry_run: DryRun = False,
) -> Summary | None:
    """Simulate an experiment that you design: samples, composition, changes of expression, depth and artefacts.

    Example: bdm simulate model/ design.yaml experiment.h5ad --truth truth.csv
    """
    from bdm._core.files import atomic_write
    from bdm._core.training import fabric
    from bdm.design.experiment import compile_design
    from bdm.design.settings import read_design
    from bdm.design.simulate import design_record, simulated_cells
    from bdm.errors import counted
    from bdm.generation.chunks import WHOLE, Part
    from bdm.generation.merge import write_cells
    from bdm.model.generated_file import record_of_cells
    from bdm.model.model import load_model

    of_cells = WHOLE if part is None else Part.parse(part)
    checked = read_design(design, seed=seed)
    check_replaced((out, truth), checked.files())
    with ExitStack() as files:
        path = None if dry_run else files.enter_context(atomic_write(out))
        table = None if dry_run or truth is None else files.enter_context(atomic_write(truth))
        loaded = load_model(model, device=fabric(device).device)
        with at(design):
            experiment = compile_design(loaded, checked)
        n_cells = sum(experiment.request.n_cells.values())
        changes = counted(len(experiment.plants), "change")
        facts = {"cells": f"{n_cells:,} of {counted(len(experiment.samples), 'sample')}, with {changes}"}
        if path is None:
            numbers = experiment.request.table.groupby("sample", sort=False)["n_cells"].sum()
            by_sample = "\n".join(
                f"{numbers.get(name, 0):>9,}  {name}: {row['donor']}, {row['condition']}"
                for name, row in experiment.samples.iterrows()
            )
            print(f"would write {out}{'' if part is None else f', part {part}'}:\n{by_sample}\n{n_cells:>9,}  cells")
            return None
        record = record_of_cells(loaded, model, seed=checked.seed, design=design_record(checked), part=part)
        cells = simulated_cells(experiment, part=of_cells)
        write_cells(path, cells, {"bdm": record})
        if table is not None:
            cells.uns["truth"]["genes"].to_csv(table, index=False)
    return Summary((out, truth), facts if part is None else {"part": part, **facts})
