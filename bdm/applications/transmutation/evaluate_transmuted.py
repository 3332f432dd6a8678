"""Evaluate transmuted cells by comparison with real cells of both types."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
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
    TRANSMUTED,
    UNCHANGED,
    Cells,
    Populations,
    RealCells,
    check_genes,
    checked_counts,
)
from bdm.data.gene_tests import PSEUDOCOUNT, Agreement
from bdm.data.modalities import Modality, modalities_of
from bdm.evaluation.metrics import fitted_pca, gene_statistics
from bdm.evaluation.resamples import draw_resamples
from bdm.evaluation.scores import INDEPENDENT, Comparison, fold_change_scores
from bdm.evaluation.table import MODALITY, TYPE, Row, score_rows, score_table, wide
from bdm.evaluation.verdict import Verdict, verdict
from bdm.settings import EvaluationSettings

logger = logging.getLogger(__name__)

ONE_RESAMPLE = EvaluationSettings(n_repeats=1)
N_CHANGED = 100  # genes that differ most between the types
N_COMPONENTS = 10  # principal components of the variation within types


@dataclass(frozen=True, repr=False)
class TransmutationEvaluation(Result):
    """Scores of transmuted cells by their original type.

    Attributes
    ----------
    to
        New cell type or sub-population.
    scores
        Table of scores as :attr:`bdm.evaluation.evaluate.Evaluation.scores`, see ``score_sets``. A ``group`` is an
        original type, and with several modalities also a type and a further modality. Sets are the transmuted sets and
        ``unchanged`` (cells before transmutation); the floor is as many training cells of the new type.
    fold_changes
        Genes that differ most between the two types, by ``original_type``, ``set`` and ``gene`` (``label`` in figures).
        ``log2_fold_change`` is from the original type to the set, ``log2_fold_change_test`` to test cells of the new
        type.
    provenance
        Version, packages and seed, with checksums and settings of the transmuted files.
    """

    kind = "transmutation"

    to: str
    scores: pd.DataFrame
    fold_changes: pd.DataFrame
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        names = [name for name in self.scores["set"].unique() if name != UNCHANGED]
        lines = [f"Transmuted to {self.to}", *(f"{name}: {self.verdict(name).text}" for name in names)]
        table = wide(self.scores, "group", "score").dropna(how="all").rename_axis([None, None])
        return "\n".join([*lines, table.to_string(float_format="{:.3f}".format)])

    @property
    def original_types(self) -> list[str]:
        """Original cell types."""
        return list(self.scores.loc[self.scores["kind"] == TYPE, "group"].unique())

    def verdict(self, name: str = TRANSMUTED) -> Verdict:
        """Compare a set with training cells of the new type, in words; the worst original type decides."""
        return verdict(self.scores[self.scores["set"] == name])

    def _write_tables(self, folder: Path) -> None:
        write_table(self.scores, folder / "scores.csv")


@dataclass(frozen=True)
class TransmutedCells:
    """Cells after and before transmutation, in the same order."""

    after: Cells
    before: Cells  # with their original types

    def of_modality(self, modality: Modality) -> TransmutedCells:
        """Select the features of a modality."""
        return TransmutedCells(self.after.of_modality(modality), self.before.of_modality(modality))

    def of_type(self, original_type: str, to: str) -> TransmutedCells:
        """Select the cells of an original type, labelled as cells of the new type ``to``."""
        rows = np.flatnonzero(self.before.cell_type == original_type)
        label = np.full(len(rows), to)
        return TransmutedCells(*(replace(cells[rows], cell_type=label) for cells in (self.after, self.before)))


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
    """Compare sets of transmuted cells with test cells of their new type or sub-population, a label of ``real``.

    Transmuted cells of each original type, and the same cells before, are scored as generated cells of the new type.
    """
    rows, changes = list[Row](), []
    types = pd.unique(np.concatenate([cells.before.cell_type for cells in transmuted.values()])).tolist()
    for modality, original in product(modalities := modalities_of(real.names.var), types):
        part = real.of_modality(modality)
        pairs = {name: cells.of_modality(modality).of_type(original, to) for name, cells in transmuted.items()}
        sets = {name: pair for name, pair in pairs.items() if len(pair.after) >= MIN_CELLS_FOR_MEANS}
        n_training = int(part.training.n_by_type.get(original, 0))
        if not sets or n_training < MIN_CELLS_FOR_MEANS:
            n_cells = max(len(pair.after) for pair in pairs.values())
            numbers = f"{counted(n_cells, 'transmuted cell')} and {counted(n_training, 'training cell')}"
            message = "Not evaluated: cells of %s, with %s; %d of each are needed."
            logger.warning(message, original, numbers, MIN_CELLS_FOR_MEANS)
            continue
        ends, before = select_endpoints(part, original, to), next(iter(sets.values())).before
        where, is_first = {"kind": TYPE, "group": original}, modality == modalities[0]
        if not is_first:
            where = {"kind": MODALITY, "group": f"{original}, {modality.name}"}
        rows += score_sets({**sets, UNCHANGED: TransmutedCells(before, before)}, ends, part, where, seed=seed)
        for name, cells in {FLOOR: ends.new, **{name: pair.after for name, pair in sets.items()}}.items():
            if is_first:
                genes = {"gene": part.genes[ends.changed], "label": part.names.labels.iloc[ends.changed].to_numpy()}
                values = fold_changes(cells, ends).columns("log2_fold_change")
                changes.append(pd.DataFrame({**genes, **values, "original_type": original, "set": name}))
    if not rows:
        raise InputError(
            f"No type has {MIN_CELLS_FOR_MEANS} transmuted and as many training cells; transmute more cells."
        )
    return TransmutationEvaluation(
        to=to,
        scores=score_table(rows, [*transmuted, UNCHANGED]),
        fold_changes=pd.concat(changes, ignore_index=True),
        provenance=provenance(seed=seed),
    )


def score_sets(
    sets: dict[str, TransmutedCells], ends: Endpoints, real: RealCells, where: dict[str, str], *, seed: int
) -> Iterator[Row]:
    """Yield the scores of cells of the new type by :class:`Comparison`, and by the genes that differ most."""
    cells = {name: pair.after for name, pair in sets.items()}
    real, n_floor = replace(real, training=ends.new, test=ends.test), ends.new.n_by_type
    [resample] = draw_resamples(real, cells, ONE_RESAMPLE, n_floor=n_floor, seed=seed)
    for name, query in resample.query.items():
        comparison = Comparison.between(query, resample.test, seed=resample.seed)
        masks = (np.ones(len(each), dtype=bool) for each in (comparison.query, comparison.test))
        statistics, changes = gene_statistics(comparison.query, comparison.test), fold_changes(query, ends)
        scores = {
            **comparison.scores(*masks),
            "mean_r2": statistics["mean"].subset(ends.changed).correlation ** 2,
            "variance_r2": statistics["variance"].subset(ends.changed).correlation ** 2,
            **fold_change_scores(changes, independent=INDEPENDENT),
            "sign": float(np.mean(np.sign(changes.query) == np.sign(changes.test))),
        }
        if name in sets:
            scores |= position_correlations(sets[name], ends, seed=seed)
        yield from score_rows(scores, **where, set=name, n_cells=len(query))


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


def fold_changes(query: Cells, ends: Endpoints) -> Agreement:
    """Compute log2 fold changes (CP10k) from the original type to both sets."""
    old, new, expected = (
        np.log2(cells.cp10k[:, ends.changed].mean(axis=0).A1 + PSEUDOCOUNT) for cells in (ends.old, query, ends.test)
    )
    return Agreement(new - old, expected - old)


def position_correlations(pair: TransmutedCells, ends: Endpoints, *, seed: int) -> dict[str, float]:
    """Correlate log library sizes, and the variation within types, of cells before and after transmutation.

    The variation is in principal components, weighted by variance.
    """
    sizes = np.log(np.maximum([pair.before.library_size, pair.after.library_size], 1))
    expression = [cells.expression.toarray() for cells in (ends.old, ends.new)]
    within_types = sparse.csr_matrix(np.concatenate([values - values.mean(axis=0) for values in expression]))
    pca = fitted_pca(within_types, n_components=N_COMPONENTS, seed=seed)
    components = pca.transform(pair.before.expression).T, pca.transform(pair.after.expression).T
    correlations = [Agreement(a, b).correlation for a, b in zip(*components, strict=True)]
    variation = float(np.average(correlations, weights=pca.explained_variance_))
    return {"library_kept": Agreement(*sizes).correlation, "variation_kept": variation}


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
