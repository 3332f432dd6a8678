"""Properties of genes: each has one value a gene, or a pair of genes, in query cells and in test cells."""

import numpy as np

from bdm.evaluation.cells import Cells
from bdm.evaluation.properties.group import Group, ks


def distances(group: Group) -> dict[str, float]:
    """Compare the distributions of each value over genes, and of correlations over pairs of genes."""
    query, test = (side.gene_values for side in group.sides)
    compared = {name: ks(values, getattr(test, name)) for name, values in vars(query).items()}
    pairs = [correlations_within_types(side.cells, group.genes) for side in group.sides]
    return {**compared, "gene_correlation": ks(*pairs)}


def correlations_within_types(cells: Cells, genes: np.ndarray) -> np.ndarray:
    """Pearson correlation of each pair of genes over cells, after the means of cell types are subtracted."""
    expression = cells.expression[:, genes].toarray().astype(float)
    for name in np.unique(cells.cell_type):
        of_type = cells.cell_type == name
        expression[of_type] -= expression[of_type].mean(axis=0)
    spread = expression.std(axis=0)
    expression[:, spread < 1e-6] = np.nan  # constant, but for rounding
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.corrcoef(expression, rowvar=False)[np.triu_indices(len(genes), k=1)])
