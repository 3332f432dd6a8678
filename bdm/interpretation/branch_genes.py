"""Differential expression of contrasts, in the model and in real cells.

If a contrast divides a cell type, one half of the counts assigns cells to populations, and genes are tested in the
other half (count splitting).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm._core.seeds import numpy_generator
from bdm.autoencoder.latent import populations_of_cells
from bdm.data.cells import Cells, modalities_if_several, sample_by_type, smaller_numbers
from bdm.data.gene_tests import wilcoxon
from bdm.data.modalities import block_sizes, per_10k
from bdm.data.prepare import counted_cells
from bdm.generation.generate import Chunk, shared_chunks
from bdm.generation.request import complete_inputs, request_cells
from bdm.interpretation.contrasts import Contrast, Differences, Expression, Log2FoldChange, PopulationExpression
from bdm.model.model import BranchedModel, expected_counts, generated_noise, observation_model

MIN_CELLS = 3  # per side of a contrast
OTHERS = ""  # label of cells below a node outside the tested children
MIN_DEPTH = 0.25  # quantile of library sizes to downsample to


def model_expression(model: BranchedModel, *, n_cells: int = 500, seed: int = 0) -> PopulationExpression:
    """Compute the expression of each population in ``n_cells`` cells that the model generates.

    Populations share ancestors, so that sampling noise above a node does not separate its children. They are weighted
    by their training cells.
    """
    sampler = model.sampler()
    request = request_cells(model, dict.fromkeys(model.populations, n_cells))
    chunks: dict[str, list[tuple[int, Expression]]] = {population: [] for population in model.populations}
    inputs = complete_inputs(model, request.table, seed)
    for chunk in shared_chunks(sampler, request, seed):
        chunks[chunk.population].append((len(chunk.x), summarise_chunk(model, chunk, inputs[chunk.population])))
    n_trained = model.composition.sum(axis=1).to_dict()
    expression = {population: pool_chunks(summaries) for population, summaries in chunks.items()}
    return PopulationExpression(expression, n_trained, block_sizes(model.autoencoder.genes))


def model_differences(expression: PopulationExpression, contrast: Contrast) -> Differences:
    """Compare the sides of a contrast in the model.

    The score is Cohen's d. The standard deviation includes count noise, so that rare genes score lower, as in a test of
    real cells.
    """
    inside, outside = expression.mixture(contrast.inside), expression.mixture(contrast.outside)
    n_cells = expression.total(contrast.inside), expression.total(contrast.outside)
    deviation = np.sqrt(np.average([inside.variance, outside.variance], axis=0, weights=n_cells))
    fold_change = Log2FoldChange.from_expression(expression, contrast)
    score = (inside.mean - outside.mean) / deviation
    differences = Differences(fold_change, score, fold_change.p, expression.blocks)
    return differences.without_p() if contrast.divides_type else differences


def summarise_chunk(model: BranchedModel, chunk: Chunk, inputs: pd.DataFrame) -> Expression:
    """Compute mean and variance of each gene in a chunk of generated cells."""
    at = inputs.iloc[chunk.start : chunk.start + len(chunk.x)]
    counts = expected_counts(model, model.moved(chunk.x, chunk.population, at), at, chunk.population).astype(np.float64)
    per_count = per_10k(counts, model.autoencoder.modalities)
    expression = counts * per_count
    # Law of total variance, with the variance of counts
    noise = generated_noise(model, chunk.population).variance(counts) * per_count**2
    return Expression(expression.mean(axis=0), expression.var(axis=0) + noise.mean(axis=0))


def pool_chunks(chunks: list[tuple[int, Expression]]) -> Expression:
    """Pool the expression of chunks, given with their numbers of cells, as a mixture."""
    by_chunk = {str(i): expression for i, (_, expression) in enumerate(chunks)}
    n_cells = {str(i): n for i, (n, _) in enumerate(chunks)}
    return PopulationExpression(by_chunk, n_cells).mixture(tuple(by_chunk))


def real_expression(cells: Cells) -> PopulationExpression:
    """Compute the expression of each population in real cells.

    The variance is at least Poisson (with one extra count), since few cells may lack a gene by chance.
    """
    by_population = {}
    for population, n in cells.n_by_type.items():
        members = cells[cells.cell_type == population]
        cp10k = members.cp10k.astype(np.float64)
        mean = cp10k.mean(axis=0).A1
        square = cp10k.multiply(cp10k).mean(axis=0).A1
        poisson = np.concatenate([poisson_variance(part) for part in members.by_modality])
        by_population[population] = Expression(mean, np.maximum((square - mean**2) * n / max(n - 1, 1), poisson))
    blocks = tuple(modality.n_features for modality in cells.modalities)
    return PopulationExpression(by_population, cells.n_by_type.to_dict(), blocks)


def poisson_variance(cells: Cells) -> np.ndarray:
    """Compute Poisson variances (CP10k) of one modality, with one extra count per feature."""
    per_count = 1e4 / max(cells.library_size.sum(), 1) if cells.has_size else 1 / len(cells)
    return np.asarray(len(cells) * (cells.counts.sum(axis=0).A1 + 1) * per_count**2)


def real_differences(
    cells: Cells,
    expression: PopulationExpression,
    contrasts: tuple[Contrast, ...],
    *,
    transform: Callable[[Cells], Cells] = lambda cells: cells,
) -> dict[str, Differences]:
    """Test the contrasts of one node in real cells by Wilcoxon's rank-sum test.

    The ``cell_type`` of the cells has populations; ``expression`` is for fold changes; ``transform``, such as
    downsampling, changes the cells before the test. Returns differences by child, without contrasts that have fewer
    than ``MIN_CELLS`` cells on a side.
    """
    label = {name: OTHERS for contrast in contrasts for name in contrast.outside}
    label |= {name: contrast.child for contrast in contrasts for name in contrast.inside}
    cells = cells[np.isin(cells.cell_type, list(label))]
    cells = replace(cells, cell_type=np.array([label[name] for name in cells.cell_type], dtype=str))
    cells = transform(cells) if len(cells) else cells
    n_cells = cells.n_by_type.drop(OTHERS, errors="ignore")
    children = [child for child, n in n_cells.items() if MIN_CELLS <= n <= len(cells) - MIN_CELLS]
    if not children:
        return {}
    tested = wilcoxon(cells, children)
    known = expression.by_population.keys()
    return {
        contrast.child: Differences(
            Log2FoldChange.from_expression(expression, contrast.among(known)),
            *tested[contrast.child],
            expression.blocks,
        )
        for contrast in contrasts
        if contrast.child in children
    }


@dataclass(frozen=True)
class ComparedCells:
    """Real cells to compare genes in."""

    whole: Cells  # all counts, for contrasts between cell types
    split: Cells  # half of the counts (see split_counts), for contrasts that divide a type
    fitted: bool  # whether the sub-populations or the decoder were fitted to these cells

    @cached_property
    def expression(self) -> tuple[PopulationExpression, PopulationExpression]:
        """Expression of each population in the whole and in the split cells."""
        return real_expression(self.whole), real_expression(self.split)

    def matched(self, reference: ComparedCells, *, seed: int) -> ComparedCells:
        """Subsample each population to at most its number of cells in ``reference``."""
        pairs = (self.whole, reference.whole), (self.split, reference.split)
        whole, split = (
            cells[sample_by_type(cells, smaller_numbers(cells.n_by_type, target.n_by_type), seed=seed)]
            for cells, target in pairs
        )
        return replace(self, whole=whole, split=split)

    def differences(self, node: tuple[Contrast, ...], *, seed: int) -> dict[str, Differences]:
        """Test the contrasts of one node, by child; p-values are NaN if not valid."""
        whole, split = self.expression
        between = tuple(contrast for contrast in node if not contrast.divides_type)
        dividing = tuple(contrast for contrast in node if contrast.divides_type)

        def downsample(cells: Cells) -> Cells:
            return even_depth(cells, numpy_generator(seed, "even depth", node[0].node))

        differences = real_differences(self.whole, whole, between)
        divided = real_differences(self.split, split, dividing, transform=downsample)
        return differences | {child: genes.without_p() if self.fitted else genes for child, genes in divided.items()}


def split_counts(adata: AnnData, cell_types: set[str], model: BranchedModel, *, seed: int) -> Cells:
    """Halve counts: one half assigns populations, the other is returned.

    A gene that is high in some cells by chance can assign them to the same sub-population, and then appears to mark it.
    The halves are independent given the expression of the cell (Neufeld et al. 2024, Biostatistics 25:270,
    https://doi.org/10.1093/biostatistics/kxac047; negative binomial counts: 2023, https://arxiv.org/abs/2307.12985).

    Prepared cells of other types are dropped, and so are cells with an empty half. The ``cell_type`` of the result has
    populations.
    """
    label = adata.obs["cell_type"].astype(str).to_numpy()
    chosen = np.isin(label, list(cell_types))
    counts, obs, label = sparse.csr_matrix(adata.X[chosen], dtype=np.float32), adata.obs[chosen], label[chosen]
    generator, var = numpy_generator(seed, "count splitting"), model.autoencoder.genes
    order = [np.flatnonzero(label == cell_type) for cell_type in sorted(cell_types)]
    halves = [observation_model(model, label[rows[0]]).half(counts[rows], generator) for rows in order if len(rows)]
    if not halves:
        return Cells(counts, label, modalities=modalities_if_several(var))
    rows = np.concatenate(order)
    first = sparse.vstack(halves, format="csr")[np.argsort(rows)]
    second = sparse.csr_matrix(counts - first)
    second.eliminate_zeros()
    known = np.flatnonzero(counted_cells(first, var) & counted_cells(second, var))
    population = populations_of_cells(AnnData(first[known], obs=obs.iloc[known]), model.autoencoder)
    return Cells(second[known], population, modalities=modalities_if_several(var))


def even_depth(cells: Cells, generator: np.random.Generator) -> Cells:
    """Downsample counts to a common library size.

    Cells with fewer counts are dropped. Library size affects both the assignment of a cell to a population and its
    ranks, and would confound the test. The target is :func:`choose_depth`, for each modality with a library size.
    """
    depths = [choose_depth(part) if part.has_size else None for part in cells.by_modality]
    pairs = zip(cells.by_modality, depths, strict=True)
    enough = [part.library_size >= max(depth, 1) for part, depth in pairs if depth is not None]
    cells = cells[np.flatnonzero(np.logical_and.reduce(enough))]
    pairs = zip(cells.by_modality, depths, strict=True)
    parts = [part.counts if depth is None else thin(part, depth, generator) for part, depth in pairs]
    return replace(cells, counts=parts[0] if len(parts) == 1 else sparse.hstack(parts, format="csr"))


def choose_depth(cells: Cells) -> np.floating:
    """Return the lower quartile of library sizes in the side with the smallest quartile."""
    return min(np.quantile(cells.library_size[cells.cell_type == side], MIN_DEPTH) for side in cells.n_by_type.index)


def thin(cells: Cells, depth: np.floating, generator: np.random.Generator) -> sparse.csr_matrix:
    """Downsample the counts of cells to a library size, binomially."""
    share = np.repeat(depth / cells.library_size, np.diff(cells.counts.indptr))
    counts = cells.counts.copy()
    counts.data = generator.binomial(counts.data.astype(np.int64), np.minimum(share, 1)).astype(np.float32)
    counts.eliminate_zeros()
    return counts
