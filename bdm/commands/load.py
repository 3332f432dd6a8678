"""``bdm load``: download a model from Hugging Face Hub."""

import shutil
from typing import Annotated

from bdm._core.errors import counted, error_prefix
from bdm.commands.base import OutModel, Summary
from bdm.commands.train import generating


def load(
    address: Annotated[str, "Model on Hugging Face Hub: hf://USER/NAME, or hf://USER/NAME@REVISION."], out: OutModel
) -> Summary:
    """Download a model from Hugging Face Hub, and check it.

    Example: bdm load hf://USER/NAME model/
    """
    from bdm.model.model import load_model
    from bdm.report.hub import download, shared_files

    folder = download(address)
    out.mkdir()
    for file in shared_files(folder):
        shutil.copyfile(file, out / file.name)
    with error_prefix(address):
        cell_types = load_model(out).cell_types
    return Summary({"model": counted(len(cell_types), "cell type"), "revision": folder.name}, then=generating(out))
