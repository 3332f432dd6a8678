"""Reading sets of real and generated cells from files."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError, abbreviated, error_prefix
from bdm.data.cells import (
    BLOCK,
    MIN_CELLS_OF_TYPE,
    RealCells,
    StoredCells,
    TypedCells,
    check_genes,
    check_number,
    checked_counts,
)
from bdm.data.columns import complete_column, name_in
from bdm.data.counts import count_slots, find_counts
from bdm.data.genes import GeneNames, symbol_column
from bdm.data.matrix import take_cells, to_row_storage
from bdm.data.prepare import gene_names, is_prepared, recorded_covariates, recorded_settings
from bdm.data.read import read_cells
from bdm.data.space import position_keys
from bdm.settings import InputKeys

logger = logging.getLogger(__name__)

DEFAULT_KEYS = InputKeys()  # as in the model's data, or columns ``cell_type`` and ``batch``
MIN_GENES = 10  # detected genes; with fewer, cells may have equal counts by chance


def read_real_cells(
    path: Path,
    test_path: Path | None = None,
    keys: InputKeys = DEFAULT_KEYS,
    *,
    on_disk: bool = False,
    names: GeneNames | None = None,
) -> RealCells:
    """Read training cells and test cells.

    Test cells have the value ``test`` in the column ``split``, or are the cells of ``test_path``. With ``on_disk``,
    counts are read when needed.
    """
    adata, slot = open_cells(path, keys)
    if names is None:
        names = gene_names(adata) if is_prepared(adata) else GeneNames(adata.var, symbol_column(adata.var))
    is_test = find_test_cells(adata.obs)
    if test_path is None and not is_test.any():
        problem = "no column 'split' in obs, which is 'test' for test cells; add it"
        if "split" in adata.obs:
            problem = "no test cells to evaluate by; prepare the data with `test=` above 0"
        raise InputError(f"{path} has {problem}, or give test cells by `test_cells=`.")
    covariates = recorded_covariates(adata) if is_prepared(adata) else ()
    keys_in_space = position_keys(recorded_settings(adata) if is_prepared(adata) else {})
    store = partial(StoredCells.from_anndata, genes=names.index, covariates=covariates, position_keys=keys_in_space)
    training = store(path, adata, np.flatnonzero(~is_test), slot=slot)
    if test_path is None:
        test = store(path, adata, np.flatnonzero(is_test), slot=slot)
    else:
        test_adata, test_slot = open_cells(test_path, keys)
        check_genes(test_adata.var_names, names.index, test_path)
        test = store(test_path, test_adata, np.arange(test_adata.n_obs), slot=test_slot)
        with error_prefix(test_path):
            check_held_out(test, training)
    small = test.n_by_type.index.difference(test.types(fewest=MIN_CELLS_OF_TYPE))
    if len(small):
        logger.warning("%s: types with too few test cells are not evaluated: %s.", path, ", ".join(small))
    check_number(training.n_by_type // 2, test.n_by_type, f"Half of the training cells of {path}")
    if on_disk:
        return RealCells(training, test, names, keys_in_space)
    return RealCells(training.in_memory(), test.in_memory(), names, keys_in_space)


def read_generated(path: Path, real: RealCells, keys: InputKeys = DEFAULT_KEYS, *, on_disk: bool = False) -> TypedCells:
    """Read generated cells, with genes in the order of the real cells.

    Default columns and counts are used where ``keys`` are missing.
    """
    adata, slot = open_cells(path, keys, strict=False)
    check_genes(adata.var_names, real.genes, path)
    covariates = () if real.test.covariates is None else tuple(real.test.covariates)
    rows = np.arange(adata.n_obs)
    cells = StoredCells.from_anndata(path, adata, rows, real.genes, slot, covariates, real.position_keys)
    unknown = cells.n_by_type.index.difference(real.training.n_by_type.index.union(real.test.n_by_type.index))
    if len(unknown):
        raise InputError(
            f"{path} has cells of types that the real cells lack: {abbreviated(unknown)}; use the same names of types."
        )
    check_number(cells.n_by_type, real.test.n_by_type, str(path))
    return cells if on_disk else cells.in_memory()


def open_cells(path: Path, keys: InputKeys, *, strict: bool = True, by_option: bool = True) -> tuple[AnnData, str]:
    """Open cells with counts in ``X``, and columns ``cell_type`` and ``batch``.

    Returns the cells, backed if possible, and the slot of the counts in words, for messages. It is an error if a column
    or slot that ``keys`` name is missing; without ``strict``, the default name replaces it. With ``by_option``, errors
    name ``keys`` as a remedy.
    """
    adata = read_cells(path, on_disk=True, counts=keys.counts or "auto")
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()]
        raise InputError(f"{path} repeats the genes {abbreviated(repeated)}; make their names unique.")
    slots = count_slots(adata)
    slot = keys.counts or "X"
    if not strict and slot not in (*slots, "auto"):
        slot = "X"
    if slot == "auto":
        with error_prefix(path):
            cells = find_counts(adata)[0]
    elif slot in slots:
        cells = slots[slot]
    else:
        remedy = f"name where they are by `counts=` ({', '.join(slots)})" if by_option else "put raw counts there"
        raise InputError(f"{path} has no counts in {slot!r}; {remedy}.")
    obs = adata.obs.copy(deep=False)
    remedy = "name another by `label_key=`" if by_option else "give the cell types in a column of this name"
    obs["cell_type"] = read_column(obs, path, keys.label_key, "cell_type", strict=strict, remedy=remedy)
    if "batch" in obs or keys.batch_key in obs or (keys.batch_key and strict):
        remedy = "name another by `batch_key=`"
        obs["batch"] = read_column(obs, path, keys.batch_key, "batch", strict=strict, remedy=remedy)
    opened = AnnData(to_row_storage(cells.X), obs=obs, var=cells.var, uns=adata.uns, obsm=dict(adata.obsm))
    return opened, "X, or in a layer that `counts=` names" if slot == "X" and by_option else slot


def read_counts(path: Path) -> AnnData:
    """Read the raw counts and ``obs`` of cells written by bdm."""
    adata, slot = open_cells(path, DEFAULT_KEYS, by_option=False)
    return checked_counts(take_cells(adata, np.arange(adata.n_obs)), path, slot)


def read_column(
    obs: pd.DataFrame, path: Path | str, key: str | None, default: str, *, strict: bool, remedy: str
) -> pd.Series:
    """Return column ``key`` of ``obs`` as text, or else column ``default``; see :func:`open_cells`."""
    key = None if key is None else name_in(obs, key)
    name = key if key is not None and (strict or key in obs) else default
    if name not in obs:
        columns = ", ".join(map(str, obs)) or "none"
        raise InputError(f"{path} has no column {name!r} in obs; {remedy} (there are: {columns}).")
    with error_prefix(path):
        return complete_column(obs, name)


def find_test_cells(obs: pd.DataFrame) -> np.ndarray:
    """Return a mask of the test cells, by the column ``split``; they are never training cells."""
    return np.asarray(obs["split"].astype(str) == "test") if "split" in obs else np.zeros(len(obs), dtype=bool)


def check_held_out(test: TypedCells, training: TypedCells) -> None:
    """Check that test cells are not training cells, by their counts.

    Warns about some duplicates, and raises an InputError if most cells are duplicates.
    """
    hashes = fingerprints(test, min_genes=MIN_GENES)
    same = np.isin(hashes, fingerprints(training)) & (hashes > 0)
    n_same, n_test = int(same.sum()), len(test)
    if n_same > n_test / 2:
        raise InputError(
            f"{n_same} of {n_test} test cells have the counts of training cells; give cells that the model was not "
            "fitted on."
        )
    if n_same:
        logger.warning("%d of %d test cells have the counts of training cells, so scores are too good.", n_same, n_test)


def fingerprints(cells: TypedCells, *, min_genes: int = 0) -> np.ndarray:
    """Hash the counts of each cell; 0 below ``min_genes`` detected genes."""
    hashes = []
    for start in range(0, len(cells), BLOCK):
        block = cells[np.arange(start, min(start + BLOCK, len(cells)))]
        counts = block.counts.sorted_indices()
        weights = np.random.default_rng(0).integers(1, 2**63, size=counts.shape[1], dtype=np.uint64)
        hashes.append(np.where(block.n_detected >= min_genes, counts.astype(np.uint64) @ weights, 0))
    return np.concatenate([np.empty(0, dtype=np.uint64), *hashes])
