import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.data.read import read_cells
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
    places = places_before(adata, before.obs_names, names=(str(path), str(prepared)))
    return moved_to(adata, str(path)), MovedCells(Cells.of(adata[:, real.genes]), Cells.of(before[places]))


def how_moved(path: Path) -> dict[str, Any]:
    """Tell the settings and seed of ``bdm transmute`` that moved cells; none where they are not recorded."""
    record = read_cells(path, on_disk=True).uns.get("bdm", {})
    return json.loads(record["settings"]) | {"seed": int(record["seed"])} if {"settings", "seed"} <= set(record) else {}


def moved_to(adata: AnnData, name: str) -> str:
    """Tell which type cells were moved to."""
    types = pd.unique(adata.obs["cell_type"])
    if len(types) != 1:
        raise InputError(f"{name} has cells moved to {len(types)} types; give cells moved to one.")
    return str(types[0])


def places_before(adata: AnnData, before: pd.Index, *, names: tuple[str, str]) -> np.ndarray:
    """Find moved cells among the names of those from before, and give their places.

    Parameters
    ----------
    names
        Of the moved cells and of those from before, to tell of.
    """
    unknown = adata.obs_names.difference(before)
    if len(unknown) or not before.is_unique:
        lacking = f"lacks their {some(unknown)}" if len(unknown) else "has cells of one name"
        raise InputError(f"{names[0]} holds cells that cannot be found before they moved: {names[1]} {lacking}.")
    return before.get_indexer(adata.obs_names)
