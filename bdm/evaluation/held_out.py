"""Check that test cells are no training cells, by their counts and by their names."""

import logging

import numpy as np
import pandas as pd

from bdm.errors import InputError
from bdm.evaluation.cells import BLOCK, TypedCells

logger = logging.getLogger(__name__)

MIN_GENES = 10  # with counts in a cell, below which cells may have the same counts by chance


def check_held_out(test: TypedCells, training: TypedCells, test_names: pd.Index, training_names: pd.Index) -> None:
    """Reject test cells if most of them are training cells by their counts, and warn if some are, or by their names.

    Parameters
    ----------
    test_names, training_names
        Names of the cells; names of cells that are not in ``test`` have no effect.

    Raises
    ------
    InputError
        If more than half of the test cells have the counts of training cells.
    """
    of_test = fingerprints(test, fewest_genes=MIN_GENES)
    same = np.isin(of_test, fingerprints(training)) & (of_test > 0)
    n_same, n_test = int(same.sum()), len(test)
    if n_same > n_test / 2:
        raise InputError(
            f"{n_same} of {n_test} test cells have the counts of training cells; give cells that the model was not "
            "fitted on."
        )
    if n_same:
        logger.warning("%d of %d test cells have the counts of training cells: scores are too good.", n_same, n_test)
        return
    n_named = int(test_names.isin(training_names).sum())
    if n_named:
        logger.warning(
            "%d of %d test cells have the names of training cells, though other counts; make sure that the model was "
            "not fitted on them.",
            n_named,
            len(test_names),
        )


def fingerprints(cells: TypedCells, *, fewest_genes: int = 0) -> np.ndarray:
    """Hash the counts of each cell; equal for equal counts, and 0 for cells with counts of too few genes."""
    hashes = []
    for start in range(0, len(cells), BLOCK):
        block = cells[np.arange(start, min(start + BLOCK, len(cells)))]
        counts = block.counts.sorted_indices()
        weights = np.random.default_rng(0).integers(1, 2**63, size=counts.shape[1], dtype=np.uint64)
        hashes.append(np.where(block.n_detected >= fewest_genes, counts.astype(np.uint64) @ weights, 0))
    return np.concatenate([np.empty(0, dtype=np.uint64), *hashes])
