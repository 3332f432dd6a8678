"""Real and generated cells, as an evaluation reads them from files."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.data.matrix import to_row_storage
from bdm.data.prepare import gene_names
from bdm.data.read import read_cells
from bdm.data.symbols import GeneNames
from bdm.errors import InputError
from bdm.evaluation.cells import FEWEST_FOR_MEANS, FEWEST_OF_TYPE, StoredCells, TypedCells, checked, smaller_numbers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RealCells:
    """Prepared cells: the cells of the fit (training and validation), and held-out test cells."""

    training: TypedCells
    test: TypedCells
    names: GeneNames

    @property
    def genes(self) -> pd.Index:
        """Names of the genes, as the data have them."""
        return self.names.index


def read_real_cells(path: Path, *, on_disk: bool = False) -> RealCells:
    """Read prepared cells.

    Parameters
    ----------
    on_disk
        Leave the counts in the file until they are needed, and check only the needed ones.

    Raises
    ------
    InputError
        If the file was not made by ``bdm prepare``, or has too few test cells.
    """
    adata = open_counts(path, columns=("cell_type", "split"))
    is_test = (adata.obs["split"] == "test").to_numpy()
    if not is_test.any():
        raise InputError(f"{path} has no test cells to evaluate by; prepare the data with `test=` above 0.")
    training, test = (
        StoredCells.from_anndata(path, adata, np.flatnonzero(rows), adata.var_names) for rows in (~is_test, is_test)
    )

    lone = test.n_by_type.index.difference(test.types(fewest=FEWEST_OF_TYPE))
    if len(lone):
        logger.warning("%s: not evaluated, as there are too few test cells: %s.", path, ", ".join(lone))
    check_number(training.n_by_type // 2, test.n_by_type, f"Half of the training cells of {path}")
    if on_disk:
        return RealCells(training, test, gene_names(adata))
    return RealCells(training.in_memory(), test.in_memory(), gene_names(adata))


def read_generated(path: Path, real: RealCells, *, on_disk: bool = False) -> TypedCells:
    """Read cells to evaluate, with genes in the order of the real cells.

    Parameters
    ----------
    on_disk
        Leave the counts in the file until they are needed, and check only the needed ones.

    Raises
    ------
    InputError
        If genes or types differ from those of the real cells, or too few cells can be compared.
    """
    adata = open_counts(path, columns=("cell_type",))
    check_genes(adata.var_names, real.genes, path)
    cells = StoredCells.from_anndata(path, adata, np.arange(adata.n_obs), real.genes)
    unknown = cells.n_by_type.index.difference(real.training.n_by_type.index.union(real.test.n_by_type.index))
    if len(unknown):
        raise InputError(
            f"{path} has cells of types that the prepared data lack: {subset_of_names(unknown)}; "
            "use the same names of types."
        )
    check_number(cells.n_by_type, real.test.n_by_type, str(path))
    return cells if on_disk else cells.in_memory()


def read_counts(path: Path, *, columns: tuple[str, ...]) -> AnnData:
    """Read counts, and check that they are raw counts and that ``obs`` has ``columns``."""
    return checked(with_columns(read_cells(path), columns, path), path)


def open_counts(path: Path, *, columns: tuple[str, ...]) -> AnnData:
    """Leave counts on disk, unchecked, where rows can be read from it; check that ``obs`` has ``columns``."""
    adata = with_columns(read_cells(path, on_disk=True), columns, path)
    adata.X = to_row_storage(adata.X)
    return adata


def with_columns(adata: AnnData, columns: tuple[str, ...], path: Path) -> AnnData:
    """Reject cells without one of ``columns`` in ``obs``."""
    for column in columns:
        if column not in adata.obs:
            raise InputError(f"{path} has no column {column!r} in obs; give a file that bdm wrote, or add it.")
    return adata


def check_genes(genes: pd.Index, expected: pd.Index, path: Path) -> None:
    """Reject cells of other genes than the real ones."""
    for problem, names in {
        "lacks": expected.difference(genes),
        "has, beyond the prepared data,": genes.difference(expected),
        "repeats": genes[genes.duplicated()],
    }.items():
        if len(names):
            raise InputError(
                f"{path} {problem} the genes {subset_of_names(names)}; it needs the genes of the prepared data."
            )


def check_number(n_cells: pd.Series, n_test: pd.Series, name: str) -> None:
    """Reject sets of too few cells to compare; warn about types with fewer cells than there are test cells."""
    n_matched = smaller_numbers(n_cells, n_test)
    if (n_matched >= FEWEST_FOR_MEANS).sum() < 2:
        raise InputError(
            f"{name} cannot be evaluated: fewer than two types have {FEWEST_FOR_MEANS} cells or more, in it and among "
            "the test cells; give more cells."
        )
    short = n_matched.index[n_matched < n_test]
    if len(short):
        logger.warning(
            "%s: there are fewer cells than test cells of %s, so fewer are compared.", name, subset_of_names(short)
        )


def subset_of_names(names: pd.Index) -> str:
    """List the first three names, and the number of the others."""
    listed = ", ".join(names[:3])
    return f"{listed} and {len(names) - 3} more" if len(names) > 3 else listed
