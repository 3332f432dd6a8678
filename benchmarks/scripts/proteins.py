"""Compare proteins of test cells that were predicted from their RNA with the counts, and with those of near cells."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import typer
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from tidy import write_rows

from bdm.data.modalities import modalities_of, parts_of
from bdm.data.prepare import read_prepared
from bdm.evaluation.metrics import fitted_pca
from bdm.evaluation.modality_scores import transform_counts

N_COMPONENTS, N_NEIGHBOURS = 30, [5, 10, 15, 20, 30, 50]


def scores(log1p: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Error and correlations of predicted log1p counts, cells x proteins."""
    r = [np.corrcoef(*columns)[0, 1] for columns in zip(log1p.T, real.T, strict=True)]
    return {"RMSE": float(np.sqrt(((log1p - real) ** 2).mean())), "correlation": float(np.median(r))}


def near_cells(cells: ad.AnnData, test: np.ndarray, *, seed: int) -> np.ndarray:
    """Mean log1p counts of proteins of the nearest training cells in principal components of RNA.

    Their number is the best by cross-validation in the training cells.
    """
    rna = transform_counts(cells.X[:, modalities_of(cells.var)[0].features], modalities_of(cells.var)[0])
    components = fitted_pca(rna[~test], n_components=N_COMPONENTS, seed=seed).transform(rna)
    known = np.log1p(parts_of(cells)["prot"].X[~test].toarray())
    nearest = GridSearchCV(KNeighborsRegressor(), {"n_neighbors": N_NEIGHBOURS}, scoring="neg_mean_squared_error")
    return np.asarray(nearest.fit(components[~test], known).predict(components[test]))


def main(prepared: Path, predicted: list[Path], out: Path, *, seed: int = 0) -> None:
    """Score the predicted proteins of each file, which is named by its method."""
    cells = read_prepared(prepared)
    test = (cells.obs["split"] == "test").to_numpy()
    counts = parts_of(cells)["prot"].X[test].toarray()
    found = {"near cells": scores(near_cells(cells, test, seed=seed), np.log1p(counts))}
    for file in predicted:
        of_method = ad.read_h5ad(file)[cells.obs_names[test]]
        inside = (of_method.layers["lower"] <= counts) & (counts <= of_method.layers["upper"])
        found[file.stem] = scores(of_method.layers["log1p"], np.log1p(counts)) | {"coverage": float(inside.mean())}
    rows = [(method, score, value) for method, scores in found.items() for score, value in scores.items()]
    write_rows(pd.DataFrame(rows, columns=["method", "score", "value"]), out)


if __name__ == "__main__":
    typer.run(main)
