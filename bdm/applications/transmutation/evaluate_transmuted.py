"""Evaluate transmuted cells by comparison with real cells of both types."""

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
from bdm._core.files import provenance, write_table
from bdm._core.parallel import using_threads
from bdm._core.store import Result
from bdm.data.cells import (
    FLOOR,
    MIN_CELLS_FOR_MEANS,
    UNCHANGED,
    Cells,
    Populations,
    RealCells,
    check_genes,
    checked_counts,
)
from bdm.data.gene_tests import PSEUDOCOUNT, Agreement
from bdm.data.modalities import Modality, modalities_of
from bdm.evaluation.metrics import PairDistances, fitted_pca, gene_statistics, joint_components

logger = logging.getLogger(__name__)

MAX_COMPARED = 1000  # cells in energy distances
N_CHANGED = 100  # genes that differ most between the types
N_COMPONENTS = 10  # principal components of the variation within types


@dataclass(frozen=True, repr=False)
class TransmutationEvaluation(Result):
    """Scores of transmuted cells by their original type.

    Attributes
    ----------
    to
        New cell type or sub-population.
    table
        Scores (see ``score_transmutation``) and ``n_cells``, with the index (``original_type``, ``set``). Sets are
        the floor (training cells of the new type), the transmuted sets, and ``unchanged`` (cells before transmutation).
    fold_changes
        Genes that differ most between the two types, by ``original_type``, ``set`` and ``gene`` (``label`` in figures).
        ``log2_fold_change`` is from the original type to the set, ``log2_fold_change_test`` to test cells of the new
        type.
    provenance
        Version, packages and seed, with checksums and settings of the transmuted files.
    modalities
        ``table`` of each modality; None for RNA alone. With several modalities, the other tables are of the first.
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
        """Original cell types."""
        return list(self.table.index.unique("original_type"))

    def _write_tables(self, folder: Path) -> None:
        table = self.table if self.modalities is None else self.modalities
        write_table(table, folder / "scores.csv", index=True)


@dataclass(frozen=True)
class TransmutedCells:
    """Cells after and before transmutation, in the same order."""

    after: Cells
    before: Cells  # with their original types

    def of_modality(self, modality: Modality) -> TransmutedCells:
        """Select the features of a modality."""
        return TransmutedCells(self.after.of_modality(modality), self.before.of_modality(modality))

    def cells_of_type(self, original_type: str) -> tuple[Cells, Cells]:
        """Select the cells of an original type, after and before."""
        rows = np.flatnonzero(self.before.cell_type == original_type)
        return self.after[rows], self.before[rows]


@dataclass(frozen=True)
class Endpoints:
    """Real cells of the original and the new type."""

    old: Cells  # training cells
    new: Cells  # training cells
    test: Cells  # test cells of the new type
    changed: np.ndarray  # columns of the genes that differ most


@using_threads()
def evaluate_transmutation(
    real: RealCells, transmuted: dict[str, TransmutedCells], to: str, *, seed: int = 0
) -> TransmutationEvaluation:
    """Compare sets of transmuted cells with test cells of their new type or sub-population, a label of ``real``."""
    modalities = modalities_of(real.names.var)
    results = []
    for modality in modalities:
        features = {name: cells.of_modality(modality) for name, cells in transmuted.items()}
        results.append(compare_with_new_type(real.of_modality(modality), features, to, seed=seed))
    (table, changes), names = results[0], [modality.name for modality in modalities]
    tables = pd.concat([table for table, _ in results], keys=names, names=["modality"])
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
    """Compute scores and fold changes of a modality, see :class:`TransmutationEvaluation`."""
    rows, changes = {}, []
    for original_type in pd.unique(np.concatenate([cells.before.cell_type for cells in transmuted.values()])).tolist():
        pairs = {name: cells.cells_of_type(original_type) for name, cells in transmuted.items()}
        sets = {name: (after, before) for name, (after, before) in pairs.items() if len(after) >= MIN_CELLS_FOR_MEANS}
        n_training = int(real.training.n_by_type.get(original_type, 0))
        if not sets or n_training < MIN_CELLS_FOR_MEANS:
            n_cells = max(len(after) for after, _ in pairs.values())
            numbers = f"{counted(n_cells, 'transmuted cell')} and {counted(n_training, 'training cell')}"
            message = "Not evaluated: cells of %s, with %s; %d of each are needed."
            logger.warning(message, original_type, numbers, MIN_CELLS_FOR_MEANS)
            continue
        ends, (_, unchanged) = select_endpoints(real, original_type, to), next(iter(sets.values()))
        for name, (after, before) in {FLOOR: (ends.new, None), **sets, UNCHANGED: (unchanged, unchanged)}.items():
            if name != UNCHANGED:
                genes = {"gene": real.genes[ends.changed], "label": real.names.labels.iloc[ends.changed].to_numpy()}
                agreement = fold_changes(after, ends)
                values = {"log2_fold_change": agreement.query, "log2_fold_change_test": agreement.test}
                changes.append(pd.DataFrame({**genes, **values, "original_type": original_type, "set": name}))
            scores = score_transmutation(after, ends, before=before, seed=seed)
            rows[original_type, name] = {"n_cells": len(after), **scores}
    if not rows:
        raise InputError(
            f"No type has {MIN_CELLS_FOR_MEANS} transmuted and as many training cells; transmute more cells."
        )
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["original_type", "set"])
    return table, pd.concat(changes, ignore_index=True)


def select_endpoints(real: RealCells, original_type: str, to: str) -> Endpoints:
    """Select the real cells of two types, and the genes that differ most.

    The difference is from test cells of the original type, or training cells if there are too few.
    """
    old, new, old_test, test = (
        cells[np.flatnonzero(cells.cell_type == name)]
        for cells in (real.training, real.test)
        for name in (original_type, to)
    )
    for cells, split, name in ((new, "training", to), (test, "test", to)):
        if len(cells) < MIN_CELLS_FOR_MEANS:
            raise InputError(
                f"There are {len(cells)} {split} cells of {name!r}; the evaluation needs {MIN_CELLS_FOR_MEANS}."
            )
    reference = old_test if len(old_test) >= MIN_CELLS_FOR_MEANS else old
    difference = np.abs(test.expression.mean(axis=0).A1 - reference.expression.mean(axis=0).A1)
    return Endpoints(old, new, test, np.argsort(-difference, kind="stable")[:N_CHANGED])


def score_transmutation(query: Cells, ends: Endpoints, *, before: Cells | None = None, seed: int) -> dict[str, float]:
    """Score transmuted cells against test cells of their new type.

    Returns
    -------
    Scores by name. Means, variances, slope and sign are of the genes that differ most:

    - ``energy``: energy distance in joint principal components.
    - ``mean_r2``, ``variance_r2``: squared correlation of means and variances.
    - ``slope``, ``sign``: regression slope of log fold changes from the original type, and fraction with the same sign.
    - ``library_kept``: correlation of log library sizes before and after; NaN without ``before``.
    - ``variation_kept``: correlation of principal components of the variation within types, weighted by variance.
    """
    statistics, changes = gene_statistics(query, ends.test), fold_changes(query, ends)
    kept = (np.nan, np.nan) if before is None else position_correlations(before, query, ends, seed=seed)
    return {
        "energy": PairDistances.between(*compared_components(query, ends.test, seed=seed)).energy,
        "mean_r2": statistics["mean"].subset(ends.changed).correlation ** 2,
        "variance_r2": statistics["variance"].subset(ends.changed).correlation ** 2,
        "slope": changes.slope,
        "sign": float(np.mean(np.sign(changes.query) == np.sign(changes.test))),
        "library_kept": kept[0],
        "variation_kept": kept[1],
    }


def compared_components(query: Cells, test: Cells, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute joint principal components of equal numbers of cells."""
    n_cells = min(len(query), len(test), MAX_COMPARED)
    generator = np.random.default_rng(seed)
    query, test = (cells[np.sort(generator.permutation(len(cells))[:n_cells])] for cells in (query, test))
    return joint_components(query.expression, test.expression, seed=seed)


def fold_changes(query: Cells, ends: Endpoints) -> Agreement:
    """Compute log2 fold changes (CP10k) from the original type to both sets."""
    old, new, expected = (
        np.log2(cells.cp10k[:, ends.changed].mean(axis=0).A1 + PSEUDOCOUNT) for cells in (ends.old, query, ends.test)
    )
    return Agreement(new - old, expected - old)


def position_correlations(before: Cells, after: Cells, ends: Endpoints, *, seed: int) -> tuple[float, float]:
    """Correlate library sizes and positions within types, before and after transmutation."""
    sizes = np.log(np.maximum([before.library_size, after.library_size], 1))
    expression = [cells.expression.toarray() for cells in (ends.old, ends.new)]
    within_types = sparse.csr_matrix(np.concatenate([values - values.mean(axis=0) for values in expression]))
    pca = fitted_pca(within_types, n_components=N_COMPONENTS, seed=seed)
    components = pca.transform(before.expression).T, pca.transform(after.expression).T
    correlations = [Agreement(a, b).correlation for a, b in zip(*components, strict=True)]
    return Agreement(*sizes).correlation, float(np.average(correlations, weights=pca.explained_variance_))


# ---- content of transmuted cells


def check_transmuted(
    transmuted: AnnData, before: pd.Index, real: RealCells, *, names: tuple[str, str]
) -> tuple[Cells, np.ndarray]:
    """Check transmuted cells, and match them by name to the cells before.

    Returns cells with the genes of ``real``, and their rows before. Errors use ``names`` for both.
    """
    for column in ("cell_type", "original_type"):
        if column not in transmuted.obs:
            raise InputError(f"{names[0]} has no column {column!r} in obs; give cells from bdm transmute.")
    adata = checked_counts(transmuted, names[0])  # drops all but counts and obs
    check_genes(adata.var_names, real.genes, names[0])
    unknown = adata.obs_names.difference(before)
    if len(unknown) or not before.is_unique:
        problem = f"lacks {abbreviated(unknown)}" if len(unknown) else "has several cells of the same name"
        raise InputError(
            f"{names[0]} cannot be matched to the cells before transmutation: {names[1]} {problem}; give the cells "
            "that were transmuted."
        )
    return Cells.from_anndata(adata[:, real.genes]), np.asarray(before.get_indexer(adata.obs_names))


def relabel(real: RealCells, cell_type: str, to: str, populations: Populations | None) -> tuple[RealCells, str]:
    """Label real cells of the target ``to``, if it is a known sub-population; returns cells and label."""
    if to == cell_type:
        return real, cell_type
    training, test = (cells[np.arange(len(cells))] for cells in (real.training, real.test))  # in memory
    assigned = [None if populations is None else populations(cells) for cells in (training, test)]
    if assigned[0] is None or assigned[1] is None:
        logger.warning(
            "Cells were transmuted to %s, but are compared with all cells of %s; give the model by `model=` to compare "
            "with the sub-population.",
            to,
            cell_type,
        )
        return real, cell_type
    training, test = (
        replace(cells, cell_type=np.where(names == to, to, cells.cell_type))
        for cells, names in ((training, assigned[0]), (test, assigned[1]))
    )
    return replace(real, training=training, test=test), to


def transmutation_record(adata: AnnData) -> dict[str, Any]:
    """Return the recorded settings and seed of ``bdm transmute``, if any."""
    record = adata.uns.get("bdm", {})
    return json.loads(record["settings"]) | {"seed": int(record["seed"])} if {"settings", "seed"} <= set(record) else {}


def read_target(adata: AnnData, name: str) -> tuple[str, str]:
    """Return the new type of transmuted cells, and their target: this type or a sub-population of it."""
    types = pd.unique(adata.obs["cell_type"])
    if len(types) != 1:
        raise InputError(f"{name} has cells transmuted to {len(types)} types; give cells transmuted to one type.")
    return str(types[0]), str(transmutation_record(adata).get("to", types[0]))
