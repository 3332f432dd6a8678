"""Cells of several modalities: how each, and all together, are distinguished from real ones, and correlate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from bdm._core.parallel import using_threads
from bdm.data.modalities import RNA, Modality, has_modalities, modalities_of
from bdm.evaluation.cells import COORDINATES, Cells, ResampledCells, match, sample_at_most, with_progress
from bdm.evaluation.metrics import (
    Agreement,
    cross_validated_probabilities,
    fitted_pca,
    forest,
    linear_classifier,
    umap_of,
)
from bdm.evaluation.scores import auc

ALL = "all"  # all modalities together
N_COMPONENTS = 30  # of a modality
N_FEATURES, N_RELATED = 200, 50  # features whose correlations are compared, and the most related genes of each


def modality_scores(resamples: Sequence[ResampledCells], var: pd.DataFrame, *, most: int) -> pd.DataFrame:
    """Score the sets of resamples, (modality, score) x sets, averaged over resamples.

    - ``forest_auc``: by a random forest on components of each modality: principal components of log1p(CP10k) of genes
      and of log1p of protein counts, and of peaks by latent semantic indexing; ``all`` has the components of all;
    - ``feature_auc``: by logistic regression on all features;
    - ``gene_correlation``, ``gene_slope``: correlations of each protein, or of the 200 commonest peaks, with the 50
      genes most related to it in test cells, and with the gene of its name, if there is one: Pearson correlation with
      those of test cells, and slope on them.
    """
    modalities, rows = modalities_of(var), []
    for resample, name, cells in with_progress(resamples, doing="scoring modalities"):
        query, test = match(cells, resample.test, seed=resample.seed)
        query, test = (sample_at_most(cells, most=most, seed=resample.seed) for cells in (query, test))
        scores = score_pair(query, test, modalities, var, seed=resample.seed)
        rows += [{"modality": key, "score": score, "set": name, "value": x} for (key, score), x in scores.items()]
    table = pd.DataFrame(rows).groupby(["modality", "score", "set"], sort=False)["value"].mean().unstack("set")
    return table[list(resamples[0].query)]


def score_pair(
    query: Cells, test: Cells, modalities: Sequence[Modality], var: pd.DataFrame, *, seed: int
) -> dict[tuple[str, str], float]:
    """Score query cells by as many test cells."""
    scores, components = {}, []
    for modality in modalities:
        both = values_of(sparse.vstack([query.counts, test.counts], format="csr")[:, modality.features], modality)
        found = components_of(both, seed=seed)
        components.append(found)
        scores[modality.name, "forest_auc"] = auc_of(forest(seed=seed), found, len(query), seed=seed)
        scores[modality.name, "feature_auc"] = auc_of(linear_classifier(), both, len(query), seed=seed)
        if modality.kind != RNA:
            agreement = gene_correlations(query, test, modalities[0], modality, var)
            scores[modality.name, "gene_correlation"] = agreement.correlation
            scores[modality.name, "gene_slope"] = agreement.slope
    scores[ALL, "forest_auc"] = auc_of(forest(seed=seed), np.hstack(components), len(query), seed=seed)
    return scores


def auc_of(classifier: object, values: np.ndarray | sparse.csr_matrix, n_query: int, *, seed: int) -> float:
    """AUC with which a classifier distinguishes the first ``n_query`` cells from the others."""
    return auc(*cross_validated_probabilities(classifier, values[:n_query], values[n_query:], seed=seed))


def values_of(counts: sparse.csr_matrix, modality: Modality) -> sparse.csr_matrix:
    """Values of cells by which they are compared: log1p(CP10k), log1p, or TF-IDF of peaks (Stuart et al. 2021)."""
    if not modality.normalised:
        return counts.log1p()
    detected = counts.sign() if modality.kind == "atac" else counts
    size = np.asarray(detected.sum(axis=1)).ravel()
    shares = sparse.csr_matrix(sparse.diags(1e4 / np.maximum(size, 1)) @ detected)
    if modality.kind == "atac":
        n_cells = np.asarray(detected.sum(axis=0)).ravel()
        shares = sparse.csr_matrix(shares @ sparse.diags(counts.shape[0] / np.maximum(n_cells, 1)))
    return shares.log1p()


def components_of(values: sparse.csr_matrix, *, seed: int) -> np.ndarray:
    """Principal components, scaled such that the first has the variance 1, so that modalities count alike."""
    if values.shape[1] <= N_COMPONENTS:
        found = values.toarray()
    else:
        found = fitted_pca(values, n_components=N_COMPONENTS, seed=seed).transform(values)
    return np.asarray(found / max(found.std(axis=0).max(), np.finfo(float).tiny))


@using_threads()
def joint_umap(sets: Mapping[str, Cells], var: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Embed the cells of all sets together, by all modalities, as :attr:`Evaluation.embedding` describes."""
    cells = list(sets.values())
    if has_modalities(var):
        counts = sparse.vstack([each.counts for each in cells], format="csr")
        parts = [values_of(counts[:, modality.features], modality) for modality in modalities_of(var)]
        components = np.hstack([components_of(part, seed=seed) for part in parts])
    else:
        expression = sparse.vstack([each.expression for each in cells], format="csr")
        components = fitted_pca(expression, seed=seed).transform(expression)
    table = pd.DataFrame(umap_of(components, seed=seed), columns=COORDINATES)
    names = np.repeat(list(sets), list(map(len, cells)))
    populations = [each.population for each in cells if each.population is not None]
    if len(populations) == len(cells):
        table["sub_population"] = np.concatenate(populations)
    return table.assign(cell_type=np.concatenate([each.cell_type for each in cells]), set=names)


def gene_correlations(query: Cells, test: Cells, rna: Modality, modality: Modality, var: pd.DataFrame) -> Agreement:
    """Correlations of features with genes, in query cells and in test cells."""
    n_cells = np.asarray((test.counts[:, modality.features] > 0).sum(axis=0)).ravel()
    chosen = modality.features.start + np.sort(np.argsort(-n_cells, kind="stable")[:N_FEATURES])
    of_query, of_test = (
        cross_correlations(*(values_of(cells.counts[:, part], modality).toarray() for part, modality in parts))
        for cells in (query, test)
        for parts in [((chosen, modality), (np.arange(rna.features.stop), rna))]
    )
    related = np.argsort(-np.abs(np.nan_to_num(of_test)), axis=1, kind="stable")[:, :N_RELATED]
    is_chosen = np.zeros(of_test.shape, dtype=bool)
    np.put_along_axis(is_chosen, related, True, axis=1)
    for row, gene in own_genes(var.index[chosen], modality, var.index[rna.features]).items():
        is_chosen[row, gene] = True
    is_chosen &= np.isfinite(of_query) & np.isfinite(of_test)
    return Agreement(of_query[is_chosen], of_test[is_chosen])


def own_genes(features: pd.Index, modality: Modality, genes: pd.Index) -> Mapping[int, int]:
    """Column of the gene of each protein whose name, or its first part as in ``CD4_TotalSeqB``, is that of a gene."""
    column = {str(gene).upper(): number for number, gene in enumerate(genes)}
    names = features.str.removeprefix(modality.prefix).str.partition("_").get_level_values(0).str.upper()
    return {row: column[name] for row, name in enumerate(names) if name in column}


def cross_correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pearson correlation of each column of ``left`` with each of ``right``; NaN where one is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = ((values - values.mean(axis=0)) / values.std(axis=0) for values in (left, right))
        return np.asarray(left.T @ right / len(left))
