"""``bdm init``: start a folder for the Snakemake workflow."""

import logging
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from bdm._core.errors import InputError
from bdm._core.files import atomic_write
from bdm.commands.base import Summary

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
# The workflow and its configuration are in a wheel inside the package, and in a clone beside it
SOURCE = PACKAGE / "project" if (PACKAGE / "project").is_dir() else PACKAGE.parent
WORKFLOW = str(SOURCE / "workflow/Snakefile")

SNAKEFILE = """\
# The workflow of the installed bdm, with the settings of config/config.yaml. Add your own rules below.
from bdm.commands.init import WORKFLOW


include: WORKFLOW


rule everything:
    default_target: True
    input:
        rules.all.input,
"""


def init(folder: Annotated[Path, "Folder to create."]) -> Summary:
    """Start a folder for the Snakemake workflow: its configuration, profiles and Snakefile.

    The configuration is an example, for your own data sets in its place.

    Example: bdm init blood/
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; name a new folder.")
    with atomic_write(folder) as out:
        for name in ("config", "profiles"):
            shutil.copytree(SOURCE / name, out / name)
        (out / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    if find_spec("snakemake") is None:
        logger.warning("Snakemake, which runs the workflow, is not installed; install it: pip install 'bdm[workflow]'.")
    return Summary({"wrote": str(folder), "next": f"cd {shlex.quote(str(folder))} && snakemake --cores all"})
