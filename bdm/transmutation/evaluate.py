"""Evaluation of transmuted cells: before and after, beside real cells of both types."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.data.read import read_cells
from bdm.errors import InputError
from bdm.evaluation.cells import FEWEST_FOR_MEANS, Cells, checked
from bdm.evaluation.inputs import RealCells, check_genes, subset_of_names, with_columns
from bdm.evaluation.resampling import FLOOR
from bdm.threads import using_threads
from bdm.transmutation.scores import Ends, score_transmutation

logger = logging.getLogger(__name__)

UNCHANGED = "unmoved"


@dataclass(frozen=True)
class TransmutedCells:
    """Cells that were moved to another type, and the same cells before, of the types that they were of."""

    after: Cells
    before: Cells

    def of(self, original_type: str) -> tuple[Cells, Cells]:
        """Take the cells that were of one type, after and before."""
        rows = np.flatnonzero(self.before.cell_type == original_type)
        return self.after[rows], self.before[rows]


@dataclass(frozen=True, repr=False)
class TransmutationEvaluation:
    """Scores of moved cells by the type that they were of.

    Attributes
    ----------
    to
        The type that they were moved to.
    table
        (original_type, set) x ``n_cells`` and the scores of :class:`bdm.transmutation.scores.MoveScores`; sets are the
        floor (training cells of the new type), the moved sets, and the cells unmoved.
    """

    to: str
    table: pd.DataFrame
    real: RealCells
    moved: dict[str, TransmutedCells]

    def __repr__(self) -> str:
        return f"Evaluation of cells transmuted to {self.to}\n{self.table.to_string(float_format='{:.3f}'.format)}"

    @property
    def original_types(self) -> list[str]:
        """Types that cells were moved from."""
        return list(self.table.index.unique("original_type"))


@using_threads()
def evaluate_transmutation(
    real: RealCells, moved: dict[str, TransmutedCells], to: str, *, seed: int = 0
) -> TransmutationEvaluation:
    """Judge cells moved to one type by its test cells.

    Raises
    ------
    InputError
        If there are too few real cells to judge by.
    """
    first = next(iter(moved.values()))
    rows = {}
    for original_type in pd.unique(first.before.cell_type):
        ends = ends_of(real, original_type, to)
        for name, (after, before) in sets_of(moved, ends, original_type).items():
            if len(after) < FEWEST_FOR_MEANS:
                logger.warning("Not judged: %s of %s, of which there are %d cells.", name, original_type, len(after))
                continue
            scores = score_transmutation(after, ends, before=before, seed=seed)
            rows[original_type, name] = {"n_cells": len(after), **asdict(scores)}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["original_type", "set"])
    return TransmutationEvaluation(to, table, real, moved)


def ends_of(real: RealCells, original_type: str, to: str) -> Ends:
    """Take the real cells of two types."""
    old, new = (real.training[real.training.cell_type == name] for name in (original_type, to))
    test = real.test[real.test.cell_type == to]
    numbers = {
        f"training cells of {original_type!r}": len(old),
        f"training cells of {to!r}": len(new),
        f"test cells of {to!r}": len(test),
    }
    for what, number in numbers.items():
        if number < FEWEST_FOR_MEANS:
            raise InputError(f"There are {number} {what} to judge by; {FEWEST_FOR_MEANS} are needed.")
    return Ends(old, new, test)


def sets_of(moved: dict[str, TransmutedCells], ends: Ends, original_type: str) -> dict[str, tuple[Cells, Cells | None]]:
    """Name all sets to judge, after and before."""
    parts = {name: cells.of(original_type) for name, cells in moved.items()}
    unmoved = next(iter(parts.values()))[1]
    return {FLOOR: (ends.new, None), **parts, UNCHANGED: (unmoved, unmoved)}


@dataclass(frozen=True)
class TransmutedFile:
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
    cells: TransmutedCells
    how: dict[str, Any]


def read_transmuted(path: Path, prepared: Path, before: AnnData, real: RealCells) -> TransmutedFile:
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
    places = rows_before(adata, before.obs_names, names=(str(path), str(prepared)))
    cells = TransmutedCells(Cells.of(adata[:, real.genes]), Cells.of(before[places]))
    return TransmutedFile(transmuted_to(adata, str(path)), cells, transmutation_record(stored))


def transmutation_record(adata: AnnData) -> dict[str, Any]:
    """Tell the settings and seed of ``bdm transmute`` that moved cells; none where they are not recorded."""
    record = adata.uns.get("bdm", {})
    return json.loads(record["settings"]) | {"seed": int(record["seed"])} if {"settings", "seed"} <= set(record) else {}


def transmuted_to(adata: AnnData, name: str) -> str:
    """Tell which type cells were moved to."""
    types = pd.unique(adata.obs["cell_type"])
    if len(types) != 1:
        raise InputError(f"{name} has cells moved to {len(types)} types; give cells moved to one.")
    return str(types[0])


def rows_before(adata: AnnData, before: pd.Index, *, names: tuple[str, str]) -> np.ndarray:
    """Find moved cells among the names of those from before, and give their places.

    Parameters
    ----------
    names
        Of the moved cells and of those from before, to tell of.
    """
    unknown = adata.obs_names.difference(before)
    if len(unknown) or not before.is_unique:
        lacking = f"lacks their {subset_of_names(unknown)}" if len(unknown) else "has cells of one name"
        raise InputError(f"{names[0]} holds cells that cannot be found before they moved: {names[1]} {lacking}.")
    return np.asarray(before.get_indexer(adata.obs_names))
