import signal
import sys
import traceback
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
from bdm.commands.report import report
from bdm.commands.told import told
from bdm.commands.train import train
from bdm.commands.transmute import transmute
from bdm.errors import InputError, Interrupted, TrainingError, as_options

app = typer.Typer(
    name="bdm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA, LEARN, GENERATE, JUDGE = "Data", "Learn", "Generate", "Judge and explain"

app.command(rich_help_panel=DATA)(told(example))
app.command(rich_help_panel=DATA)(told(prepare))
app.command(rich_help_panel=LEARN)(told(fit, computes=True))
app.command(rich_help_panel=LEARN)(told(autoencoder, computes=True))
app.command(rich_help_panel=LEARN)(told(hierarchy, computes=True))
app.command(rich_help_panel=LEARN)(told(draw))
app.command(rich_help_panel=LEARN)(told(train, computes=True))
app.command(rich_help_panel=LEARN)(told(extend, computes=True))
app.command(rich_help_panel=GENERATE)(told(generate, computes=True))
app.command(rich_help_panel=GENERATE)(told(gather))
app.command(rich_help_panel=GENERATE)(told(transmute, computes=True))
app.command(rich_help_panel=JUDGE)(told(evaluate, computes=True))
app.command(rich_help_panel=JUDGE)(told(evaluate_transmuted, computes=True))
app.command(rich_help_panel=JUDGE)(told(interpret, computes=True))
app.command(rich_help_panel=JUDGE)(told(report))


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
    """Run the command line; bad input ends with one sentence and exit code 2, a fault of bdm with its traceback."""
    try:
        app()
    except InputError as error:
        end(as_options(str(error)), code=2)
    except TrainingError as error:
        end(str(error), code=1)
    except Interrupted as stop:
        end(str(stop), code=128 + signal.SIGTERM)
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            end("There is not enough memory; give the job more, or fewer cells.", code=1)
        traceback.print_exc()
        end(
            f"This is a fault of bdm {__version__} ({type(error).__name__}); please report it with the lines above.",
            code=1,
        )


def end(sentence: str, *, code: int) -> None:
    """Tell in one sentence why the command ends."""
    print(f"bdm: {sentence}", file=sys.stderr)
    sys.exit(code)
