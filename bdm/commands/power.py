"""``bdm power``: the power of an experiment, by simulation."""

from pathlib import Path
from typing import Annotated

from bdm.commands.base import Summary
from bdm.commands.options import Device, ModelFolder, Output, check_replaced
from bdm.commands.simulate import DesignSeed
from bdm.errors import at
from bdm.settings import DesignFile


def power(
    model: ModelFolder,
    design: DesignFile,
    out: Annotated[Path, Output, "Folder to write; with --part, a table (.csv) to write."],
    *,
    part: Annotated[str | None, "Test one part of the grid only, such as 2-of-8, for bdm merge."] = None,
    device: Device = "auto",
    seed: DesignSeed = None,
) -> Summary:
    """Find how many donors and cells an experiment needs: simulate a grid of experiments, and test them.

    The section power of the design has the values of the grid, and the tests.

    Example: bdm power model/ design.yaml power/
    """
    from bdm._core.files import atomic_write
    from bdm._core.training import fabric
    from bdm.design.experiment import compile_design
    from bdm.design.settings import read_design
    from bdm.errors import counted
    from bdm.generation.chunks import WHOLE, Part
    from bdm.model.model import load_model
    from bdm.plotting.files import write_result
    from bdm.power.analysis import check_testable, power_analysis
    from bdm.power.grid import design_at, points_of

    of_grid = WHOLE if part is None else Part.parse(part)
    checked = read_design(design, seed=seed)
    check_replaced((out,), checked.files())
    points = list(points_of(checked.power))
    with at(design):
        check_testable(checked)
    facts = {"experiments": f"{len(points)} x {counted(checked.power.n_repeats, 'repeat')}"}
    with atomic_write(out, folder_of=None if part else "power.csv") as path:
        loaded = load_model(model, device=fabric(device).device)
        with at(design):  # before the first of many experiments
            for point in points:
                compile_design(loaded, design_at(checked, point, repeat=0))
        analysis = power_analysis(loaded, checked, part=of_grid)
        if part is not None:
            analysis.repeats.to_csv(path, index=False, float_format="%.6g")
            return Summary((out,), {"part": part, **facts})
        write_result(path, analysis)
    return Summary((out,), facts)
