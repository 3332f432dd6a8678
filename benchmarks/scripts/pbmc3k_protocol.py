"""Score generated cells of PBMC3K as in the published tables of CFGen.

Palma et al. 2025, https://arxiv.org/abs/2407.11734; code: https://github.com/theislab/CFGen.
"""

from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import typer
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from tidy import write_rows

from bdm.data.cells import FLOOR, Cells
from bdm.data.prepare import read_prepared
from bdm.evaluation.metrics import fitted_pca
from bdm.evaluation.resamples import match

N_GENES, N_COMPONENTS = 2000, 30
SIGMAS = (0.01, 0.1, 1, 10, 100)  # standard deviations of the summed Gaussian kernels


def distances(query: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Compute the squared MMD (biased) and the 2-Wasserstein distance of equally many points."""
    n, both = len(query), np.concatenate([query, test])
    squared = cdist(both, both, "sqeuclidean")
    kernel = sum(np.exp(-squared / (2 * sigma**2)) for sigma in SIGMAS)
    mmd = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    across = squared[:n, n:]
    return {"RBF-MMD": float(mmd), "W2": float(np.sqrt(across[linear_sum_assignment(across)].mean()))}


def score(query: Cells, test: Cells, genes: np.ndarray, *, min_cells: int, seed: int) -> dict[str, float]:
    """Average distances over cell types, in principal components of the test cells."""
    pca = fitted_pca(test.expression[:, genes], n_components=N_COMPONENTS)
    query, test = match(query, test, seed=seed)
    x, y = (pca.transform(cells.expression[:, genes]) for cells in (query, test))
    types = test.types(fewest=min_cells)
    by_type = [distances(x[query.cell_type == name], y[test.cell_type == name]) for name in types]
    return pd.DataFrame(by_type).mean().to_dict()


def main(
    prepared: Path,
    generated: list[Path],
    out: Path,
    *,
    min_cells: Annotated[int, typer.Option(help="Test cells of a type.")] = 20,
    seed: int = 0,
) -> None:
    """Write the scores of real training cells, and of each method."""
    adata = read_prepared(prepared)
    variable = sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=N_GENES, inplace=False)
    genes, is_test = np.flatnonzero(variable["highly_variable"]), (adata.obs["split"] == "test").to_numpy()
    sets = {FLOOR: adata[~is_test], **{path.stem: ad.read_h5ad(path) for path in generated}}
    test = Cells.from_anndata(adata[is_test])
    rows = [
        {"method": name, "score": distance, "value": value}
        for name, cells in sets.items()
        for distance, value in score(Cells.from_anndata(cells), test, genes, min_cells=min_cells, seed=seed).items()
    ]
    write_rows(pd.DataFrame(rows), out)


if __name__ == "__main__":
    typer.run(main)
