import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.data.read import read_cells
from bdm.errors import InputError
from bdm.evaluation.cells import Cells
from bdm.evaluation.inputs import RealCells, check_genes, some, with_columns
from bdm.evaluation.stored import checked
from bdm.transmutation.evaluate import MovedCells


@dataclass(frozen=True)
class MovedFile:
    """What a file of moved cells holds.

    Attributes
    ----------
    to
        The type that they were moved to.
    cells
        Genes in the order of the real cells.
    how
        Settings and seed of ``bdm transmute``; none where they are not recorded.
    """

    to: str
    cells: MovedCells
    how: dict[str, Any]


def read_moved(path: Path, prepared: Path, before: AnnData, real: RealCells) -> MovedFile:
    """Read cells that ``bdm transmute`` moved, and find what they were among prepared cells by their names.

    Parameters
    ----------
    prepared, before
        File of the prepared cells, and they.

    Raises
    ------
    InputError
        If the file is no such file, or its cells are not among the prepared ones.
    """
    stored = with_columns(read_cells(path), ("cell_type", "original_type"), path)
    adata = checked(stored, path)  # counts and obs alone
    check_genes(adata.var_names, real.genes, path)
    places = places_before(adata, before.obs_names, names=(str(path), str(prepared)))
    cells = MovedCells(Cells.of(adata[:, real.genes]), Cells.of(before[places]))
    return MovedFile(moved_to(adata, str(path)), cells, how_moved(stored))


def how_moved(adata: AnnData) -> dict[str, Any]:
    """Tell the settings and seed of ``bdm transmute`` that moved cells; none where they are not recorded."""
    record = adata.uns.get("bdm", {})
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
