"""``bdm interpret``: find the marker genes of each branch."""

import logging
from pathlib import Path
from typing import Annotated

from bdm.commands.base import ModelFolder, OutFolder, Summary
from bdm.settings import InputKeys, InterpretationSettings, Seed

logger = logging.getLogger(__name__)


def interpret(
    model: ModelFolder,
    cells: Annotated[Path, "Cells that the model was fitted on, with test cells if any: made by bdm prepare, or raw."],
    generated: Annotated[Path, "Cells made by bdm generate (.h5ad)."],
    out: OutFolder,
    *,
    settings: InterpretationSettings,
    keys: InputKeys,
    seed: Seed = 0,
) -> Summary:
    """Find marker genes of each branch, and compare them with held-out cells.

    Writes tables (.csv), figures (.png), and all results for scanpy (branches.h5ad).

    Example: bdm interpret model/ prepared.h5ad generated.h5ad interpretation/
    """
    from bdm._core.errors import counted
    from bdm._core.files import atomic_write
    from bdm.interpretation.interpret import interpret as interpret_model
    from bdm.interpretation.interpret import read_inputs
    from bdm.interpretation.interpretation import agreement_summary
    from bdm.model.model import checksums
    from bdm.pl import write_result

    with atomic_write(out, folder_of="interpretation.json") as folder:
        inputs = read_inputs(model, cells, generated, keys, seed=seed)
        interpretation = interpret_model(inputs, settings, seed=seed)
        files = {"prepared": cells, "generated": generated}
        write_result(folder, interpretation, checksums(files, model=model))
    if not interpretation.nodes:
        return Summary((out,), {"tree": "one population, without nodes whose branches could be compared"})
    logger.info("%s", agreement_summary(interpretation))
    n_nodes = counted(len(interpretation.nodes), "node")
    return Summary((out,), {"tree": f"{n_nodes}; branch_genes.png shows the marker genes of each branch"})
