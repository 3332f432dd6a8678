"""Properties that are pairs of values: of genes, and of cells."""

import numpy as np

from bdm.evaluation.properties.group import Group, energy_coefficient
from bdm.evaluation.properties.values import cell_zero_fraction


def distances(group: Group) -> dict[str, float]:
    """Compare the joint distributions of two values over genes, or over cells."""
    query, test = (side.gene_values for side in group.sides)
    compared = {
        "mean_variance": ((query.mean, query.variance), (test.mean, test.variance)),
        "mean_zeros": ((query.mean, query.zero_fraction), (test.mean, test.zero_fraction)),
        "library_zeros": tuple(
            (np.log1p(side.cells.library_size), cell_zero_fraction(side.cells)) for side in group.sides
        ),
    }
    return {
        name: energy_coefficient(*(np.column_stack(values) for values in pair), seed=group.seed)
        for name, pair in compared.items()
    }
