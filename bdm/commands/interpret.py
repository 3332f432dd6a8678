import logging
from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.options import ModelFolder, OutFolder, Prepared, Seed

logger = logging.getLogger(__name__)


def interpret(
    model: ModelFolder,
    prepared: Prepared,
    generated: Annotated[Path, typer.Argument(help="Cells made by bdm generate (.h5ad).", show_default=False)],
    out: OutFolder,
    *,
    n_genes: Annotated[int, typer.Option(help="Top genes of each branch that are listed and compared.", min=1)] = 20,
    seed: Seed = 0,
) -> None:
    """Find the genes that part the children of each node in the model, and check them against real cells.

    Example: bdm interpret model/ prepared.h5ad generated.h5ad interpretation/
    """
    from dataclasses import asdict

    from bdm.files import sha256, written_whole
    from bdm.interpretation.inputs import read_inputs
    from bdm.interpretation.interpret import InterpretationSettings
    from bdm.interpretation.interpret import interpret as interpret_model
    from bdm.interpretation.report import summary, write_report
    from bdm.plotting.interpretation import write_figures
    from bdm.provenance import provenance

    settings = InterpretationSettings(n_genes=n_genes)
    with written_whole(out, folder_of="interpretation.json") as folder:
        inputs = read_inputs(model, prepared, generated)
        interpretation = interpret_model(inputs, settings, seed=seed)
        hashes = {"model": sha256(model), "prepared": sha256(prepared), "generated": sha256(generated)}
        folder.mkdir()
        write_report(folder, interpretation, provenance=provenance(seed=seed, settings=asdict(settings), sha256=hashes))
        write_figures(folder, inputs.model.hierarchy, interpretation)
    logger.info(summary(interpretation))
