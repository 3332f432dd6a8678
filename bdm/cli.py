"""The command line ``bdm``: commands and exit codes."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from bdm import __version__
from bdm._core.errors import InputError, Interrupted, TrainingError, in_interface
from bdm.commands.audit import audit
from bdm.commands.autoencoder import autoencoder
from bdm.commands.base import Summary, as_command
from bdm.commands.card import card
from bdm.commands.evaluate import evaluate
from bdm.commands.evaluate_transmuted import evaluate_transmuted
from bdm.commands.example import example
from bdm.commands.extend import extend
from bdm.commands.fit import fit
from bdm.commands.generate import generate
from bdm.commands.hierarchy import hierarchy
from bdm.commands.init import init
from bdm.commands.interpret import interpret
from bdm.commands.lineage import lineage
from bdm.commands.power import power
from bdm.commands.predict import predict
from bdm.commands.predict_modality import predict_modality
from bdm.commands.prepare import prepare
from bdm.commands.push import push
from bdm.commands.reconstruct import reconstruct
from bdm.commands.report import report
from bdm.commands.respond import respond
from bdm.commands.simulate import simulate
from bdm.commands.train import train
from bdm.commands.transmute import transmute

# Waiting OpenMP threads would spin and slow down other programs. Torch reads these variables on import.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}

os.environ["MPLBACKEND"] = "agg"  # write figures to files, also in a notebook

# Numba's first parallel call would set the threads of the whole process, including torch, to all cores
if "OMP_NUM_THREADS" in os.environ and "numba" not in sys.modules:
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

# In the order of the help; True for long computations
COMMANDS: dict[str, dict[Callable[..., Summary | None], bool]] = {
    "Data": {example: False, init: False, prepare: False},
    "Fit": {fit: True, autoencoder: True, hierarchy: True, train: True, extend: True},
    "Generate": {generate: True, transmute: True, simulate: True, predict_modality: True},
    "Conditions": {respond: True, predict: True},
    "Lineages": {lineage: True, reconstruct: True},
    "Evaluate and interpret": {evaluate: True, evaluate_transmuted: True, interpret: True, report: False},
    "Plan": {power: True},
    "Share": {audit: True, card: False, push: False},
}

app = typer.Typer(
    name="bdm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in COMMANDS.items():
    for command, computes in commands.items():
        app.command(rich_help_panel=panel)(as_command(command, computes=computes))


def print_version(requested: bool) -> None:
    """Print the version and exit, if requested."""
    if requested:
        print(f"bdm {__version__}")
        raise typer.Exit


@app.callback()
def bdm(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Fit a model to labelled single-cell RNA-seq counts, and generate new cells of any cell type."""


def main() -> None:
    """Run the command line, and turn errors into exit codes.

    Invalid input: one sentence, code 2. Failed training or lack of memory: one sentence, code 1. Interruption: code
    130. Bug: traceback, code 1.
    """
    try:
        app()
    except InputError as error:
        end(in_interface(str(error)), code=2)
    except TrainingError as error:
        end(str(error), code=1)
    except Interrupted as stop:
        end(str(stop), code=130)
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            end("There is not enough memory; give the job more, or fewer cells.", code=1)
        traceback.print_exc()
        end(
            f"This is a fault of bdm {__version__} ({type(error).__name__}); please report it with the lines above.",
            code=1,
        )


def end(sentence: str, *, code: int) -> None:
    """Print the sentence to stderr, and exit with the code."""
    print(f"bdm: {sentence}", file=sys.stderr)
    sys.exit(code)
