"""``bdm power``: estimate the power of an experiment by simulation."""

import logging

from bdm._core.errors import at
from bdm.commands.base import Device, ModelFolder, OutFolder, Summary
from bdm.commands.simulate import DesignSeed
from bdm.settings import DesignFile

logger = logging.getLogger(__name__)


def power(
    model: ModelFolder,
    design: DesignFile,
    out: OutFolder,
    *,
    device: Device = "auto",
    seed: DesignSeed = None,
) -> Summary:
    """Find how many donors and cells an experiment needs.

    Simulates and tests a grid of experiments; the section power of the design has the values of the grid, and the
    tests.

    Example: bdm power model/ design.yaml power/
    """
    from bdm._core.errors import counted
    from bdm._core.files import atomic_write
    from bdm.applications.design.design import read_design
    from bdm.applications.power.analysis import check_testable, compile_testable, design_at, points_of, power_analysis
    from bdm.model.model import load_model
    from bdm.pl import write_result

    checked = read_design(design, seed=seed)
    points = list(points_of(checked.power))
    with at(design):
        check_testable(checked)
    facts = {"experiments": f"{len(points)} x {counted(checked.power.n_repeats, 'repeat')}"}
    with atomic_write(out, folder_of="power.json") as folder:
        loaded = load_model(model, device=device)
        with at(design):  # before the first of many experiments
            for point in points:
                compile_testable(loaded, design_at(checked, point, repeat=0))
        found = power_analysis(loaded, checked)
        write_result(folder, found)
    logger.info("%s", found)
    return Summary((out,), facts)
