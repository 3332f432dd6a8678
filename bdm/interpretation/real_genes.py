import warnings

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from bdm.evaluation.cells import Cells, draw
from bdm.evaluation.fold_changes import log_fold_changes
from bdm.interpretation.contrasts import Contrast
from bdm.interpretation.differences import PSEUDOCOUNT, Differences

FEWEST_CELLS = 3  # on either side of a contrast


def real_differences(cells: Cells, contrasts: tuple[Contrast, ...]) -> dict[str, Differences]:
    """Differences in real cells for the contrasts of one node, by child.

    The test is Wilcoxon's, corrected for ties, on log1p(CP10k), of a child's cells against those of the others.
    Children are left out that have fewer than three cells, or of whose siblings there are fewer than three.
    """
    below = {leaf: contrast.child for contrast in contrasts for leaf in contrast.inside}
    cells = cells[np.isin(cells.cell_type, list(below))]
    cells = Cells(cells.counts, np.array([below[cell_type] for cell_type in cells.cell_type], dtype=str))
    n_cells = cells.n_by_type
    children = [child for child, n in n_cells.items() if FEWEST_CELLS <= n <= len(cells) - FEWEST_CELLS]
    if not children:
        return {}
    tested = wilcoxon(cells, children)
    fold_changes = log_fold_changes(cells, children, pseudocount=PSEUDOCOUNT)
    return {
        child: Differences(fold_change, *tested[child])
        for child, fold_change in zip(children, fold_changes, strict=True)
    }


def wilcoxon(cells: Cells, groups: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Score and adjusted p-value of each gene, by group of cells, against all other cells."""
    adata = AnnData(cells.expression.copy())
    adata.obs["group"] = pd.Categorical(cells.cell_type)
    with warnings.catch_warnings(action="ignore"):
        sc.tl.rank_genes_groups(adata, "group", groups=groups, method="wilcoxon", tie_correct=True)
    result = adata.uns["rank_genes_groups"]
    tested = {}
    for group in groups:
        in_order = np.argsort(result["names"][group].astype(int))
        tested[group] = tuple(result[key][group][in_order].astype(float) for key in ("scores", "pvals_adj"))
    return tested


def halves_of(cells: Cells, *, seed: int) -> tuple[Cells, Cells]:
    """Part cells at random into two halves of the same types."""
    first = draw(cells, cells.n_by_type // 2, seed=seed)
    return cells[first], cells[np.setdiff1d(np.arange(len(cells)), first)]
