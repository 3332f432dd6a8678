"""Evaluation of generated cells, averaged over resamples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.errors import abbreviated, counted
from bdm._core.files import provenance, write_table
from bdm._core.parallel import using_threads
from bdm._core.progress import progress
from bdm._core.store import Result
from bdm.data.cells import FLOOR, GENERATED, MIN_CELLS_FOR_MEANS, Cells, Populations, RealCells, TypedCells
from bdm.data.gene_tests import Agreement, marker_genes
from bdm.data.genes import GeneNames
from bdm.data.modalities import has_modalities, parts_of_rna
from bdm.evaluation.group_scores import score_groups
from bdm.evaluation.metrics import (
    QueryCells,
    compare_with_training,
    gene_statistics,
    marker_fold_changes,
    variable_genes,
)
from bdm.evaluation.modality_scores import joint_umap, modality_scores
from bdm.evaluation.resamples import (
    SIZE_LIMITS,
    ResampledCells,
    SizeLimits,
    draw_resamples,
    match,
    sample_at_most,
    with_progress,
)
from bdm.evaluation.scores import Reference, expression_along, score_cells, score_other_genes
from bdm.evaluation.space_scores import SpaceMaps, score_space
from bdm.evaluation.table import ALL, EVERY, KINDS, TYPE, Row, score_rows, score_table, wide
from bdm.evaluation.verdict import Verdict, verdict
from bdm.settings import EvaluationSettings

logger = logging.getLogger(__name__)

MIN_QUERY_CELLS = 500  # for memorisation, however many training cells there are


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """Scores of generated cells and of the floor, compared with test cells.

    The floor is training cells, scored in the same way; it is the first set. Generated cells are the set
    ``generated``. Scores are means over resamples; statistics of genes and the UMAP are from the last resample.

    Attributes
    ----------
    scores
        Table of scores: a row for each ``score`` (see :data:`bdm.evaluation.table.SCORES`) of each ``group`` of cells
        and ``set``. The ``kind`` of a group is
        ``all`` cells, ``type``, ``sub_population``, ``covariate`` (bins of values), ``modality``, ``batch``, ``donor``,
        ``section``, or cells in ``space``. ``value`` is the score, ``floor`` the score of as many training cells. Cells
        are worse than real ones beyond ``first_limit``, and much worse beyond ``second_limit``; NaN for scores that are
        not judged. ``error`` is a standard error, ``n_cells`` the number of compared cells, and ``missing`` says why
        there is no value.
    along
        Expression of genes in bins of covariates, see :func:`bdm.evaluation.scores.expression_along`.
    n_cells
        Numbers of available cells: cell types x ``test``, ``train`` and the generated sets.
    n_compared
        Numbers of cells in one resample: cell types x ``test``, the floor and the generated sets.
    markers
        Names of the marker genes by cell type.
    gene_statistics
        A row per set and ``gene`` (with its ``symbol`` if that differs): ``mean`` and ``variance`` of
        ``log1p(CP10k)`` and ``zero_fraction`` in the set, and in as many test cells (``mean_test`` and so on).
    fold_changes
        A row per ``set``, ``cell_type`` and marker ``gene``: ``log2_fold_change`` in the set, and in as many test
        cells (``log2_fold_change_test``). Types with fewer than five cells are left out.
    provenance
        Version, packages, seed, settings, and checksums of the files.
    compute_embedding
        Function that computes :attr:`embedding` once, and caches it.
    space
        Moran's I of genes, and cells to draw, as :class:`bdm.evaluation.space_scores.SpaceMaps`; None without
        positions of real and generated cells.
    """

    kind = "evaluation"

    scores: pd.DataFrame
    along: pd.DataFrame
    n_cells: pd.DataFrame
    n_compared: pd.DataFrame
    markers: dict[str, list[str]]
    gene_statistics: pd.DataFrame
    fold_changes: pd.DataFrame
    provenance: dict[str, Any]
    compute_embedding: Callable[[], pd.DataFrame]
    space: SpaceMaps | None = None

    def __repr__(self) -> str:
        n_test, n_types = int(self.n_cells["test"].sum()), len(self.n_cells)
        verdicts = {name: self.verdict(name) for name in self.sets if name != FLOOR}
        lines = [f"Evaluation by {n_test:,} test cells of {counted(n_types, 'type')}"]
        lines += [f"{name}: {each.text}" for name, each in verdicts.items()]
        lines += not_checked_lines(verdicts)
        return "\n".join([*lines, score_text(self.overall)])

    @property
    def embedding(self) -> pd.DataFrame:
        """Joint UMAP of test cells and all sets, computed on first access.

        Columns are ``umap_1``, ``umap_2``, ``cell_type``, ``set`` and, if a model assigns them, ``sub_population``.
        """
        return self.compute_embedding()

    @property
    def sets(self) -> list[str]:
        """Names of the sets, the floor first."""
        return list(self.n_compared.columns.drop("test"))

    def scores_of(self, *kinds: str) -> pd.DataFrame:
        """Rows of :attr:`scores` of groups of these kinds."""
        return self.scores[self.scores["kind"].isin(kinds)]

    @property
    def overall(self) -> pd.DataFrame:
        """Scores of all cells, scores x sets; the first is the floor."""
        return wide(self.scores_of(ALL), "score")

    @property
    def by_type(self) -> pd.DataFrame:
        """Scores of each type, (set, cell_type) x scores; the first set is the floor."""
        table = wide(self.scores_of(TYPE), "score", "group").stack(future_stack=True).unstack("score")
        return table.swaplevel().loc[self.sets].rename_axis(["set", "cell_type"]).rename_axis(columns=None)

    def verdict(self, name: str = GENERATED) -> Verdict:
        """Compare a set with the floor, in words: all its cells, and groups of :data:`bdm.evaluation.table.KINDS`."""
        table = self.scores_of(*KINDS)
        return verdict(table[table["set"] == name])

    def verdicts_by_type(self, name: str = GENERATED) -> dict[str, Verdict]:
        """Compare the scores of each cell type with the floor, in words.

        Types that were not compared have the grade unknown. A single cell type has the verdict on all cells.
        """
        if len(self.n_cells) == 1:
            return {str(cell_type): self.verdict(name) for cell_type in self.n_cells.index}
        table = self.scores_of(TYPE)
        by_type = dict(iter(table[table["set"] == name].groupby("group")))
        return {cell_type: verdict(by_type.get(cell_type, table[:0])) for cell_type in self.n_cells.index}

    def _write_tables(self, folder: Path) -> None:
        write_table(self.scores, folder / "scores.csv")
        write_table(self.n_cells.join(self.n_compared.add_prefix("compared_")), folder / "n_cells.csv", index=True)
        write_table(self.gene_statistics, folder / "genes.csv", digits=4)
        if self.space is not None:
            write_table(self.space.genes, folder / "space_genes.csv", digits=4)


@using_threads()
def evaluate(
    real: RealCells,
    generated: Mapping[str, TypedCells],
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    size_limits: SizeLimits = SIZE_LIMITS,
    populations: Populations | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score generated cells by set against test cells, and training cells as the floor.

    Marker genes and variable genes are selected on test cells, so that the selection favours neither training cells nor
    a model fitted to them. There are scores by sub-population if ``populations`` assigns them to cells.
    """
    test = real.test
    names = ", ".join(generated)
    logger.info("Comparing %s with %d test cells of %s.", names, len(test), counted(len(test.n_by_type), "type"))
    if len(test.n_by_type) < 2:
        logger.info("F1 and log fold changes need two cell types; they are not computed.")
    resamples = draw_resamples(real, generated, settings, size_limits, seed=seed)
    if populations is not None:
        encoded = (resample.with_populations(populations) for resample in resamples)
        resamples = list(progress(encoded, total=len(resamples), doing="finding sub-populations", unit="resample"))
    last = resamples[-1]
    compared = {"test": last.test, **{name: last.query[name] for name in (FLOOR, *generated)}}
    most = size_limits.umap // len(compared)
    umap_cells = {name: sample_at_most(cells, most=most, seed=last.seed) for name, cells in compared.items()}
    marker_cells = sample_at_most(test, most=size_limits.markers, seed=seed)
    var, rows, modality_rows = real.names.var, list[Row](), list[Row]()
    if has_modalities(var):
        modality_rows = list(modality_scores(resamples, var, most=size_limits.gene_auc))
    scored, *others = parts_of_rna(var)
    for part in others:
        markers = marker_genes(marker_cells.of_modality(part))
        parts = [resample.of_modality(part) for resample in resamples]
        for resample, name, cells in with_progress(parts, doing="scoring other genes"):
            limits = {"n_classified": scored.n_features, "most": size_limits.gene_auc}
            rows += score_other_genes(cells, resample.test, markers, name, **limits, seed=resample.seed)
    if scored.n_features < len(var):  # all scores below are of highly variable genes only
        real, marker_cells = real.of_modality(scored), marker_cells.of_modality(scored)
        resamples = [resample.of_modality(scored) for resample in resamples]
        compared = {name: cells.of_modality(scored) for name, cells in compared.items()}
        generated = {name: cells.of_modality(scored) for name, cells in generated.items()}
        if not has_modalities(var):
            umap_cells = {name: cells.of_modality(scored) for name, cells in umap_cells.items()}
    training, test, last = real.training, real.test, resamples[-1]
    markers, pair_genes = marker_genes(marker_cells), variable_genes(marker_cells)

    for resample, name, cells in with_progress(resamples, doing="scoring"):
        reference = Reference(resample.test, markers, pair_genes, size_limits)
        rows += score_cells(cells, reference, name, seed=resample.seed)
    rows += compare_all_with_training(resamples, training, pairs=size_limits.pairs)
    rows += modality_rows
    rows += score_groups(real, generated, most=size_limits.grouped, seed=seed)
    space_rows, space = score_space(real, generated, most=size_limits.space, seed=seed)
    matched = {name: match(last.query[name], last.test, seed=last.seed) for name in (FLOOR, *generated)}
    n_cells = count_cells({"test": test, "train": training, **generated})
    return Evaluation(
        scores=score_table([*rows, *space_rows], list(generated)),
        along=expression_along(compared, real.genes),
        n_cells=n_cells,
        n_compared=count_cells(compared, n_cells.index),
        markers={name: real.genes[genes].tolist() for name, genes in markers.items()},
        gene_statistics=real.names.with_symbols(gene_statistics_table(matched, real.names)),
        fold_changes=fold_change_table(matched, markers, real.genes),
        provenance=provenance(seed=seed, settings=asdict(settings)),
        compute_embedding=cache(partial(joint_umap, umap_cells, var, seed=last.seed)),
        space=space,
    )


def compare_all_with_training(resamples: list[ResampledCells], training: TypedCells, *, pairs: int) -> Iterator[Row]:
    """Compare each set of each resample with training cells."""
    most, names, queries = max(pairs // len(training), MIN_QUERY_CELLS), [], []
    for resample in resamples:
        for name, cells in resample.query.items():
            training_rows = resample.floor_rows.get(name, np.empty(0, dtype=int))
            names.append(name)
            queries.append(QueryCells.project(cells, resample.test, training_rows, most=most, seed=resample.seed))
    table = compare_with_training(queries, training)
    for name, query, scores in zip(names, queries, table.to_dict("records"), strict=True):
        yield from score_rows(scores, kind=ALL, group=EVERY, set=name, n_cells=len(query.coordinates))


def count_cells(sets: Mapping[str, TypedCells], cell_types: pd.Index | None = None) -> pd.DataFrame:
    """Count the cells of each type, cell types x sets.

    Rows are ``cell_types``; by default all types, most test cells first.
    """
    table = (
        pd.DataFrame({name: cells.n_by_type for name, cells in sets.items()}, index=cell_types).fillna(0).astype(int)
    )
    if cell_types is None:
        table = table.sort_values("test", ascending=False, kind="stable")
    return table.rename_axis("cell_type")


def gene_statistics_table(matched: dict[str, tuple[Cells, Cells]], names: GeneNames) -> pd.DataFrame:
    """Tabulate the statistics of each gene in each set, and in matched test cells."""
    tables = []
    for name, (query, test) in matched.items():
        columns = {"set": name, "gene": names.index}
        for statistic, agreement in gene_statistics(query, test).items():
            columns |= agreement.columns(statistic)
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def fold_change_table(
    matched: dict[str, tuple[Cells, Cells]], markers: dict[str, np.ndarray], genes: pd.Index
) -> pd.DataFrame:
    """Tabulate log fold changes of markers in each set and matched test cells.

    Rare types are left out.
    """
    tables = []
    for name, (query, test) in matched.items():
        for cell_type, changes in marker_fold_changes(query, test, markers, fewest=MIN_CELLS_FOR_MEANS).items():
            where = {"set": name, "cell_type": cell_type, "gene": genes[markers[cell_type]]}
            tables.append(pd.DataFrame(where | changes.columns("log2_fold_change")))
    if not tables:
        none = dict.fromkeys(("set", "cell_type", "gene"), np.empty(0, object))
        return pd.DataFrame(none | Agreement.pooled(()).columns("log2_fold_change"))
    return pd.concat(tables, ignore_index=True)


# ---- in words


def score_text(overall: pd.DataFrame) -> str:
    """Format overall scores for printing."""
    return str(overall.dropna(how="all").rename_axis(None).to_string(float_format="{:.3f}".format))


def not_checked_lines(verdicts: Mapping[str, Verdict]) -> list[str]:
    """Say in one line what was not checked; a line for each set where they differ."""
    reasons = {name: each.not_checked for name, each in verdicts.items() if each.not_checked}
    if len(set(reasons.values())) == 1 and len(reasons) == len(verdicts):
        reasons = {"": next(iter(reasons.values()))}
    return [f"Not checked{f' in {name}' if name else ''}: {reason}." for name, reason in reasons.items()]


def verdict_lines(evaluation: Evaluation, name: str) -> list[str]:
    """Describe a set: verdict, what was not checked, and types by verdict, best first."""
    of_all, verdicts = evaluation.verdict(name), evaluation.verdicts_by_type(name)
    lines = [of_all.text, *([f"not checked: {of_all.not_checked}"] if of_all.not_checked else [])]
    if len(verdicts) == 1:
        return lines
    for label in dict.fromkeys(each.label for each in sorted(verdicts.values(), key=lambda each: each.grade)):
        cell_types = [cell_type for cell_type, each in verdicts.items() if each.label == label]
        lines.append(f"{label}: {abbreviated(cell_types, n_shown=5)}")
    return lines
