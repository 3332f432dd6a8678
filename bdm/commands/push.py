"""``bdm push``: upload a model to Hugging Face Hub."""

import sys
from typing import Annotated

import typer

from bdm.commands.base import ModelFolder, Summary


def push(
    model: ModelFolder,
    address: Annotated[str, "Repository on Hugging Face Hub: hf://USER/NAME."],
    *,
    public: Annotated[bool, "Let everybody read the repository; without it, the repository is private."] = False,
    yes: Annotated[bool, "Answer the question by yes, as in scripts."] = False,
) -> Summary:
    """Upload a model to Hugging Face Hub, with its card and license.

    Example: bdm push model/ hf://USER/NAME
    """
    from bdm.report.hub import push

    def confirm(text: str) -> bool:
        return yes or (sys.stdin.isatty() and typer.confirm(f"{text}. Send it?", abort=True, err=True))

    return Summary({"wrote": push(model, address, public=public, confirm=confirm)})
