"""Scores of cells with several modalities, and the joint UMAP."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from bdm._core.parallel import using_threads
from bdm.data.cells import Cells
from bdm.data.gene_tests import Agreement
from bdm.data.modalities import RNA, Modality, has_modalities, modalities_of
from bdm.evaluation.metrics import cross_validated_probabilities, fitted_pca, forest, linear_classifier
from bdm.evaluation.resamples import ResampledCells, match, sample_at_most, with_progress
from bdm.evaluation.scores import auc
from bdm.evaluation.table import EVERY, MODALITY, Row, score_rows

COORDINATES = ["umap_1", "umap_2"]  # columns of embeddings
N_COMPONENTS = 30  # per modality
N_FEATURES, N_RELATED = 200, 50  # features to correlate with genes, and most related genes per feature
INDEPENDENT = 1 / 20  # effective share of independent correlations, as related genes covary


def modality_scores(resamples: Sequence[ResampledCells], var: pd.DataFrame, *, most: int) -> Iterator[Row]:
    """Score each modality, and all together, in each resample."""
    modalities = modalities_of(var)
    for resample, name, cells in with_progress(resamples, doing="scoring modalities"):
        query, test = match(cells, resample.test, seed=resample.seed)
        query, test = (sample_at_most(cells, most=most, seed=resample.seed) for cells in (query, test))
        for group, scores in score_pair(query, test, modalities, var, seed=resample.seed).items():
            yield from score_rows(scores, kind=MODALITY, group=group, set=name, n_cells=len(query))


@using_threads()
def joint_umap(sets: Mapping[str, Cells], var: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Compute a joint UMAP of all sets and modalities, see :attr:`Evaluation.embedding`."""
    cells = list(sets.values())
    if has_modalities(var):
        counts = sparse.vstack([each.counts for each in cells], format="csr")
        parts = [transform_counts(counts[:, modality.features], modality) for modality in modalities_of(var)]
        components = np.hstack([compute_components(part, seed=seed) for part in parts])
    else:
        expression = sparse.vstack([each.expression for each in cells], format="csr")
        components = fitted_pca(expression, seed=seed).transform(expression)
    table = pd.DataFrame(compute_umap(components, seed=seed), columns=COORDINATES)
    names = np.repeat(list(sets), list(map(len, cells)))
    populations = [each.population for each in cells if each.population is not None]
    if len(populations) == len(cells):
        table["sub_population"] = np.concatenate(populations)
    return table.assign(cell_type=np.concatenate([each.cell_type for each in cells]), set=names)


def score_pair(
    query: Cells, test: Cells, modalities: Sequence[Modality], var: pd.DataFrame, *, seed: int
) -> dict[str, dict[str, float]]:
    """Score query cells against as many test cells, by modality."""
    scores, components = {}, []
    counts = sparse.vstack([query.counts, test.counts], format="csr")
    for modality in modalities:
        values = transform_counts(counts[:, modality.features], modality)
        components.append(compute_components(values, seed=seed))
        scores[modality.name] = {
            "forest_auc": compute_auc(forest(seed=seed), components[-1], len(query), seed=seed),
            "feature_auc": compute_auc(linear_classifier(), values, len(query), seed=seed),
        }
        if modality.kind != RNA:
            agreement = compare_gene_correlations(query, test, modalities[0], modality, var)
            scores[modality.name] |= agreement.scores("feature", independent=INDEPENDENT)
    scores[EVERY] = {"forest_auc": compute_auc(forest(seed=seed), np.hstack(components), len(query), seed=seed)}
    return scores


def compute_auc(classifier: object, values: np.ndarray | sparse.csr_matrix, n_query: int, *, seed: int) -> float:
    """Compute the AUC of the first ``n_query`` cells against the rest."""
    return auc(*cross_validated_probabilities(classifier, values[:n_query], values[n_query:], seed=seed))


def transform_counts(counts: sparse.csr_matrix, modality: Modality) -> sparse.csr_matrix:
    """Transform counts: log1p(CP10k) of genes, log1p of proteins, TF-IDF of peaks.

    TF-IDF as in Stuart et al. 2021.
    """
    if not modality.normalised:
        return counts.log1p()
    detected = counts.sign() if modality.kind == "atac" else counts
    size = np.asarray(detected.sum(axis=1)).ravel()
    shares = sparse.csr_matrix(sparse.diags(1e4 / np.maximum(size, 1)) @ detected)
    if modality.kind == "atac":
        n_cells = np.asarray(detected.sum(axis=0)).ravel()
        shares = sparse.csr_matrix(shares @ sparse.diags(counts.shape[0] / np.maximum(n_cells, 1)))
    return shares.log1p()


def compute_components(values: sparse.csr_matrix, *, seed: int) -> np.ndarray:
    """Compute principal components, scaled so that modalities have equal weight.

    The largest standard deviation is 1. Few features are scaled without PCA.
    """
    if values.shape[1] <= N_COMPONENTS:
        components = values.toarray()
    else:
        components = fitted_pca(values, n_components=N_COMPONENTS, seed=seed).transform(values)
    return np.asarray(components / max(components.std(axis=0).max(), np.finfo(float).tiny))


def compare_gene_correlations(
    query: Cells, test: Cells, rna: Modality, modality: Modality, var: pd.DataFrame
) -> Agreement:
    """Compare correlations between features and genes in query and test cells.

    Features are the 200 most frequent proteins or peaks; genes are the 50 most related to each feature in test cells,
    and the gene with its name.
    """
    n_cells = np.asarray((test.counts[:, modality.features] > 0).sum(axis=0)).ravel()
    chosen = modality.features.start + np.sort(np.argsort(-n_cells, kind="stable")[:N_FEATURES])
    query_r, test_r = (
        correlate_columns(
            transform_counts(cells.counts[:, chosen], modality).toarray(),
            transform_counts(cells.counts[:, rna.features], rna).toarray(),
        )
        for cells in (query, test)
    )
    related = np.argsort(-np.abs(np.nan_to_num(test_r)), axis=1, kind="stable")[:, :N_RELATED]
    is_chosen = np.zeros(test_r.shape, dtype=bool)
    np.put_along_axis(is_chosen, related, True, axis=1)
    for row, gene in match_genes(var.index[chosen], modality, var.index[rna.features]).items():
        is_chosen[row, gene] = True
    is_chosen &= np.isfinite(query_r) & np.isfinite(test_r)
    return Agreement(query_r[is_chosen], test_r[is_chosen])


def match_genes(features: pd.Index, modality: Modality, genes: pd.Index) -> Mapping[int, int]:
    """Find the gene with the same name as each protein, as row and column.

    Suffixes, as in ``CD4_TotalSeqB``, are ignored.
    """
    column = {str(gene).upper(): number for number, gene in enumerate(genes)}
    names = features.str.removeprefix(modality.prefix).str.partition("_").get_level_values(0).str.upper()
    return {row: column[name] for row, name in enumerate(names) if name in column}


def correlate_columns(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Correlate each column of ``left`` with each column of ``right``.

    NaN for constant columns.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = ((values - values.mean(axis=0)) / values.std(axis=0) for values in (left, right))
        return np.asarray(left.T @ right / len(left))


# ---- UMAP

N_NEIGHBOURS = 15
MIN_PRECOMPUTED = 1000  # cells; from there on, an exact search is faster than UMAP's


def compute_umap(x: np.ndarray, *, seed: int) -> np.ndarray:
    """Compute a reproducible UMAP of samples x dimensions.

    McInnes et al. 2018, https://arxiv.org/abs/1802.03426.
    """
    import umap  # takes seconds to import

    exact: dict[str, Any] = {}
    if len(x) >= MIN_PRECOMPUTED:
        distances, nearest = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(x).kneighbors(x)
        exact["precomputed_knn"] = nearest, distances
    cache_compiled_umap()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="precomputed_knn")
        warnings.filterwarnings("ignore", message="Graph is not fully connected")  # distant types are expected
        fitted = umap.UMAP(n_neighbors=N_NEIGHBOURS, min_dist=0.5, random_state=seed, n_jobs=1, **exact).fit(x)
    return np.asarray(fitted.embedding_)


@cache
def cache_compiled_umap() -> None:
    """Cache the compiled functions of UMAP on disk.

    Compiling them takes 10 to 15 s in each process.
    """
    import umap
    from numba.core.dispatcher import Dispatcher

    for module in (umap.distances, umap.layouts, umap.umap_, umap.utils):
        for function in vars(module).values():
            if isinstance(function, Dispatcher) and function.py_func.__module__ == module.__name__:
                with suppress(RuntimeError):  # no writable cache folder
                    function.enable_caching()
