import warnings

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from bdm.evaluation.cells import Cells, draw
from bdm.interpretation.contrasts import Contrast
from bdm.interpretation.differences import Differences, FoldChange
from bdm.interpretation.expression import Expression, TypeExpression

FEWEST_CELLS = 3  # on either side of a contrast


def real_expression(cells: Cells) -> TypeExpression:
    """Expression of each type in real cells.

    The variance is at least that of a Poisson number of counts, one more than were seen: that few cells have no counts
    of a gene does not mean that others have none.
    """
    by_type = {}
    for cell_type, n in cells.n_by_type.items():
        of_type = cells[cells.cell_type == cell_type]
        cp10k = of_type.cp10k.astype(np.float64)
        mean = cp10k.mean(axis=0).A1
        square = cp10k.multiply(cp10k).mean(axis=0).A1
        per_count = 1e4 / max(of_type.library_size.sum(), 1)
        poisson = n * (of_type.counts.sum(axis=0).A1 + 1) * per_count**2
        by_type[cell_type] = Expression(mean, np.maximum((square - mean**2) * n / max(n - 1, 1), poisson))
    return TypeExpression(by_type, cells.n_by_type.to_dict())


def real_differences(
    cells: Cells, expression: TypeExpression, contrasts: tuple[Contrast, ...]
) -> dict[str, Differences]:
    """Differences in real cells for the contrasts of one node, by child.

    The test is Wilcoxon's, corrected for ties, on log1p(CP10k), of a child's cells against those of the others.
    Children are left out that have fewer than three cells, or of whose siblings there are fewer than three.

    Parameters
    ----------
    expression
        :func:`real_expression` of the cells.
    """
    below = {leaf: contrast.child for contrast in contrasts for leaf in contrast.inside}
    cells = cells[np.isin(cells.cell_type, list(below))]
    cells = Cells(cells.counts, np.array([below[cell_type] for cell_type in cells.cell_type], dtype=str))
    n_cells = cells.n_by_type
    children = [child for child, n in n_cells.items() if FEWEST_CELLS <= n <= len(cells) - FEWEST_CELLS]
    if not children:
        return {}
    tested = wilcoxon(cells, children)
    known = expression.by_type.keys()
    return {
        contrast.child: Differences(FoldChange.of(expression, contrast.among(known)), *tested[contrast.child])
        for contrast in contrasts
        if contrast.child in children
    }


def wilcoxon(cells: Cells, groups: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Score and p-value of each gene, by group of cells, against all other cells."""
    adata = AnnData(cells.expression.copy())
    adata.obs["group"] = pd.Categorical(cells.cell_type)
    with warnings.catch_warnings(action="ignore"):
        sc.tl.rank_genes_groups(adata, "group", groups=groups, method="wilcoxon", tie_correct=True)
    result = adata.uns["rank_genes_groups"]
    tested = {}
    for group in groups:
        in_order = np.argsort(result["names"][group].astype(int))
        tested[group] = tuple(result[key][group][in_order].astype(float) for key in ("scores", "pvals"))
    return tested


def halves_of(cells: Cells, *, seed: int) -> tuple[Cells, Cells]:
    """Part cells at random into two halves of the same types."""
    first = draw(cells, cells.n_by_type // 2, seed=seed)
    return cells[first], cells[np.setdiff1d(np.arange(len(cells)), first)]
