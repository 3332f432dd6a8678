from dataclasses import dataclass

import numpy as np

from bdm.diffusion.walk import SamplerSettings, TreeWalk
from bdm.generation.counts import expected_counts, inverse_dispersion
from bdm.generation.generate import Chunk, shared_chunks
from bdm.generation.request import Request, request_cells
from bdm.interpretation.contrasts import Contrast
from bdm.interpretation.differences import PSEUDOCOUNT, Differences
from bdm.model.model import BranchedModel


@dataclass(frozen=True)
class Expression:
    """Mean and variance of each gene's expression in a population, in CP10k.

    The mean is over expected expression, without the noise of counts; the variance is that of cells with counts.
    """

    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class ModelExpression:
    """Expression of each cell type in the model, and the types' weights in a mixture."""

    by_type: dict[str, Expression]
    weight: dict[str, float]

    def total_weight(self, cell_types: tuple[str, ...]) -> float:
        """Weight of several types together."""
        return sum(self.weight[cell_type] for cell_type in cell_types)

    def mixture(self, cell_types: tuple[str, ...]) -> Expression:
        """Expression of a mixture of types in proportion to the cells that the model was trained on."""
        weight = np.array([self.weight[cell_type] for cell_type in cell_types])
        weight = weight / weight.sum()
        means = np.stack([self.by_type[cell_type].mean for cell_type in cell_types])
        variances = np.stack([self.by_type[cell_type].variance for cell_type in cell_types])
        mean = weight @ means
        return Expression(mean, weight @ (variances + (means - mean) ** 2))


def model_expression(model: BranchedModel, *, n_cells: int = 500, seed: int = 0) -> ModelExpression:
    """Expression of each type by the model alone, over ``n_cells`` cells walked down the tree.

    All types descend from the same ancestors, so that chance above a branch point does not part its children.
    """
    walk = TreeWalk(model.denoiser, model.hierarchy, model.moments, SamplerSettings())
    request = request_cells(model, n_cells)
    parts = {cell_type: [] for cell_type in model.cell_types}
    for chunk in shared_chunks(walk, request, seed):
        parts[chunk.cell_type].append((len(chunk.x), _expression(model, request, chunk)))
    weight = model.composition.sum(axis=1).to_dict()
    return ModelExpression({cell_type: _pooled(part) for cell_type, part in parts.items()}, weight)


def model_differences(expression: ModelExpression, contrast: Contrast) -> Differences:
    """Differences between the sides of a contrast in the model.

    The score is the standardised difference of means (Cohen's d), in units of the pooled spread that cells with counts
    have within the two sides: a rare gene's fold change is hard to see in counts, so it counts for less, as in a test
    of real cells.
    """
    inside, outside = expression.mixture(contrast.inside), expression.mixture(contrast.outside)
    sides = expression.total_weight(contrast.inside), expression.total_weight(contrast.outside)
    spread = np.sqrt(np.average([inside.variance, outside.variance], axis=0, weights=sides))
    return Differences(
        log2_fold_change=np.log2((inside.mean + PSEUDOCOUNT) / (outside.mean + PSEUDOCOUNT)),
        score=(inside.mean - outside.mean) / spread,
    )


def _expression(model: BranchedModel, request: Request, chunk: Chunk) -> Expression:
    batch = request.batches(chunk.cell_type, chunk.start, len(chunk.x))
    counts = expected_counts(model, chunk.x, batch).astype(np.float64)
    per_count = 1e4 / counts.sum(axis=1, keepdims=True)
    expression = counts * per_count
    # Law of total variance, with the negative binomial's own
    noise = expression * per_count + expression**2 / inverse_dispersion(model, chunk.cell_type).astype(np.float64)
    return Expression(expression.mean(axis=0), expression.var(axis=0) + noise.mean(axis=0))


def _pooled(parts: list[tuple[int, Expression]]) -> Expression:
    names = tuple(map(str, range(len(parts))))
    expressions = dict(zip(names, (expression for _, expression in parts), strict=True))
    weight = dict(zip(names, (float(n_cells) for n_cells, _ in parts), strict=True))
    return ModelExpression(expressions, weight).mixture(names)
