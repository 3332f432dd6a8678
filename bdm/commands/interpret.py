"""``bdm interpret``: find the marker genes of each branch."""

import logging
from pathlib import Path
from typing import Annotated

from bdm._core.errors import counted
from bdm.commands.base import Holding, ModelFolder, OutFolder, Summary
from bdm.settings import InputKeys, InterpretationSettings, Seed

logger = logging.getLogger(__name__)


def interpret(
    model: ModelFolder,
    cells: Annotated[Path, "Cells that the model was fitted on, with test cells if any: made by bdm prepare, or raw."],
    generated: Annotated[Path, "Cells made by bdm generate (.h5ad)."],
    out: Annotated[OutFolder, Holding("interpretation.json")],
    *,
    settings: InterpretationSettings,
    keys: InputKeys,
    seed: Seed = 0,
) -> Summary:
    """Find marker genes of each branch, and compare them with held-out cells.

    Writes tables (.csv), figures (.png), and all results for scanpy (branches.h5ad).

    Example: bdm interpret model/ prepared.h5ad generated.h5ad interpretation/
    """
    from bdm.interpretation.interpret import interpret, read_inputs
    from bdm.interpretation.interpretation import agreement_summary
    from bdm.model.model import checksums
    from bdm.pl import write_result

    interpretation = interpret(read_inputs(model, cells, generated, keys, seed=seed), settings, seed=seed)
    write_result(out, interpretation, checksums({"prepared": cells, "generated": generated}, model=model))
    if not interpretation.nodes:
        return Summary({"tree": "one population, without nodes whose branches could be compared"})
    logger.info("%s", agreement_summary(interpretation))
    n_nodes = counted(len(interpretation.nodes), "node")
    return Summary({"tree": f"{n_nodes}; branch_genes.png shows the marker genes of each branch"})
