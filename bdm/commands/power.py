"""``bdm power``: estimate the power of an experiment by simulation."""

import logging
from typing import Annotated

from bdm._core.errors import counted, error_prefix
from bdm.commands.base import DesignFile, Device, Holding, ModelFolder, OutFolder, Summary
from bdm.commands.simulate import DesignSeed

logger = logging.getLogger(__name__)


def power(
    model: ModelFolder,
    design: DesignFile,
    out: Annotated[OutFolder, Holding("power.json")],
    *,
    device: Device = "auto",
    seed: DesignSeed = None,
) -> Summary:
    """Find how many donors and cells an experiment needs.

    Simulates and tests a grid of experiments; the section power of the design has the values of the grid, and the
    tests.

    Example: bdm power model/ design.yaml power/
    """
    from bdm.applications.design.design import read_design
    from bdm.applications.power.analysis import check_testable, compile_testable, design_at, grid_points, power_analysis
    from bdm.model.model import load_model
    from bdm.pl import write_result

    checked = read_design(design, seed=seed)
    points = grid_points(checked.power)
    with error_prefix(design):
        check_testable(checked)
    loaded = load_model(model, device=device)
    with error_prefix(design):  # before the first of many experiments
        for point in points:
            compile_testable(loaded, design_at(checked, point, repeat=0))
    analysis = power_analysis(loaded, checked)
    write_result(out, analysis)
    logger.info("%s", analysis)
    return Summary({"experiments": f"{len(points)} x {counted(checked.power.n_repeats, 'repeat')}"})
