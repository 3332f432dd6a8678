import logging
import signal
import sys
from typing import Annotated

import typer

from bdm import __version__
from bdm.commands.autoencoder import autoencoder
from bdm.commands.draw import draw
from bdm.commands.evaluate import evaluate
from bdm.commands.evaluate_transmuted import evaluate_transmuted
from bdm.commands.example import example
from bdm.commands.extend import extend
from bdm.commands.fit import fit
from bdm.commands.gather import gather
from bdm.commands.generate import generate
from bdm.commands.hierarchy import hierarchy
from bdm.commands.interpret import interpret
from bdm.commands.prepare import prepare
from bdm.commands.train import train
from bdm.commands.transmute import transmute
from bdm.errors import InputError, Interrupted, TrainingError

app = typer.Typer(
    name="bdm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA, LEARN, GENERATE, JUDGE = "Data", "Learn", "Generate", "Judge and explain"

app.command(rich_help_panel=DATA)(example)
app.command(rich_help_panel=DATA)(prepare)
app.command(rich_help_panel=LEARN)(fit)
app.command(rich_help_panel=LEARN)(autoencoder)
app.command(rich_help_panel=LEARN)(hierarchy)
app.command(rich_help_panel=LEARN)(draw)
app.command(rich_help_panel=LEARN)(train)
app.command(rich_help_panel=LEARN)(extend)
app.command(rich_help_panel=GENERATE)(generate)
app.command(rich_help_panel=GENERATE)(gather)
app.command(rich_help_panel=GENERATE)(transmute)
app.command(rich_help_panel=JUDGE)(evaluate)
app.command(rich_help_panel=JUDGE)(evaluate_transmuted)
app.command(rich_help_panel=JUDGE)(interpret)


def tell_version(asked: bool) -> None:
    """End with the version, if it is asked for."""
    if asked:
        print(f"bdm {__version__}")
        raise typer.Exit


@app.callback()
def bdm(
    version: Annotated[
        bool, typer.Option("--version", help="Tell the version.", callback=tell_version, is_eager=True)
    ] = False,
) -> None:
    """Learn from labelled single-cell RNA-seq counts, and generate new cells of any cell type."""


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except InputError as error:
        print(f"bdm: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingError as error:
        print(f"bdm: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as stop:
        print(f"bdm: {stop}", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
