"""Evaluation of transmuted cells: transmuted and unchanged, in comparison with real cells of both types."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.files import provenance
from bdm._core.parallel import using_threads
from bdm.data.read import read_cells
from bdm.errors import InputError, counted
from bdm.evaluation.cells import (
    FLOOR,
    MIN_CELLS_FOR_MEANS,
    TRANSMUTED,
    UNCHANGED,
    Cells,
    RealCells,
    check_genes,
    checked,
    subset_of_names,
    with_columns,
)
from bdm.evaluation.resampling import Populations
from bdm.transmutation.results import MAX_TYPES, TransmutationEvaluation
from bdm.transmutation.scores import Endpoints, changed_genes, fold_changes, score_transmutation

logger = logging.getLogger(__name__)

MAX_EMBEDDED = 500  # cells of a type that are embedded


@dataclass(frozen=True)
class TransmutedCells:
    """Cells after and before their transmutation, in the same order; before it, they have their original types."""

    after: Cells
    before: Cells

    def cells_of_type(self, original_type: str) -> tuple[Cells, Cells]:
        """Select the cells of one original type, after and before."""
        rows = np.flatnonzero(self.before.cell_type == original_type)
        return self.after[rows], self.before[rows]


@using_threads()
def evaluate_transmutation(
    real: RealCells, transmuted: dict[str, TransmutedCells], to: str, *, seed: int = 0
) -> TransmutationEvaluation:
    """Compare cells that were transmuted to one type with its test cells.

    Raises
    ------
    InputError
        If there are too few real cells of a type.
    """
    first = next(iter(transmuted.values()))
    rows, changes = {}, []
    for original_type in pd.unique(np.concatenate([cells.before.cell_type for cells in transmuted.values()])):
        ends = select_endpoints(real, original_type, to)
        for name, (after, before) in sets_of_type(transmuted, ends, original_type).items():
            if name != UNCHANGED and len(after):
                changes.append(fold_change_rows(real, ends, after).assign(original_type=original_type, set=name))
            if len(after) < MIN_CELLS_FOR_MEANS:
                logger.warning(
                    "Not evaluated: %s of %s, which has %s.", name, original_type, counted(len(after), "cell")
                )
                continue
            scores = score_transmutation(after, ends, before=before, seed=seed)
            rows[original_type, name] = {"n_cells": len(after), **asdict(scores)}
    return TransmutationEvaluation(
        to=to,
        table=pd.DataFrame.from_dict(rows, orient="index").rename_axis(["original_type", "set"]),
        fold_changes=pd.concat(changes, ignore_index=True),
        provenance=provenance(seed=seed),
        compute_embedding=embedding_of(real, first, list(pd.unique(first.before.cell_type))[:MAX_TYPES], to),
    )


def select_endpoints(real: RealCells, original_type: str, to: str) -> Endpoints:
    """Select the real cells of two types, and the genes that differ between their test cells.

    Neither the floor nor a model has seen test cells, so that their noise is in the fold changes of neither. Where the
    old type has too few of them, its training cells are compared with the test cells of the new type.
    """
    old, new, test_of_old, test = (
        cells[np.flatnonzero(cells.cell_type == name)]
        for cells in (real.training, real.test)
        for name in (original_type, to)
    )
    for cells, name in (
        (old, f"training cells of {original_type!r}"),
        (new, f"training cells of {to!r}"),
        (test, f"test cells of {to!r}"),
    ):
        if len(cells) < MIN_CELLS_FOR_MEANS:
            raise InputError(f"There are {len(cells)} {name} to evaluate by; {MIN_CELLS_FOR_MEANS} are needed.")
    return Endpoints(
        old, new, test, changed_genes(test_of_old if len(test_of_old) >= MIN_CELLS_FOR_MEANS else old, test)
    )


def sets_of_type(
    transmuted: dict[str, TransmutedCells], ends: Endpoints, original_type: str
) -> dict[str, tuple[Cells, Cells | None]]:
    """Return all sets of one original type by name, after and before."""
    sets = {name: cells.cells_of_type(original_type) for name, cells in transmuted.items()}
    unchanged = next(before for _, before in sets.values() if len(before))
    return {FLOOR: (ends.new, None), **sets, UNCHANGED: (unchanged, unchanged)}


def fold_change_rows(real: RealCells, ends: Endpoints, cells: Cells) -> pd.DataFrame:
    """List the log fold changes of the genes that differ most between two types."""
    changes = fold_changes(cells, ends)
    return pd.DataFrame(
        {
            "gene": real.genes[ends.changed],
            "label": real.names.labels.iloc[ends.changed].to_numpy(),
            "log2_fold_change": changes.query,
            "log2_fold_change_test": changes.test,
        }
    )


def embedding_of(
    real: RealCells, transmuted: TransmutedCells, original_types: list[str], to: str
) -> Callable[[], pd.DataFrame]:
    """Return a function that computes the joint UMAP of transmuted, unchanged and real cells."""
    sets = {(to, FLOOR): evenly_sampled(real.training[real.training.cell_type == to])}
    for original_type in original_types:
        after, before = transmuted.cells_of_type(original_type)
        sets[original_type, TRANSMUTED] = evenly_sampled(after)
        sets[original_type, UNCHANGED] = evenly_sampled(before)
    return cache(partial(embedding_table, sets))


def embedding_table(sets: dict[tuple[str, str], Cells]) -> pd.DataFrame:
    """Embed all cells together, and name the original type and the set of each."""
    from bdm.evaluation.umap import joint_umap  # late, as UMAP takes seconds to import

    tables = joint_umap(list(sets.values()), seed=0)
    return pd.concat(
        [
            table.assign(original_type=original_type, set=name)
            for (original_type, name), table in zip(sets, tables, strict=True)
        ],
        ignore_index=True,
    )


def evenly_sampled(cells: Cells) -> Cells:
    """Select ``MAX_EMBEDDED`` cells at equal distances, or all."""
    if len(cells) <= MAX_EMBEDDED:
        return cells
    return cells[np.unique(np.linspace(0, len(cells) - 1, MAX_EMBEDDED).astype(int))]


@dataclass(frozen=True)
class Target:
    """What cells were transmuted to: a cell type, or one of its sub-populations."""

    cell_type: str
    population: str | None = None


@dataclass(frozen=True)
class TransmutedFile:
    """Content of a file of transmuted cells.

    Attributes
    ----------
    to
        What they were transmuted to.
    cells
        Cells with genes in the order of the real cells.
    record
        Settings and seed of ``bdm transmute``; empty where they are not recorded.
    """

    to: Target
    cells: TransmutedCells
    record: dict[str, Any]


def read_transmuted(path: Path, prepared: Path, before: AnnData, real: RealCells) -> TransmutedFile:
    """Read cells that ``bdm transmute`` wrote, and find the same cells by name among the prepared cells.

    Parameters
    ----------
    prepared, before
        File of the prepared cells, and its content.

    Raises
    ------
    InputError
        If the file holds no transmuted cells, or cells that are not among the prepared ones.
    """
    stored = with_columns(read_cells(path), ("cell_type", "original_type"), path)
    adata = checked(stored, path)  # counts and obs alone
    check_genes(adata.var_names, real.genes, path)
    rows = rows_before(adata, before.obs_names, names=(str(path), str(prepared)))
    cells = TransmutedCells(Cells.from_anndata(adata[:, real.genes]), Cells.from_anndata(before[rows]))
    return TransmutedFile(new_type(stored, str(path)), cells, transmutation_record(stored))


def relabelled(real: RealCells, to: Target, populations: Populations | None) -> tuple[RealCells, str]:
    """Name real cells by the sub-population that cells were transmuted to, so that they are compared with it alone.

    Parameters
    ----------
    populations
        Finds the population of each cell, see :func:`bdm.model.populations.populations_by`; None where there is no
        model to find it by.

    Returns
    -------
    Real cells, and the sub-population; as given, with the cell type, if cells were transmuted to a whole type.
    """
    if to.population is None:
        return real, to.cell_type
    sets = [] if populations is None else [cells[np.arange(len(cells))] for cells in (real.training, real.test)]
    named = []
    for cells in sets:
        if populations is not None and (found := populations(cells)) is not None:
            named.append(replace(cells, cell_type=np.where(found == to.population, to.population, cells.cell_type)))
    if len(named) == 2:
        return replace(real, training=named[0], test=named[1]), to.population
    logger.warning(
        "Cells were transmuted to %s, but are compared with all cells of %s; give the model, which finds the "
        "sub-population of each real cell, by `model=`.",
        to.population,
        to.cell_type,
    )
    return real, to.cell_type


def transmutation_record(adata: AnnData) -> dict[str, Any]:
    """Return the recorded settings and seed of ``bdm transmute``; nothing where they are not recorded."""
    record = adata.uns.get("bdm", {})
    return json.loads(record["settings"]) | {"seed": int(record["seed"])} if {"settings", "seed"} <= set(record) else {}


def new_type(adata: AnnData, name: str) -> Target:
    """Return what cells were transmuted to.

    Raises
    ------
    InputError
        If there are several types; ``name`` is how the message calls the cells.
    """
    types = pd.unique(adata.obs["cell_type"])
    if len(types) != 1:
        raise InputError(f"{name} has cells transmuted to {len(types)} types; give cells transmuted to one type.")
    cell_type = str(types[0])
    population = transmutation_record(adata).get("to", cell_type)
    return Target(cell_type, None if population == cell_type else str(population))


def rows_before(adata: AnnData, before: pd.Index, *, names: tuple[str, str]) -> np.ndarray:
    """Find transmuted cells by name among the cells before the transmutation, and return their indices.

    Parameters
    ----------
    names
        How a message calls the transmuted cells, and the cells before.
    """
    unknown = adata.obs_names.difference(before)
    if len(unknown) or not before.is_unique:
        problem = f"lacks {subset_of_names(unknown)}" if len(unknown) else "has several cells of the same name"
        raise InputError(
            f"{names[0]} has cells that cannot be found before their transmutation: {names[1]} {problem}; give the "
            "cells that were transmuted."
        )
    return np.asarray(before.get_indexer(adata.obs_names))
