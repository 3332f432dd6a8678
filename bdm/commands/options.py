"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(help="Seed of every random draw.", min=0)]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Threads to compute with; the result does not depend on their number.",
        min=1,
        show_default="all that the process may use",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
OutFile = Annotated[Path, typer.Argument(help="File to write.", dir_okay=False, show_default=False)]
OutFolder = Annotated[Path, typer.Argument(help="Folder to write.", file_okay=False, show_default=False)]
Prepared = Annotated[Path, typer.Argument(help="Cells made by bdm prepare (.h5ad).", show_default=False)]
AutoencoderFolder = Annotated[Path, typer.Argument(help="Folder made by bdm autoencoder.", show_default=False)]
ModelFolder = Annotated[Path, typer.Argument(help="Folder made by bdm train or bdm fit.", show_default=False)]
LabelKey = Annotated[
    str | None, typer.Option(help="Column of obs with the cell type.", show_default="as in the model's data")
]
BatchKey = Annotated[
    str | None, typer.Option(help="Column of obs with the batch.", show_default="as in the model's data")
]
Counts = Annotated[
    str | None,
    typer.Option(
        help="Where raw counts are: X, raw, the name of a layer, or auto.", show_default="as in the model's data"
    ),
]
OfModel = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="Model that was fitted on the cells, where these are not made by bdm prepare.",
        show_default=False,
        file_okay=False,
    ),
]
TestCells = Annotated[
    Path | None,
    typer.Option(help="Cells that the model was not fitted on, to evaluate by; needs --model.", show_default=False),
]
LearningRate = Annotated[float, typer.Option(help="Highest learning rate; lower it where training goes wrong.")]
CheckpointEvery = Annotated[
    float, typer.Option(help="Seconds between two writings of what interrupted training goes on from.", min=0)
]
KeepGenes = Annotated[
    str | None,
    typer.Option(
        help="Genes to add to the most variable ones: a text file with one gene a line, or markers (built in).",
        show_default=False,
    ),
]
GeneSymbols = Annotated[
    str | None,
    typer.Option(help="Column of var with gene symbols, if genes have other names.", show_default="guessed"),
]
LeaveOut = Annotated[
    list[str] | None, typer.Option(help="Cell type to leave out; may be repeated.", show_default=False)
]
DropUnlabelled = Annotated[
    bool, typer.Option("--drop-unlabelled", help="Leave out cells without a cell type, which else are an error.")
]
