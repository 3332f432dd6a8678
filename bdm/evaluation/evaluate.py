"""Evaluation of generated cells, averaged over resamples."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
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
from bdm.data.gene_tests import marker_genes
from bdm.data.genes import GeneNames
from bdm.data.modalities import has_modalities, modalities_of
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
from bdm.evaluation.scores import (
    GROUP_SCORES,
    Reference,
    Scores,
    expression_along,
    score_bins,
    score_cells,
)
from bdm.evaluation.space_scores import SpaceScores, score_space
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
    overall
        Scores x sets, see :func:`bdm.evaluation.scores.score_all`. There are four more rows: ``f1_ratio``, F1 divided
        by the F1 of the floor; ``memorisation``, the share of cells nearer to training than to test cells (0.5 without
        memorisation); ``memorisation_chance``, its standard deviation; and ``outlying_counts``, the number of counts
        per 1,000 cells that are ten or more, and more than twice the gene's largest count in training cells. Its floor
        is test cells, because training cells have none.
    by_type
        (set, cell_type) x scores, for types with at least two test cells.
    by_population
        A row per sub-population and set: ``cell_type``, ``sub_population``, ``set``, ``n_cells``, ``n_test``, and
        scores. Empty if no model assigns sub-populations.
    by_covariate
        A row per ``covariate``, bin of its values (``low`` to ``high``) and set: ``n_cells``, ``n_test``, ``energy``
        and ``relative_energy``, see :func:`bdm.evaluation.scores.score_bins`. Empty without covariates.
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
        Scores in space, and Moran's I of genes, as :class:`bdm.evaluation.space_scores.SpaceScores`. Empty if real or
        generated cells have no positions.
    modalities
        (modality, score) x sets, see :func:`~bdm.evaluation.modality_scores.modality_scores`; None for RNA alone. Other
        scores use RNA only, and the UMAP uses all modalities.
    """

    kind = "evaluation"

    overall: pd.DataFrame
    by_type: pd.DataFrame
    by_population: pd.DataFrame
    by_covariate: pd.DataFrame
    along: pd.DataFrame
    n_cells: pd.DataFrame
    n_compared: pd.DataFrame
    markers: dict[str, list[str]]
    gene_statistics: pd.DataFrame
    fold_changes: pd.DataFrame
    provenance: dict[str, Any]
    compute_embedding: Callable[[], pd.DataFrame]
    space: SpaceScores
    modalities: pd.DataFrame | None = None

    def __repr__(self) -> str:
        n_test, n_types = int(self.n_cells["test"].sum()), len(self.n_cells)
        verdicts = [f"{name}: {self.verdict(name).text}" for name in self.sets if name != FLOOR]
        title = f"Evaluation by {n_test:,} test cells of {counted(n_types, 'type')}"
        return "\n".join([title, *verdicts, score_table(self.overall)])

    @property
    def embedding(self) -> pd.DataFrame:
        """Joint UMAP of test cells and all sets, computed on first access.

        Columns are ``umap_1``, ``umap_2``, ``cell_type``, ``set`` and, if a model assigns them, ``sub_population``.
        """
        return self.compute_embedding()

    @property
    def sets(self) -> list[str]:
        """Names of the sets, the floor first."""
        return list(self.overall)

    def verdict(self, name: str = GENERATED) -> Verdict:
        """Compare all scores of a set with the floor, in words."""
        return verdict(self.overall[name], self.overall[FLOOR], n_cells=int(self.n_matched(name).sum()))

    def verdicts_by_type(self, name: str = GENERATED) -> dict[str, Verdict]:
        """Compare the scores of each cell type with the floor, in words.

        Types that were not compared have the grade unknown. A single cell type has the verdict on all cells.
        """
        if len(self.n_cells) == 1:
            return {str(cell_type): self.verdict(name) for cell_type in self.n_cells.index}
        scores = {key: dict(row) for key, row in self.by_type.iterrows()}
        return {
            cell_type: verdict(*(scores.get((key, cell_type), {}) for key in (name, FLOOR)), n_cells=int(n_cells))
            for cell_type, n_cells in self.n_matched(name).items()
        }

    def n_matched(self, name: str) -> pd.Series:
        """Return the number of compared cells per type, limited by test cells."""
        return np.minimum(self.n_compared[name], self.n_compared["test"])

    def _write_tables(self, folder: Path) -> None:
        write_table(self.overall, folder / "overall.csv", index="metric")
        write_table(self.n_cells.join(self.n_compared.add_prefix("compared_")), folder / "n_cells.csv", index=True)
        tables = {
            "by_type": score_rows(self),
            "by_population": self.by_population,
            "by_covariate": self.by_covariate,
        }
        for name, table in tables.items():
            write_table(table, folder / f"{name}.csv")
        empty = pd.DataFrame(columns=["modality", "score", *self.overall])  # for RNA alone
        modalities = empty if self.modalities is None else self.modalities.reset_index()
        write_table(modalities, folder / "modalities.csv", digits=4)
        write_table(self.space.scores, folder / "space.csv", digits=4)
        write_table(self.space.genes, folder / "space_genes.csv", digits=4)
        write_table(self.gene_statistics, folder / "genes.csv", digits=4)


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
    compared = {"test": last.test, **last.query}
    most = size_limits.umap // len(compared)
    umap_cells = {name: sample_at_most(cells, most=most, seed=last.seed) for name, cells in compared.items()}
    marker_cells = sample_at_most(test, most=size_limits.markers, seed=seed)
    var, modalities = real.names.var, None
    if has_modalities(var):  # all scores below are of RNA only
        modalities = modality_scores(resamples, var, most=size_limits.gene_auc)
        rna = modalities_of(var)[0]
        real, marker_cells = real.of_modality(rna), marker_cells.of_modality(rna)
        resamples = [resample.of_modality(rna) for resample in resamples]
        generated = {name: cells.of_modality(rna) for name, cells in generated.items()}
    training, test, last = real.training, real.test, resamples[-1]
    markers, pair_genes = marker_genes(marker_cells), variable_genes(marker_cells)

    scores = defaultdict(list)
    for resample, name, cells in with_progress(resamples, doing="scoring"):
        reference = Reference(resample.test, markers, pair_genes, size_limits)
        scores[name].append(score_cells(cells, reference, seed=resample.seed))
    matched = {name: match(cells, last.test, seed=last.seed) for name, cells in last.query.items()}
    n_cells = count_cells({"test": test, "train": training, **generated})
    return Evaluation(
        overall=overall_table(scores, compare_all_with_training(resamples, training, pairs=size_limits.pairs)),
        by_type=by_type_table(scores),
        by_population=by_population_table(scores),
        by_covariate=score_bins(resamples, test),
        along=expression_along(last.query, last.test, real.genes),
        n_cells=n_cells,
        n_compared=count_cells(compared, n_cells.index),
        markers={name: real.genes[genes].tolist() for name, genes in markers.items()},
        gene_statistics=real.names.with_symbols(gene_statistics_table(matched, real.names)),
        fold_changes=fold_change_table(matched, markers, real.genes),
        provenance=provenance(seed=seed, settings=asdict(settings)),
        compute_embedding=cache(partial(joint_umap, umap_cells, var, seed=last.seed)),
        modalities=modalities,
        space=score_space(real, generated, most=size_limits.space, seed=seed),
    )


def compare_all_with_training(resamples: list[ResampledCells], training: TypedCells, *, pairs: int) -> pd.DataFrame:
    """Compare each set with training cells, averaged over resamples."""
    most, names, queries = max(pairs // len(training), MIN_QUERY_CELLS), [], []
    for resample in resamples:
        for name, cells in resample.query.items():
            training_rows = resample.floor_rows if name == FLOOR else np.empty(0, dtype=int)
            names.append(name)
            queries.append(QueryCells.project(cells, resample.test, training_rows, most=most, seed=resample.seed))
    return compare_with_training(queries, training).groupby(names, sort=False).mean()


def overall_table(scores: dict[str, list[Scores]], with_training: pd.DataFrame) -> pd.DataFrame:
    """Average overall scores over resamples, with F1 ratio and comparison with training cells after F1."""
    table = pd.DataFrame(
        {name: pd.DataFrame([repeat.overall for repeat in repeats]).mean() for name, repeats in scores.items()}
    )
    inserted = pd.concat([(table.loc["f1"] / table.loc["f1", FLOOR]).rename("f1_ratio"), with_training], axis=1).T
    position = table.index.get_loc("f1") + 1
    return pd.concat([table[:position], inserted[table.columns], table[position:]])


def by_type_table(scores: dict[str, list[Scores]]) -> pd.DataFrame:
    """Average the scores of each type over resamples."""
    tables = {name: pd.concat([repeat.by_type for repeat in repeats]) for name, repeats in scores.items()}
    return pd.concat(tables, names=["set", "cell_type"]).groupby(["set", "cell_type"], sort=False).mean()


def by_population_table(scores: dict[str, list[Scores]]) -> pd.DataFrame:
    """Average the scores of each sub-population over resamples; empty if unknown."""
    numbers, keys = ["n_cells", "n_test"], ["cell_type", "sub_population", "set"]
    tables = [
        repeat.by_population.rename_axis("sub_population").reset_index().assign(set=name, n_resamples=len(repeats))
        for name, repeats in scores.items()
        for repeat in repeats
    ]
    grouped = pd.concat([table for table in tables if len(table)] or tables[:1]).groupby(keys, sort=False)
    table = grouped.mean()
    table[numbers] = grouped[numbers].sum().div(table["n_resamples"], axis=0)  # 0 in resamples without such cells
    columns = [*keys, *numbers, *GROUP_SCORES]
    return table.reset_index()[columns].sort_values("sub_population", kind="stable", ignore_index=True)


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
            columns |= {statistic: agreement.query, f"{statistic}_test": agreement.test}
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
            columns = {"set": name, "cell_type": cell_type, "gene": genes[markers[cell_type]]}
            columns |= {"log2_fold_change": changes.query, "log2_fold_change_test": changes.test}
            tables.append(pd.DataFrame(columns))
    if not tables:
        texts, numbers = ("set", "cell_type", "gene"), ("log2_fold_change", "log2_fold_change_test")
        return pd.DataFrame({**dict.fromkeys(texts, np.empty(0, object)), **dict.fromkeys(numbers, np.empty(0))})
    return pd.concat(tables, ignore_index=True)


def score_rows(evaluation: Evaluation) -> pd.DataFrame:
    """Tabulate the scores of each type and set; NaN if not compared."""
    index = pd.MultiIndex.from_product([evaluation.n_cells.index, evaluation.sets], names=["cell_type", "set"])
    scores = evaluation.by_type.swaplevel().reindex(index)
    numbers = evaluation.n_cells[["test", "train"]].add_prefix("n_")
    rows = scores.reset_index().join(numbers, on="cell_type")
    return rows[["cell_type", *numbers, "set", *scores]]


# ---- in words


def score_table(overall: pd.DataFrame) -> str:
    """Format overall scores for printing, without their null deviation and skewness."""
    is_null = overall.index.str.endswith(("_chance", "_skewness"))
    return str(overall[~is_null].dropna(how="all").to_string(float_format="{:.3f}".format))


def verdict_lines(evaluation: Evaluation, name: str) -> list[str]:
    """Describe a set: verdict, AUC by modality, and its types by verdict, best first."""
    verdicts = evaluation.verdicts_by_type(name)
    lines = [evaluation.verdict(name).text]
    if evaluation.modalities is not None:
        aucs = evaluation.modalities.xs("forest_auc", level="score")
        lines += [f"{key}: forest AUC {row[name]:.2f} (real cells {row[FLOOR]:.2f})" for key, row in aucs.iterrows()]
    if len(verdicts) == 1:
        return lines
    for label in dict.fromkeys(each.label for each in sorted(verdicts.values(), key=lambda each: each.grade)):
        cell_types = [cell_type for cell_type, each in verdicts.items() if each.label == label]
        lines.append(f"{label}: {abbreviated(cell_types, n_shown=5)}")
    return lines
