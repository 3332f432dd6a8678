import logging
from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.options import BatchKey, Counts, LabelKey, ModelFolder, OutFolder, Seed
from bdm.commands.told import Summary

logger = logging.getLogger(__name__)


def interpret(
    model: ModelFolder,
    cells: Annotated[
        Path,
        typer.Argument(
            help="Cells that the model was fitted on, with test cells if any: made by bdm prepare, or raw.",
            show_default=False,
        ),
    ],
    generated: Annotated[Path, typer.Argument(help="Cells made by bdm generate (.h5ad).", show_default=False)],
    out: OutFolder,
    *,
    n_genes: Annotated[int, typer.Option(help="Top genes of each branch that are listed and compared.", min=1)] = 20,
    markers: Annotated[
        Path | None,
        typer.Option(help="Your own markers, in place of those found (.csv with the columns type and gene)."),
    ] = None,
    gene_sets: Annotated[
        Path | None,
        typer.Option(help="Gene sets whose enrichment at each branch is wanted (.gmt)."),
    ] = None,
    label_key: LabelKey = None,
    batch_key: BatchKey = None,
    counts: Counts = None,
    seed: Seed = 0,
) -> Summary:
    """Find the genes that part the children of each node in the model, and check them against held-out cells.

    Writes tables (.csv), figures (.png), and all of it for scanpy (branches.h5ad).

    Example: bdm interpret model/ prepared.h5ad generated.h5ad interpretation/
    """
    from dataclasses import asdict

    from bdm.files import atomic_write
    from bdm.interpretation.inputs import read_inputs
    from bdm.interpretation.interpret import interpret as interpret_model
    from bdm.interpretation.report import summary, write_report
    from bdm.model.match import InputKeys
    from bdm.model.model import checksums
    from bdm.plotting.write import write_figures
    from bdm.provenance import provenance
    from bdm.settings import InterpretationSettings

    settings = InterpretationSettings(n_genes=n_genes)
    with atomic_write(out, folder_of="interpretation.json") as folder:
        keys = InputKeys(label_key=label_key, batch_key=batch_key, counts=counts)
        inputs = read_inputs(model, cells, generated, keys, markers=markers, gene_sets=gene_sets, seed=seed)
        interpretation = interpret_model(inputs, settings, seed=seed)
        files = {
            "prepared": cells,
            "generated": generated,
            "markers": markers,
            "gene_sets": gene_sets,
        }
        hashes = checksums(files, model=model)
        folder.mkdir()
        write_report(folder, interpretation, provenance=provenance(seed=seed, settings=asdict(settings), sha256=hashes))
        write_figures(folder, interpretation)
    logger.info("Agreement with test cells, mean over nodes:\n%s", summary(interpretation))
    n_nodes = len(interpretation.nodes)
    return Summary((out,), {"tree": f"{n_nodes} branch points; branch_genes.png shows the genes of each"})
