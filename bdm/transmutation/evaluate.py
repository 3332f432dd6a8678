"""Evaluation of transmuted cells, in comparison with real cells of both types; its results, in memory and on disk."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.files import provenance
from bdm._core.parallel import using_threads
from bdm._core.store import Result
from bdm.data.modalities import Modality, modalities_of
from bdm.data.read import read_cells
from bdm.evaluation.cells import (
    FLOOR,
    MIN_CELLS_FOR_MEANS,
    UNCHANGED,
    Cells,
    Populations,
    RealCells,
    check_genes,
    checked,
)
from bdm.evaluation.genes import PSEUDOCOUNT, gene_statistics
from bdm.evaluation.metrics import Agreement, energy_distance, fitted_pca, joint_components

logger = logging.getLogger(__name__)

MAX_COMPARED = 1000  # cells whose distances are computed
N_CHANGED = 100  # genes
N_COMPONENTS = 10  # in which variation within types is compared


@dataclass(frozen=True, repr=False)
class TransmutationEvaluation(Result):
    """Scores of transmuted cells by their original type.

    Attributes
    ----------
    to
        The type that cells were transmuted to.
    table
        (original_type, set) x ``n_cells`` and scores, see :func:`bdm.transmutation.evaluate.score_transmutation`; sets
        are the floor (training cells of the new type), the transmuted sets (``transmuted`` the first), and the cells
        ``unchanged``.
    fold_changes
        A row for each ``original_type``, ``set`` (the floor and the transmuted sets) and ``gene`` (shown as ``label``)
        of those that differ most between the two types: its ``log2_fold_change`` from the original type in the set, and
        in test cells of the new type (``log2_fold_change_test``).
    provenance
        Version, packages, seed, and checksums and settings of the transmuted files.
    modalities
        The table of each modality; None for RNA alone. Of several, ``table`` and ``fold_changes`` are of RNA.
    """

    kind = "transmutation"

    to: str
    table: pd.DataFrame
    fold_changes: pd.DataFrame
    provenance: dict[str, Any]
    modalities: pd.DataFrame | None = None

    def __repr__(self) -> str:
        return f"Transmuted to {self.to}:\n{self.table.to_string(float_format='{:.3f}'.format)}"

    @property
    def original_types(self) -> list[str]:
        """Types that cells were transmuted from."""
        return list(self.table.index.unique("original_type"))

    def _write_tables(self, folder: Path) -> None:
        table = self.table if self.modalities is None else self.modalities
        table.to_csv(folder / "scores.csv", float_format="%.6g")


@dataclass(frozen=True)
class TransmutedCells:
    """Cells after and before their transmutation, in the same order; before it, they have their original types."""

    after: Cells
    before: Cells

    def of_modality(self, modality: Modality) -> TransmutedCells:
        """Take the features of a modality."""
        return TransmutedCells(self.after.of_modality(modality), self.before.of_modality(modality))

    def cells_of_type(self, original_type: str) -> tuple[Cells, Cells]:
        """Select the cells of one original type, after and before."""
        rows = np.flatnonzero(self.before.cell_type == original_type)
        return self.after[rows], self.before[rows]


@dataclass(frozen=True)
class Endpoints:
    """Training cells of the original and of the new type, test cells of the new type, and columns of changed genes."""

    old: Cells
    new: Cells
    test: Cells
    changed: np.ndarray  # that differ most between the two types


@using_threads()
def evaluate_transmutation(
    real: RealCells, transmuted: dict[str, TransmutedCells], to: str, *, seed: int = 0
) -> TransmutationEvaluation:
    """Compare cells that were transmuted to one type with its test cells."""
    modalities = modalities_of(real.names.var)
    compared = []
    for modality in modalities:
        of_modality = {name: cells.of_modality(modality) for name, cells in transmuted.items()}
        compared.append(compare_with_new_type(real.of_modality(modality), of_modality, to, seed=seed))
    (table, changes), names = compared[0], [modality.name for modality in modalities]
    tables = pd.concat([table for table, _ in compared], keys=names, names=["modality"])
    return TransmutationEvaluation(
        to=to,
        table=table,
        fold_changes=changes,
        provenance=provenance(seed=seed),
        modalities=tables if len(names) > 1 else None,
    )


def compare_with_new_type(
    real: RealCells, transmuted: dict[str, TransmutedCells], to: str, *, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores, and changes of genes, of one modality; see :class:`TransmutationEvaluation`."""
    rows, changes = {}, []
    for original_type in pd.unique(np.concatenate([cells.before.cell_type for cells in transmuted.values()])).tolist():
        of_type = {name: cells.cells_of_type(original_type) for name, cells in transmuted.items()}
        sets = {name: (after, before) for name, (after, before) in of_type.items() if len(after) >= MIN_CELLS_FOR_MEANS}
        n_training = int(real.training.n_by_type.get(original_type, 0))
        if not sets or n_training < MIN_CELLS_FOR_MEANS:
            n_cells = max(len(after) for after, _ in of_type.values())
            numbers = f"{counted(n_cells, 'transmuted cell')}, and {counted(n_training, 'training cell')}"
            logger.warning("Not evaluated: cells of %s, of which there are %s.", original_type, numbers)
            continue
        ends, (_, unchanged) = select_endpoints(real, original_type, to), next(iter(sets.values()))
        for name, (after, before) in {FLOOR: (ends.new, None), **sets, UNCHANGED: (unchanged, unchanged)}.items():
            if name != UNCHANGED:
                genes = {"gene": real.genes[ends.changed], "label": real.names.labels.iloc[ends.changed].to_numpy()}
                found = fold_changes(after, ends)
                values = {"log2_fold_change": found.query, "log2_fold_change_test": found.test}
                changes.append(pd.DataFrame({**genes, **values, "original_type": original_type, "set": name}))
            scores = score_transmutation(after, ends, before=before, seed=seed)
            rows[original_type, name] = {"n_cells": len(after), **scores}
    if not rows:
        raise InputError(
            f"No type has {MIN_CELLS_FOR_MEANS} transmuted cells and as many training cells; transmute more cells."
        )
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["original_type", "set"])
    return table, pd.concat(changes, ignore_index=True)


def select_endpoints(real: RealCells, original_type: str, to: str) -> Endpoints:
    """Select the real cells of two types, and the genes that differ between test cells (or training cells, if few)."""
    old, new, test_of_old, test = (
        cells[np.flatnonzero(cells.cell_type == name)]
        for cells in (real.training, real.test)
        for name in (original_type, to)
    )
    for cells, split, name in ((new, "training", to), (test, "test", to)):
        if len(cells) < MIN_CELLS_FOR_MEANS:
            raise InputError(
                f"There are {len(cells)} {split} cells of {name!r} to evaluate by; {MIN_CELLS_FOR_MEANS} are needed."
            )
    compared = test_of_old if len(test_of_old) >= MIN_CELLS_FOR_MEANS else old
    difference = np.abs(test.expression.mean(axis=0).A1 - compared.expression.mean(axis=0).A1)
    return Endpoints(old, new, test, np.argsort(-difference, kind="stable")[:N_CHANGED])


def score_transmutation(query: Cells, ends: Endpoints, *, before: Cells | None = None, seed: int) -> dict[str, float]:
    """Compare transmuted cells with test cells of their new type, and with the same cells before, if known.

    - ``mean_r2``, ``variance_r2``: squared correlation of the means and variances of the genes that differ most;
    - ``slope``, ``sign``: of log fold changes from the original type, and the share with the same direction;
    - ``library_kept``, ``variation_kept``: correlation before and after of log library sizes, and of principal
      components of the variation within types, weighted by their variance.
    """
    statistics, changes = gene_statistics(query, ends.test), fold_changes(query, ends)
    kept = (np.nan, np.nan) if before is None else correlations_with(before, query, ends, seed=seed)
    return {
        "energy": energy_distance(*compared_components(query, ends.test, seed=seed)),
        "mean_r2": statistics["mean"].subset(ends.changed).correlation ** 2,
        "variance_r2": statistics["variance"].subset(ends.changed).correlation ** 2,
        "slope": changes.slope,
        "sign": float(np.mean(np.sign(changes.query) == np.sign(changes.test))),
        "library_kept": kept[0],
        "variation_kept": kept[1],
    }


def compared_components(query: Cells, test: Cells, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Joint principal components of as many cells of both as the smaller set has, or ``MAX_COMPARED``."""
    n_cells = min(len(query), len(test), MAX_COMPARED)
    generator = np.random.default_rng(seed)
    one, other = (cells[np.sort(generator.permutation(len(cells))[:n_cells])] for cells in (query, test))
    return joint_components(one.expression, other.expression, seed=seed)


def fold_changes(query: Cells, ends: Endpoints) -> Agreement:
    """Log2 fold changes from the original type of the genes that differ most; in CP10k."""
    of_old, of_query, of_test = (
        np.log2(cells.cp10k[:, ends.changed].mean(axis=0).A1 + PSEUDOCOUNT) for cells in (ends.old, query, ends.test)
    )
    return Agreement(of_query - of_old, of_test - of_old)


def correlations_with(before: Cells, after: Cells, ends: Endpoints, *, seed: int) -> tuple[float, float]:
    """Correlate library sizes, and the variation within types, of cells before and after their transmutation."""
    sizes = np.log(np.maximum([before.library_size, after.library_size], 1))
    of_types = [cells.expression.toarray() for cells in (ends.old, ends.new)]
    within = sparse.csr_matrix(np.concatenate([values - values.mean(axis=0) for values in of_types]))
    pca = fitted_pca(within, n_components=N_COMPONENTS, seed=seed)
    one, other = pca.transform(before.expression), pca.transform(after.expression)
    correlations = [Agreement(a, b).correlation for a, b in zip(one.T, other.T, strict=True)]
    return Agreement(*sizes).correlation, float(np.average(correlations, weights=pca.explained_variance_))


# ---- files of transmuted cells


@dataclass(frozen=True)
class Target:
    """What cells were transmuted to: a cell type, or one of its sub-populations."""

    cell_type: str
    population: str | None = None


@dataclass(frozen=True)
class TransmutedFile:
    """Content of a file of transmuted cells; ``record`` has the settings of ``bdm transmute``, if recorded."""

    to: Target
    cells: TransmutedCells  # genes in the order of the real cells
    record: dict[str, Any]


def read_transmuted(path: Path, prepared: Path, before: AnnData, real: RealCells) -> TransmutedFile:
    """Read cells that ``bdm transmute`` wrote, and find the same cells by name among the prepared cells."""
    stored = read_cells(path)
    after, rows = checked_cells(stored, before.obs_names, real, names=(str(path), str(prepared)))
    cells = TransmutedCells(after, Cells.from_anndata(before[rows]))
    return TransmutedFile(new_type(stored, str(path)), cells, transmutation_record(stored))


def checked_cells(
    transmuted: AnnData, before: pd.Index, real: RealCells, *, names: tuple[str, str]
) -> tuple[Cells, np.ndarray]:
    """Check transmuted cells, and find the same ones by name before; messages call both by their ``names``.

    Returns: their counts of the genes of the real cells, and their indices among the cells before.
    """
    for column in ("cell_type", "original_type"):
        if column not in transmuted.obs:
            raise InputError(f"{names[0]} has no column {column!r} in obs; give cells that bdm transmuted.")
    adata = checked(transmuted, names[0])  # counts and obs alone
    check_genes(adata.var_names, real.genes, names[0])
    return Cells.from_anndata(adata[:, real.genes]), rows_before(adata, before, names=names)


def relabelled(real: RealCells, to: Target, populations: Populations | None) -> tuple[RealCells, str]:
    """Name real cells by the sub-population that cells were transmuted to, if it is found, and return its name."""
    if to.population is None:
        return real, to.cell_type
    training, test = (cells[np.arange(len(cells))] for cells in (real.training, real.test))
    found = [None if populations is None else populations(cells) for cells in (training, test)]
    if found[0] is None or found[1] is None:
        logger.warning(
            "Cells were transmuted to %s, but are compared with all cells of %s; give the model, which finds the "
            "sub-population of each real cell, by `model=`.",
            to.population,
            to.cell_type,
        )
        return real, to.cell_type
    training, test = (
        replace(cells, cell_type=np.where(cells_of == to.population, to.population, cells.cell_type))
        for cells, cells_of in ((training, found[0]), (test, found[1]))
    )
    return replace(real, training=training, test=test), to.population


def transmutation_record(adata: AnnData) -> dict[str, Any]:
    """Return the recorded settings and seed of ``bdm transmute``; nothing where they are not recorded."""
    record = adata.uns.get("bdm", {})
    return json.loads(record["settings"]) | {"seed": int(record["seed"])} if {"settings", "seed"} <= set(record) else {}


def new_type(adata: AnnData, name: str) -> Target:
    """Return what cells were transmuted to; messages call them ``name``."""
    types = pd.unique(adata.obs["cell_type"])
    if len(types) != 1:
        raise InputError(f"{name} has cells transmuted to {len(types)} types; give cells transmuted to one type.")
    cell_type = str(types[0])
    population = transmutation_record(adata).get("to", cell_type)
    return Target(cell_type, None if population == cell_type else str(population))


def rows_before(adata: AnnData, before: pd.Index, *, names: tuple[str, str]) -> np.ndarray:
    """Find transmuted cells by name among the cells before the transmutation, and return their indices."""
    unknown = adata.obs_names.difference(before)
    if len(unknown) or not before.is_unique:
        problem = f"lacks {abbreviated(unknown)}" if len(unknown) else "has several cells of the same name"
        raise InputError(
            f"{names[0]} has cells that cannot be found before their transmutation: {names[1]} {problem}; give the "
            "cells that were transmuted."
        )
    return np.asarray(before.get_indexer(adata.obs_names))
