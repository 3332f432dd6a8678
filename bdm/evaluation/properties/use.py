"""What cells are used for: clustering, cell typing both ways, and integration of batches."""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, f1_score, silhouette_score
from sklearn.neighbors import NearestNeighbors

from bdm.evaluation.properties.group import Group, Side
from bdm.evaluation.properties.structure import batch_of, of_names

N_NEIGHBOURS = 5  # that type a cell, few enough for rare types
MAX_CLUSTERED = 2000  # cells of either side


def distances(group: Group) -> dict[str, float]:
    """Compare the results of analyses of query cells with those of test cells."""
    return {**clustering(group.few(MAX_CLUSTERED)), **integration(group.few(MAX_CLUSTERED))}


def distances_by_label(group: Group) -> dict[str, dict[str, float]]:
    """Compare cell typing with the cell typing of test cells by each other, of each type and on average.

    Returns
    -------
    By cell type, and of all as ``""``, absolute differences of F1: ``classified`` where test cells type query cells,
    and ``classifies`` where query cells type test cells.
    """
    labels = group.labels
    if len(labels) < 2:
        return {}
    among_test = typing_f1(group.test)
    errors = {
        "classified": (typing_f1(group.test, group.query) - among_test).abs(),
        "classifies": (typing_f1(group.query, group.test) - among_test).abs(),
    }
    by_label = {label: {name: float(error[label]) for name, error in errors.items()} for label in labels}
    return {"": {name: float(error[labels].mean()) for name, error in errors.items()}, **by_label}


def typing_f1(reference: Side, typed: Side | None = None) -> pd.Series:
    """F1 of each type, where the nearest neighbours in a reference type cells, or its own cells: each by the others."""
    nearest = NearestNeighbors(n_neighbors=min(N_NEIGHBOURS, len(reference) - 1), algorithm="brute")
    neighbours = nearest.fit(reference.components).kneighbors(
        None if typed is None else typed.components, return_distance=False
    )
    names, code = np.unique(reference.cells.cell_type, return_inverse=True)
    votes = (code[neighbours][:, :, None] == np.arange(len(names))).sum(axis=1)
    truth = (reference if typed is None else typed).cells.cell_type
    labels = np.unique(truth)
    f1 = f1_score(truth, names[votes.argmax(axis=1)], labels=labels, average=None, zero_division=0)
    return pd.Series(f1, index=labels)


def clustering(group: Group) -> dict[str, float]:
    """Compare how well clusters agree with cell types; nothing where there is one type.

    Leiden clusters are compared where igraph is installed.
    """
    sides = [of_names(side, side.cells.cell_type, group.labels) for side in group.sides]
    if len(group.labels) < 2 or any(len(np.unique(side.cells.cell_type)) < 2 for side in sides):
        return {}
    methods: dict[str, Callable[..., np.ndarray]] = {"clustering": k_means}
    if find_spec("igraph"):
        methods["leiden"] = leiden
    return {
        name: difference([adjusted_rand_score(side.cells.cell_type, method(side, group.seed)) for side in sides])
        for name, method in methods.items()
    }


def difference(values: list[float]) -> float:
    """Absolute difference of two values."""
    return float(abs(values[0] - values[1]))


def k_means(side: Side, seed: int) -> np.ndarray:
    """Cluster cells into as many clusters as there are cell types."""
    n_clusters = len(np.unique(side.cells.cell_type))
    return np.asarray(KMeans(n_clusters, n_init=3, random_state=seed).fit_predict(side.components))


def leiden(side: Side, seed: int) -> np.ndarray:
    """Cluster cells by the Leiden method with the defaults of scanpy.

    References
    ----------
    Traag et al. 2019, https://doi.org/10.1038/s41598-019-41695-z
    """
    adata = AnnData(side.components)
    sc.pp.neighbors(adata, use_rep="X", transformer="sklearn", random_state=seed)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return np.asarray(adata.obs["leiden"].to_numpy(dtype=str))


def integration(group: Group) -> dict[str, float]:
    """Compare silhouettes by type and by batch after ComBat; nothing where there are no two batches of enough cells.

    References
    ----------
    Johnson et al. 2007, https://doi.org/10.1093/biostatistics/kxj037
    """
    if min(len(side.batches) for side in group.sides) < 2:
        return {}
    sides = [of_names(side, batch_of(side), side.batches) for side in group.sides]
    corrected = [integrated(side) for side in sides]
    compared = {}
    for name, columns in {
        "integrated_label": [side.cells.cell_type for side in sides],
        "integrated_batch": [batch_of(side) for side in sides],
    }.items():
        if all(len(np.unique(column)) > 1 for column in columns):
            widths = [silhouette_score(cells, column) for cells, column in zip(corrected, columns, strict=True)]
            compared[name] = difference(widths)
    return compared


def integrated(side: Side) -> np.ndarray:
    """Correct the principal components for batches."""
    adata = AnnData(side.components.astype(float), obs={"batch": pd.Categorical(batch_of(side))})
    return np.asarray(sc.pp.combat(adata, key="batch", inplace=False))
