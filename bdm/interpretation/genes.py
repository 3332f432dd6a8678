"""Genes that differ in a contrast, in the model and in real cells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bdm.evaluation.cells import Cells
from bdm.evaluation.genes import wilcoxon
from bdm.generation.chunks import Chunk, shared_chunks
from bdm.generation.generate import expected_counts, observation_model
from bdm.generation.request import Request, request_cells
from bdm.interpretation.contrasts import (
    Contrast,
    Differences,
    Expression,
    FoldChange,
    PopulationExpression,
    two_sided_p,
)
from bdm.model.model import BranchedModel


def model_expression(model: BranchedModel, *, n_cells: int = 500, seed: int = 0) -> PopulationExpression:
    """Expression of each population by the model alone, over ``n_cells`` cells decoded down the tree.

    All populations descend from the same ancestors, so that chance above a node does not separate its children. Means
    are over expected expression, without the noise of counts; populations weigh by the cells that they were
    trained on.
    """
    sampler = model.sampler()
    request = request_cells(model, dict.fromkeys(model.populations, n_cells))
    parts: dict[str, list[tuple[int, Expression]]] = {population: [] for population in model.populations}
    for chunk in shared_chunks(sampler, request, seed):
        parts[chunk.population].append((len(chunk.x), _expression(model, request, chunk)))
    n_trained = model.composition.sum(axis=1).to_dict()
    return PopulationExpression({population: _pooled(part) for population, part in parts.items()}, n_trained)


def model_differences(expression: PopulationExpression, contrast: Contrast) -> Differences:
    """Differences between the sides of a contrast in the model.

    The score is the standardised difference of means (Cohen's d), in units of the pooled spread that cells with counts
    have within the two sides: a rare gene's fold change is hard to see in counts, so it counts for less, as in a test
    of real cells.
    """
    inside, outside = expression.mixture(contrast.inside), expression.mixture(contrast.outside)
    sides = expression.total(contrast.inside), expression.total(contrast.outside)
    spread = np.sqrt(np.average([inside.variance, outside.variance], axis=0, weights=sides))
    fold_change = FoldChange.of(expression, contrast)
    found = Differences(fold_change, (inside.mean - outside.mean) / spread, two_sided_p(fold_change.z))
    return found.without_p() if contrast.divides_type else found


def _expression(model: BranchedModel, request: Request, chunk: Chunk) -> Expression:
    batch = request.batches(chunk.population, chunk.start, len(chunk.x))
    counts = expected_counts(model, chunk.x, batch, chunk.population).astype(np.float64)
    per_count = 1e4 / counts.sum(axis=1, keepdims=True)
    expression = counts * per_count
    # Law of total variance, with the variance of counts
    noise = observation_model(model, chunk.population).variance(counts) * per_count**2
    return Expression(expression.mean(axis=0), expression.var(axis=0) + noise.mean(axis=0))


def _pooled(parts: list[tuple[int, Expression]]) -> Expression:
    names = tuple(map(str, range(len(parts))))
    expressions = dict(zip(names, (expression for _, expression in parts), strict=True))
    n_cells = dict(zip(names, (n for n, _ in parts), strict=True))
    return PopulationExpression(expressions, n_cells).mixture(names)


MIN_CELLS = 3  # on either side of a contrast
OTHERS = ""  # below a node, but below none of the children that are tested


def real_expression(cells: Cells) -> PopulationExpression:
    """Expression of each population in real cells.

    The variance is at least that of a Poisson number of counts, one more than were seen: that few cells have no counts
    of a gene does not mean that others have none.
    """
    by_population = {}
    for population, n in cells.n_by_type.items():
        of_population = cells[cells.cell_type == population]
        cp10k = of_population.cp10k.astype(np.float64)
        mean = cp10k.mean(axis=0).A1
        square = cp10k.multiply(cp10k).mean(axis=0).A1
        per_count = 1e4 / max(of_population.library_size.sum(), 1)
        poisson = n * (of_population.counts.sum(axis=0).A1 + 1) * per_count**2
        by_population[population] = Expression(mean, np.maximum((square - mean**2) * n / max(n - 1, 1), poisson))
    return PopulationExpression(by_population, cells.n_by_type.to_dict())


def real_differences(
    cells: Cells,
    expression: PopulationExpression,
    contrasts: tuple[Contrast, ...],
    *,
    tested_as: Callable[[Cells], Cells] = lambda cells: cells,
) -> dict[str, Differences]:
    """Differences in real cells for contrasts of one node, by child.

    The test is Wilcoxon's, corrected for ties, on log1p(CP10k), of a child's cells against those of the others.
    Children are left out that have fewer than three cells, or of whose siblings there are fewer than three.

    Parameters
    ----------
    expression
        :func:`real_expression` of the cells.
    tested_as
        Changes the cells before they are tested, by which fold changes do not change; their types are children.
    """
    others = {name: OTHERS for contrast in contrasts for name in contrast.outside}
    below = others | {name: contrast.child for contrast in contrasts for name in contrast.inside}
    cells = cells[np.isin(cells.cell_type, list(below))]
    cells = Cells(cells.counts, np.array([below[name] for name in cells.cell_type], dtype=str))
    cells = tested_as(cells) if len(cells) else cells
    n_cells = cells.n_by_type.drop(OTHERS, errors="ignore")
    children = [child for child, n in n_cells.items() if MIN_CELLS <= n <= len(cells) - MIN_CELLS]
    if not children:
        return {}
    tested = wilcoxon(cells, children)
    known = expression.by_population.keys()
    return {
        contrast.child: Differences(FoldChange.of(expression, contrast.among(known)), *tested[contrast.child])
        for contrast in contrasts
        if contrast.child in children
    }
