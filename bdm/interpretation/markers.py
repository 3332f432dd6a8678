from dataclasses import dataclass

import numpy as np
import pandas as pd

from bdm.evaluation.cells import Cells
from bdm.evaluation.fold_changes import marker_genes

N_CANDIDATES = 50  # markers of a type among which those not taken by another type are sought


@dataclass(frozen=True)
class Dots:
    """Expression of genes in cell types, types x genes.

    Attributes
    ----------
    mean
        Of log1p(CP10k).
    fraction
        Share of cells with counts.
    """

    mean: pd.DataFrame
    fraction: pd.DataFrame


@dataclass(frozen=True)
class Markers:
    """Marker genes of cell types in real and in generated cells.

    Attributes
    ----------
    genes
        Names of the markers, by cell type; those of one type are not those of another.
    """

    genes: dict[str, list[str]]
    real: Dots
    generated: Dots


def markers_of(
    training: Cells, generated: Cells, genes: pd.Index, cell_types: tuple[str, ...], *, n_genes: int
) -> Markers:
    """Choose ``n_genes`` markers of each type on real training cells, and see them in real and generated cells.

    Of the genes that mark a type against all others, those are taken that stand out most against any other type.
    """
    candidates = marker_genes(training, n_genes=N_CANDIDATES)
    mean = dots(training, list(range(len(genes))), genes, cell_types).mean.to_numpy()
    chosen: dict[str, list[int]] = {}
    taken: set[int] = set()
    for row, cell_type in enumerate(cell_types):
        ahead = mean[row] - np.delete(mean, row, axis=0).max(axis=0)
        free = [gene for gene in candidates.get(cell_type, []) if gene not in taken]
        chosen[cell_type] = sorted(free, key=lambda gene: -ahead[gene])[:n_genes]
        taken.update(chosen[cell_type])
    columns = [gene for of_type in chosen.values() for gene in of_type]
    return Markers(
        genes={cell_type: list(genes[of_type]) for cell_type, of_type in chosen.items()},
        real=dots(training, columns, genes, cell_types),
        generated=dots(generated, columns, genes, cell_types),
    )


def dots(cells: Cells, columns: list[int], genes: pd.Index, cell_types: tuple[str, ...]) -> Dots:
    """Mean and share of cells with counts of the genes in ``columns``, by type."""
    expression = cells.expression[:, columns]
    mean, fraction = [], []
    for cell_type in cell_types:
        of_type = expression[cells.cell_type == cell_type]
        mean.append(of_type.mean(axis=0).A1)
        fraction.append((of_type > 0).sum(axis=0).A1 / of_type.shape[0])
    frame = {"index": list(cell_types), "columns": genes[columns]}
    return Dots(pd.DataFrame(mean, **frame), pd.DataFrame(fraction, **frame))
