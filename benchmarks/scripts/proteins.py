"""Score proteins predicted from RNA, with nearest neighbours as the baseline."""

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
    """Compute RMSE and correlation of predicted log1p counts, cells x proteins."""
    r = [np.corrcoef(*columns)[0, 1] for columns in zip(log1p.T, real.T, strict=True)]
    return {"RMSE": float(np.sqrt(((log1p - real) ** 2).mean())), "correlation": float(np.median(r))}


def near_cells(cells: ad.AnnData, test: np.ndarray, *, seed: int) -> np.ndarray:
    """Predict log1p protein counts by nearest neighbours in RNA components.

    Cross-validation in training cells selects the number of neighbours.
    """
    rna = transform_counts(cells.X[:, modalities_of(cells.var)[0].features], modalities_of(cells.var)[0])
    components = fitted_pca(rna[~test], n_components=N_COMPONENTS, seed=seed).transform(rna)
    known = np.log1p(parts_of(cells)["prot"].X[~test].toarray())
    nearest = GridSearchCV(KNeighborsRegressor(), {"n_neighbors": N_NEIGHBOURS}, scoring="neg_mean_squared_error")
    return np.asarray(nearest.fit(components[~test], known).predict(components[test]))


def main(prepared: Path, predicted: list[Path], out: Path, *, seed: int = 0) -> None:
    """Score the predicted proteins in each file METHOD.h5ad."""
    cells = read_prepared(prepared)
    test = (cells.obs["split"] == "test").to_numpy()
    counts = parts_of(cells)["prot"].X[test].toarray()
    by_method = {"near cells": scores(near_cells(cells, test, seed=seed), np.log1p(counts))}
    for file in predicted:
        prediction = ad.read_h5ad(file)[cells.obs_names[test]]
        inside = (prediction.layers["lower"] <= counts) & (counts <= prediction.layers["upper"])
        by_method[file.stem] = scores(prediction.layers["log1p"], np.log1p(counts)) | {"coverage": float(inside.mean())}
    rows = [(method, score, value) for method, scores in by_method.items() for score, value in scores.items()]
    write_rows(pd.DataFrame(rows, columns=["method", "score", "value"]), out)


if __name__ == "__main__":
    typer.run(main)
