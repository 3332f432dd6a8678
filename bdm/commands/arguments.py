"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer
from annotated_types import Ge

from bdm.commands.options import Short
from bdm.schema import Unset

OutFile = Annotated[Path, typer.Argument(help="File to write.", dir_okay=False, show_default=False)]
OutFolder = Annotated[Path, typer.Argument(help="Folder to write.", file_okay=False, show_default=False)]
Prepared = Annotated[Path, typer.Argument(help="Cells made by bdm prepare (.h5ad).", show_default=False)]
AutoencoderFolder = Annotated[Path, typer.Argument(help="Folder made by bdm autoencoder.", show_default=False)]
ModelFolder = Annotated[Path, typer.Argument(help="Folder made by bdm train or bdm fit.", show_default=False)]
OfModel = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="Model that was fitted on the cells, if these were not made by bdm prepare.",
        show_default=False,
        file_okay=False,
    ),
]
TestCells = Annotated[
    Path | None,
    typer.Option(help="Test cells, which the model was not fitted on; needs --model.", show_default=False),
]
Compare = Annotated[
    list[str] | None,
    typer.Option(
        help="Other cells to evaluate in the same way; may be repeated.", metavar="NAME=FILE", show_default=False
    ),
]

Threads = Annotated[
    int | None,
    Ge(1),
    "Number of threads; results do not depend on it.",
    Unset("all that the process may use"),
]
Device = Annotated[str, "Device to compute on: auto, cpu, cuda or mps."]
CheckpointEvery = Annotated[
    float, Ge(0), "Seconds between checkpoints, from which the same command resumes interrupted training."
]
DryRun = Annotated[bool, "Check the input and print what would be done; write nothing."]
Quiet = Annotated[bool, "Print only warnings and errors.", Short("-q")]
Verbose = Annotated[bool, "Print versions, options, the number of threads, and the time of each message.", Short("-v")]
