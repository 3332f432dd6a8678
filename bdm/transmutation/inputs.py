from pathlib import Path

import pandas as pd
from anndata import AnnData

from bdm.errors import InputError
from bdm.evaluation.cells import Cells
from bdm.evaluation.inputs import RealCells, check_genes, read_counts, some
from bdm.transmutation.evaluate import MovedCells


def read_moved(path: Path, prepared: Path, before: AnnData, real: RealCells) -> tuple[str, MovedCells]:
    """Read cells that ``bdm transmute`` moved, and find what they were among prepared cells by their names.

    Parameters
    ----------
    prepared, before
        File of the prepared cells, and they.

    Returns
    -------
    The type that they were moved to, and the cells, genes in the order of the real cells.

    Raises
    ------
    InputError
        If the file is no such file, or its cells are not among the prepared ones.
    """
    adata = read_counts(path, columns=("cell_type", "source_type"))
    check_genes(adata.var_names, real.genes, path)
    types = pd.unique(adata.obs["cell_type"])
    if len(types) != 1:
        raise InputError(f"{path} has cells moved to {len(types)} types; give cells moved to one.")
    unknown = adata.obs_names.difference(before.obs_names)
    if len(unknown) or not before.obs_names.is_unique:
        lacking = f"lacks their {some(unknown)}" if len(unknown) else "has cells of one name"
        raise InputError(f"{path} holds cells that cannot be found before they moved: {prepared} {lacking}.")
    return str(types[0]), MovedCells(Cells.of(adata[:, real.genes]), Cells.of(before[adata.obs_names]))
