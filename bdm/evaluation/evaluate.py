"""Evaluation of generated cells: scores of each set, averaged over resamples, with all that figures show."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.errors import abbreviated, counted
from bdm._core.files import provenance
from bdm._core.parallel import using_threads
from bdm._core.progress import progress
from bdm._core.store import Result
from bdm.data.genes import GeneNames
from bdm.data.modalities import has_modalities, modalities_of
from bdm.evaluation.cells import (
    FLOOR,
    GENERATED,
    MIN_CELLS_FOR_MEANS,
    SIZE_LIMITS,
    Cells,
    Populations,
    RealCells,
    ResampledCells,
    SizeLimits,
    TypedCells,
    match,
    numbers_to_compare,
    resampled_cells,
    sample_at_most,
    with_progress,
)
from bdm.evaluation.genes import gene_statistics, marker_fold_changes, marker_genes, variable_genes
from bdm.evaluation.metrics import QueryCells, memorisation_of
from bdm.evaluation.modalities import joint_umap, modality_scores
from bdm.evaluation.properties import compare_properties
from bdm.evaluation.scores import (
    GROUP_SCORES,
    Reference,
    Scores,
    expression_along,
    score_bins,
    score_cells,
)
from bdm.evaluation.verdict import Verdict, verdict
from bdm.settings import EvaluationSettings

logger = logging.getLogger(__name__)

MIN_QUERY_CELLS = 500  # whose memorisation is measured, however many training cells there are


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """Scores of sets of cells, averaged over resamples, and values by gene and cell of the last resample.

    The floor is the first set; generated cells are the set ``generated``.

    Attributes
    ----------
    overall
        Scores x sets, see :func:`bdm.evaluation.scores.score_all`, with three more rows: ``f1_ratio``, F1 over that of
        the floor, and ``memorisation``, the share of cells nearer to training than to test cells, at equal numbers; 0.5
        without memorisation, and with the standard deviation ``memorisation_chance``.
    by_type
        (set, cell_type) x scores; without types of a single test cell.
    by_population
        A row for each sub-population and set, where a model finds the populations of cells: ``cell_type``,
        ``sub_population``, ``set``, ``n_cells``, ``n_test``, and scores; no rows elsewhere.
    by_covariate
        A row for each ``covariate``, bin of its values (``low`` to ``high``) and set: ``n_cells``, ``n_test``,
        ``energy`` and ``relative_energy``, see :func:`bdm.evaluation.scores.score_bins`; no rows without
        covariates.
    along
        Expression of genes in bins of covariates, see :func:`bdm.evaluation.scores.expression_along`.
    properties
        A row for each ``property`` by which benchmarks of simulators compare cells (of a ``kind``), set but the floor,
        and group of cells (``by`` ``all`` or ``label``, and the name ``group``): ``value``, its distance to test
        cells, 0 at best, and the same of the floor, ``floor``; see
        :func:`bdm.evaluation.properties.compare_properties`.
    n_cells
        Available cells: cell types x ``test``, ``train`` and the generated sets.
    n_compared
        Cells compared at a time: cell types x ``test``, the floor and the generated sets.
    markers
        Names of the marker genes of each type.
    gene_statistics
        A row for each set and ``gene`` (with its ``symbol`` where symbols differ): ``mean`` and ``variance`` of
        ``log1p(CP10k)`` and ``zero_fraction`` in the set, and in as many test cells (``mean_test`` and so on).
    fold_changes
        A row for each ``set``, ``cell_type`` and marker ``gene``: its ``log2_fold_change`` in the set and in as many
        test cells (``log2_fold_change_test``); without types of fewer than five cells.
    provenance
        Version, packages, seed, settings, and checksums of the evaluated files.
    compute_embedding
        Returns the table :attr:`embedding`, which it computes once.
    modalities
        (modality, score) x sets, see :func:`bdm.evaluation.modalities.modality_scores`; None for RNA alone. Of several
        modalities, the UMAP is of all, and all other scores are of RNA.
    """

    kind = "evaluation"

    overall: pd.DataFrame
    by_type: pd.DataFrame
    by_population: pd.DataFrame
    by_covariate: pd.DataFrame
    along: pd.DataFrame
    properties: pd.DataFrame
    n_cells: pd.DataFrame
    n_compared: pd.DataFrame
    markers: dict[str, list[str]]
    gene_statistics: pd.DataFrame
    fold_changes: pd.DataFrame
    provenance: dict[str, Any]
    compute_embedding: Callable[[], pd.DataFrame]
    modalities: pd.DataFrame | None = None

    def __repr__(self) -> str:
        n_test, n_types = int(self.n_cells["test"].sum()), len(self.n_cells)
        verdicts = [f"{name}: {self.verdict(name).text}" for name in self.sets if name != FLOOR]
        title = f"Evaluation by {n_test:,} test cells of {counted(n_types, 'type')}"
        return "\n".join([title, *verdicts, score_table(self.overall)])

    @property
    def embedding(self) -> pd.DataFrame:
        """Joint UMAP of test cells and all sets (``umap_1``, ``umap_2``, ``cell_type``, ``set``), made when needed.

        ``sub_population``, too, if a model finds it for the cells of all sets.
        """
        return self.compute_embedding()

    @property
    def sets(self) -> list[str]:
        """Keys of the sets, the floor first."""
        return list(self.overall)

    def verdict(self, name: str = GENERATED) -> Verdict:
        """Summarise all scores of a set in words, in comparison with the floor."""
        return verdict(self.overall[name], self.overall[FLOOR], n_cells=int(self.n_matched(name).sum()))

    def verdicts_by_type(self, name: str = GENERATED) -> dict[str, Verdict]:
        """Summarise the scores of each cell type of a set; of types that were not compared the verdict is unknown.

        The verdict on a single cell type is that on all cells.
        """
        if len(self.n_cells) == 1:
            return {str(cell_type): self.verdict(name) for cell_type in self.n_cells.index}
        scores = {key: dict(row) for key, row in self.by_type.iterrows()}
        return {
            cell_type: verdict(*(scores.get((key, cell_type), {}) for key in (name, FLOOR)), n_cells=int(n_cells))
            for cell_type, n_cells in self.n_matched(name).items()
        }

    def n_matched(self, name: str) -> pd.Series:
        """Count the cells of each type of a set that could be compared with as many test cells."""
        return np.minimum(self.n_compared[name], self.n_compared["test"])

    def _write_tables(self, folder: Path) -> None:
        self.overall.to_csv(folder / "overall.csv", index_label="metric", float_format="%.6g")
        self.n_cells.join(self.n_compared.add_prefix("compared_")).to_csv(folder / "n_cells.csv")
        tables = {
            "by_type": score_rows(self),
            "by_population": self.by_population,
            "by_covariate": self.by_covariate,
        }
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        self.properties.to_csv(folder / "properties.csv", index=False, float_format="%.4g")
        none = pd.DataFrame(columns=["modality", "score", *self.overall])  # of RNA alone
        modalities = none if self.modalities is None else self.modalities.reset_index()
        modalities.to_csv(folder / "modalities.csv", index=False, float_format="%.4g")
        self.gene_statistics.to_csv(folder / "genes.csv", index=False, float_format="%.4g")


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
    """Compare sets of generated cells with test cells; so are training cells, in the same way, as the floor.

    Test cells choose marker genes and variable genes: genes differ more in the cells that choose them, or that a model
    was fitted to. ``populations`` finds the populations of all cells, for scores by sub-population.
    """
    test = real.test
    names = ", ".join(generated)
    logger.info("Comparing %s with %d test cells of %s.", names, len(test), counted(len(test.n_by_type), "type"))
    if len(test.n_by_type) < 2:
        logger.info("F1 and log fold changes compare cell types, so they are not computed for cells of one type.")
    at_most = {"max_cells_per_type": settings.max_cells_per_type, "max_cells": size_limits.compared}
    n_repeats = min(settings.n_repeats, ceil(size_limits.resampled / numbers_to_compare(test, **at_most).sum()))
    resamples = resampled_cells(real, generated, resampling_seeds(n_repeats, seed=seed), **at_most)
    if populations is not None:
        encoded = (resample.with_populations(populations) for resample in resamples)
        resamples = list(progress(encoded, total=n_repeats, doing="finding sub-populations", unit="resample"))
    marking = sample_at_most(test, most=size_limits.marking, seed=seed)
    whole = resamples[-1]
    embedded = {"test": whole.test, **whole.query}
    most = size_limits.mapped // len(embedded)
    mapped = {name: sample_at_most(cells, most=most, seed=whole.seed) for name, cells in embedded.items()}
    var, modalities = real.names.var, None
    if has_modalities(var):
        modalities = modality_scores(resamples, var, most=size_limits.gene_auc)
        rna = modalities_of(var)[0]
        real, marking = real.of_modality(rna), marking.of_modality(rna)
        resamples = [resample.of_modality(rna) for resample in resamples]
        generated = {name: cells.of_modality(rna) for name, cells in generated.items()}
    training, test = real.training, real.test
    markers, pair_genes = marker_genes(marking), variable_genes(marking)

    scores = defaultdict(list)
    for resample, name, cells in with_progress(resamples, doing="scoring"):
        reference = Reference(resample.test, markers, pair_genes, size_limits)
        scores[name].append(score_cells(cells, reference, seed=resample.seed))
    last = resamples[-1]
    matched = {name: match(cells, last.test, seed=last.seed) for name, cells in last.query.items()}
    n_cells = n_cells_table({"test": test, "train": training, **generated})
    return Evaluation(
        overall=overall_table(scores, memorisation_by_set(resamples, training, pairs=size_limits.pairs)),
        by_type=by_type_table(scores),
        by_population=by_population_table(scores),
        by_covariate=score_bins(resamples, test),
        along=expression_along(last.query, last.test, real.genes),
        properties=compare_properties(resamples, pair_genes, most=size_limits.properties),
        n_cells=n_cells,
        n_compared=n_cells_table(embedded, n_cells.index),
        markers={name: real.genes[genes].tolist() for name, genes in markers.items()},
        gene_statistics=real.names.with_symbols(gene_statistics_table(matched, real.names)),
        fold_changes=fold_change_table(matched, markers, real.genes),
        provenance=provenance(seed=seed, settings=asdict(settings)),
        compute_embedding=cache(partial(joint_umap, mapped, var, seed=last.seed)),
        modalities=modalities,
    )


def resampling_seeds(n_repeats: int, *, seed: int) -> list[int]:
    """Return a seed for each resample that scikit-learn takes."""
    return list(map(int, np.random.default_rng(seed).integers(2**31, size=n_repeats)))


def memorisation_by_set(resamples: list[ResampledCells], training: TypedCells, *, pairs: int) -> pd.DataFrame:
    """Average the memorisation of each set over resamples, with the standard deviation that chance gives to it."""
    most, none = max(pairs // len(training), MIN_QUERY_CELLS), np.empty(0, dtype=int)
    names = [name for resample in resamples for name in resample.query]
    queries = [
        QueryCells.project(
            cells, resample.test, resample.floor_rows if name == FLOOR else none, most=most, seed=resample.seed
        )
        for resample in resamples
        for name, cells in resample.query.items()
    ]
    return memorisation_of(queries, training).groupby(names, sort=False).mean()


def overall_table(scores: dict[str, list[Scores]], memorisation: pd.DataFrame) -> pd.DataFrame:
    """Average overall scores over resamples, and add rows after F1."""
    table = pd.DataFrame(
        {name: pd.DataFrame([one.overall for one in of_resamples]).mean() for name, of_resamples in scores.items()}
    )
    added = pd.concat([(table.loc["f1"] / table.loc["f1", FLOOR]).rename("f1_ratio"), memorisation], axis=1).T
    position = table.index.get_loc("f1") + 1
    return pd.concat([table[:position], added[table.columns], table[position:]])


def by_type_table(scores: dict[str, list[Scores]]) -> pd.DataFrame:
    """Average scores by type over resamples."""
    tables = {name: pd.concat([one.by_type for one in of_resamples]) for name, of_resamples in scores.items()}
    return pd.concat(tables, names=["set", "cell_type"]).groupby(["set", "cell_type"], sort=False).mean()


def by_population_table(scores: dict[str, list[Scores]]) -> pd.DataFrame:
    """Average scores by sub-population over resamples; no rows where no sub-populations are known."""
    numbers, keys = ["n_cells", "n_test"], ["cell_type", "sub_population", "set"]
    tables = [
        one.by_population.rename_axis("sub_population").reset_index().assign(set=name, n_resamples=len(of_resamples))
        for name, of_resamples in scores.items()
        for one in of_resamples
    ]
    columns = [*keys, *numbers, *GROUP_SCORES]
    rows = pd.concat([table for table in tables if len(table)] or tables[:1])
    by = rows.groupby(keys, sort=False)
    table = by.mean()
    table[numbers] = by[numbers].sum().div(table["n_resamples"], axis=0)  # also of resamples that have no such cells
    return table.reset_index()[columns].sort_values("sub_population", kind="stable", ignore_index=True)


def n_cells_table(sets: Mapping[str, TypedCells], cell_types: pd.Index | None = None) -> pd.DataFrame:
    """Count cells by type: of ``cell_types``, or of all with those of most test cells first."""
    table = (
        pd.DataFrame({name: cells.n_by_type for name, cells in sets.items()}, index=cell_types).fillna(0).astype(int)
    )
    if cell_types is None:
        table = table.sort_values("test", ascending=False, kind="stable")
    return table.rename_axis("cell_type")


def gene_statistics_table(matched: dict[str, tuple[Cells, Cells]], names: GeneNames) -> pd.DataFrame:
    """List the statistics of each gene in each set, and in as many test cells."""
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
    """List the log fold changes of the markers of each type, but rare ones, in each set and in as many test cells."""
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


# ---- in words


def score_rows(evaluation: Evaluation) -> pd.DataFrame:
    """List the scores by type, a row for each type and set; rows of types that were not compared are empty."""
    index = pd.MultiIndex.from_product([evaluation.n_cells.index, evaluation.sets], names=["cell_type", "set"])
    scores = evaluation.by_type.swaplevel().reindex(index)
    numbers = evaluation.n_cells[["test", "train"]].add_prefix("n_")
    rows = scores.reset_index().join(numbers, on="cell_type")
    return rows[["cell_type", *numbers, "set", *scores]]


def score_table(overall: pd.DataFrame) -> str:
    """Format the known overall scores as a table to print, without what chance gives to them."""
    by_chance = overall.index.str.endswith(("_chance", "_skewness"))
    return str(overall[~by_chance].dropna(how="all").to_string(float_format="{:.3f}".format))


def verdict_lines(evaluation: Evaluation, name: str) -> list[str]:
    """Return lines to print: the verdict on all cells of a set, and its types by their verdicts, the best first."""
    verdicts = evaluation.verdicts_by_type(name)
    lines = [evaluation.verdict(name).text]
    if evaluation.modalities is not None:
        aucs = evaluation.modalities.xs("forest_auc", level="score")
        lines += [f"{key}: forest AUC {row[name]:.2f} (real cells {row[FLOOR]:.2f})" for key, row in aucs.iterrows()]
    if len(verdicts) == 1:
        return lines
    for label in dict.fromkeys(one.label for one in sorted(verdicts.values(), key=lambda one: one.grade)):
        cell_types = [cell_type for cell_type, one in verdicts.items() if one.label == label]
        lines.append(f"{label}: {abbreviated(cell_types, n_shown=5)}")
    return lines
