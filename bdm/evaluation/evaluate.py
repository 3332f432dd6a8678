"""Evaluation of generated cells: scores of each set, averaged over resamples, as tables."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from math import ceil

import numpy as np
import pandas as pd

from bdm._core.files import provenance
from bdm._core.parallel import using_threads
from bdm._core.progress import progress
from bdm.data.modalities import has_modalities, modalities_of
from bdm.data.symbols import GeneNames
from bdm.errors import counted
from bdm.evaluation.cells import (
    FLOOR,
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
)
from bdm.evaluation.covariates import N_BINS, bins_of, expression_along, score_bins
from bdm.evaluation.genes import gene_statistics, marker_fold_changes, marker_genes, variable_genes
from bdm.evaluation.memorisation import QueryCells, memorisation_of
from bdm.evaluation.modalities import modality_scores
from bdm.evaluation.properties import compare_properties
from bdm.evaluation.results import Evaluation, embedding_of
from bdm.evaluation.scores import GROUP_SCORES, Reference, Scores, score_cells
from bdm.settings import EvaluationSettings

logger = logging.getLogger(__name__)

MIN_QUERY_CELLS = 500  # whose memorisation is measured, however many training cells there are


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

    Scores that compare cell types, F1 and log fold changes, are NaN where there is one type. Test cells choose marker
    genes and variable genes: genes differ more in the cells that choose them, or that a model was fitted to.
    ``populations`` finds the populations of all cells, for scores by sub-population. Of cells with several modalities,
    all scores are of RNA, but :attr:`Evaluation.modalities`.
    """
    test = real.test
    names = ", ".join(generated)
    logger.info("Comparing %s with %d test cells of %s.", names, len(test), counted(len(test.n_by_type), "type"))
    if len(test.n_by_type) < 2:
        logger.info("F1 and log fold changes compare cell types, so they are not computed for cells of one type.")
    most = {"max_cells_per_type": settings.max_cells_per_type, "max_cells": size_limits.compared}
    n_repeats = min(settings.n_repeats, ceil(size_limits.resampled / numbers_to_compare(test, **most).sum()))
    resamples = resampled_cells(real, generated, resampling_seeds(n_repeats, seed=seed), **most)
    if populations is not None:
        resamples = [resample.with_populations(populations) for resample in resamples]
    marking = sample_at_most(test, most=size_limits.marking, seed=seed)
    modalities = None
    if has_modalities(real.names.var):
        modalities = modality_scores(resamples, real.names.var, most=size_limits.gene_auc)
        rna = modalities_of(real.names.var)[0].features
        real, marking = real.of_features(rna), marking.of_features(rna)
        resamples = [resample.of_features(rna) for resample in resamples]
        generated = {name: cells.of_features(rna) for name, cells in generated.items()}
    training, test = real.training, real.test
    markers, pair_genes = marker_genes(marking), variable_genes(marking)

    scores = defaultdict(list)
    for resample in progress(resamples, total=len(resamples), doing="scoring", unit="resample"):
        reference = Reference(resample.test, markers, pair_genes, size_limits)
        for name, cells in resample.query.items():
            scores[name].append(score_cells(cells, reference, seed=resample.seed))
    last = resamples[-1]
    embedded = {"test": last.test, **last.query}
    most_mapped = size_limits.mapped // len(embedded)
    matched = {name: match(cells, last.test, seed=last.seed) for name, cells in last.query.items()}
    n_cells = n_cells_table({"test": test, "train": training, **generated})
    return Evaluation(
        overall=overall_table(scores, memorisation_by_set(resamples, training, pairs=size_limits.pairs)),
        by_type=by_type_table(scores),
        by_population=by_population_table(scores),
        by_covariate=score_bins(resamples, bins_of(test, N_BINS)),
        along=expression_along(last.query, last.test, real.genes),
        properties=compare_properties(resamples, pair_genes, most=size_limits.properties),
        n_cells=n_cells,
        n_compared=n_cells_table(embedded, n_cells.index),
        markers={name: real.genes[genes].tolist() for name, genes in markers.items()},
        gene_statistics=real.names.with_symbols(gene_statistics_table(matched, real.names)),
        fold_changes=fold_change_table(matched, markers, real.genes),
        size_limits=size_limits,
        provenance=provenance(seed=seed, settings=asdict(settings)),
        compute_embedding=embedding_of(
            [({"set": name}, sample_at_most(of, most=most_mapped, seed=last.seed)) for name, of in embedded.items()],
            seed=last.seed,
        ),
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
        QueryCells.project(cells, of.test, of.floor_rows if name == FLOOR else none, most=most, seed=of.seed)
        for of in resamples
        for name, cells in of.query.items()
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
