from pathlib import Path

from anndata import AnnData

from bdm.data.read import read_cells
from bdm.errors import InputError


def read_prepared(path: Path) -> AnnData:
    """Read prepared cells.

    Raises
    ------
    InputError
        If the file cannot be read, or was not made by ``bdm prepare``.
    """
    adata = read_cells(path)
    lacking = [column for column in ("cell_type", "split") if column not in adata.obs]
    if lacking or "bdm" not in adata.uns:
        raise InputError(f"{path} was not made by bdm prepare; run it first.")
    return adata
