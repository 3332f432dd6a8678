import numpy as np

from bdm.diffusion.walk import SamplerSettings, TreeWalk
from bdm.generation.counts import expected_counts, inverse_dispersion
from bdm.generation.generate import Chunk, shared_chunks
from bdm.generation.request import Request, request_cells
from bdm.interpretation.contrasts import Contrast
from bdm.interpretation.differences import Differences, FoldChange, two_sided_p
from bdm.interpretation.expression import Expression, TypeExpression
from bdm.model.model import BranchedModel


def model_expression(model: BranchedModel, *, n_cells: int = 500, seed: int = 0) -> TypeExpression:
    """Expression of each type by the model alone, over ``n_cells`` cells walked down the tree.

    All types descend from the same ancestors, so that chance above a branch point does not part its children. Means are
    over expected expression, without the noise of counts; types weigh by the cells that the model was trained on.
    """
    walk = TreeWalk(model.denoiser, model.hierarchy, SamplerSettings())
    request = request_cells(model, n_cells)
    parts = {cell_type: [] for cell_type in model.cell_types}
    for chunk in shared_chunks(walk, request, seed):
        parts[chunk.cell_type].append((len(chunk.x), _expression(model, request, chunk)))
    n_trained = model.composition.sum(axis=1).to_dict()
    return TypeExpression({cell_type: _pooled(part) for cell_type, part in parts.items()}, n_trained)


def model_differences(expression: TypeExpression, contrast: Contrast) -> Differences:
    """Differences between the sides of a contrast in the model.

    The score is the standardised difference of means (Cohen's d), in units of the pooled spread that cells with counts
    have within the two sides: a rare gene's fold change is hard to see in counts, so it counts for less, as in a test
    of real cells.
    """
    inside, outside = expression.mixture(contrast.inside), expression.mixture(contrast.outside)
    sides = expression.total(contrast.inside), expression.total(contrast.outside)
    spread = np.sqrt(np.average([inside.variance, outside.variance], axis=0, weights=sides))
    fold_change = FoldChange.of(expression, contrast)
    return Differences(fold_change, (inside.mean - outside.mean) / spread, two_sided_p(fold_change.z))


def _expression(model: BranchedModel, request: Request, chunk: Chunk) -> Expression:
    batch = request.batches(chunk.cell_type, chunk.start, len(chunk.x))
    counts = expected_counts(model, chunk.x, batch, chunk.cell_type).astype(np.float64)
    per_count = 1e4 / counts.sum(axis=1, keepdims=True)
    expression = counts * per_count
    # Law of total variance, with the negative binomial's own
    noise = expression * per_count + expression**2 / inverse_dispersion(model, chunk.cell_type).astype(np.float64)
    return Expression(expression.mean(axis=0), expression.var(axis=0) + noise.mean(axis=0))


def _pooled(parts: list[tuple[int, Expression]]) -> Expression:
    names = tuple(map(str, range(len(parts))))
    expressions = dict(zip(names, (expression for _, expression in parts), strict=True))
    n_cells = dict(zip(names, (n for n, _ in parts), strict=True))
    return TypeExpression(expressions, n_cells).mixture(names)
