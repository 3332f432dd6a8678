import json
from pathlib import Path

from anndata import AnnData

from bdm.data.blocks import by_rows
from bdm.data.read import read_cells
from bdm.data.symbols import GeneNames
from bdm.errors import InputError


def is_prepared(adata: AnnData) -> bool:
    """Whether cells were made by ``bdm prepare``."""
    return {"cell_type", "split"} <= set(adata.obs) and "bdm" in adata.uns


def read_prepared(path: Path, *, on_disk: bool = False) -> AnnData:
    """Read prepared cells.

    Parameters
    ----------
    on_disk
        Leave the counts in the file, as :func:`bdm.data.read.read_cells` does.

    Raises
    ------
    InputError
        If the file cannot be read, or was not made by ``bdm prepare``.
    """
    adata = read_cells(path, on_disk=on_disk)
    if not is_prepared(adata):
        raise InputError(f"{path} was not made by bdm prepare; run it first.")
    adata.X = by_rows(adata.X)
    return adata


def gene_names(prepared: AnnData) -> GeneNames:
    """Names and symbols of the genes of prepared cells, with the column of symbols that they were prepared with."""
    settings = json.loads(prepared.uns.get("bdm", {}).get("settings", "{}"))
    return GeneNames(prepared.var, settings.get("gene_symbols"))
