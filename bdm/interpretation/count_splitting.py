"""Count splitting: cells join populations by one half of their counts, and genes are tested in the other half."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from anndata import AnnData
from scipy import sparse

from bdm._core.seeds import numpy_generator
from bdm.evaluation.cells import Cells, sample_by_type, smaller_numbers
from bdm.generation.generate import observation_model
from bdm.interpretation.contrasts import Contrast, Differences, PopulationExpression
from bdm.interpretation.genes import real_differences, real_expression
from bdm.latent.cells import populations_of_cells
from bdm.model.model import BranchedModel

MIN_DEPTH = 0.25  # quantile of the library sizes of a side


@dataclass(frozen=True)
class ComparedCells:
    """Real cells in which genes are compared.

    Attributes
    ----------
    whole
        All counts, for contrasts whose sides are cell types.
    split
        Half of the counts of cells of divided types, see :func:`split_counts`, for contrasts that divide a type.
    fitted
        Whether the sub-populations, or the decoder that cells join them by, depend on these cells.
    """

    whole: Cells
    split: Cells
    fitted: bool

    @cached_property
    def expression(self) -> tuple[PopulationExpression, PopulationExpression]:
        """Expression of each population in the whole and in the split cells."""
        return real_expression(self.whole), real_expression(self.split)

    def matched(self, other: "ComparedCells", *, seed: int) -> "ComparedCells":
        """Sample as many cells of each population as there are in ``other``, or all where there are fewer."""
        whole, split = (
            match_numbers(self.whole, other.whole, seed=seed),
            match_numbers(self.split, other.split, seed=seed),
        )
        return replace(self, whole=whole, split=split)

    def differences(self, node: tuple[Contrast, ...], *, seed: int) -> dict[str, Differences]:
        """Differences for the contrasts of one node, by child; without p-values where these would not be valid."""
        in_whole, in_split = self.expression
        found = real_differences(self.whole, in_whole, tuple(of for of in node if not of.divides_type))

        def even(cells: Cells) -> Cells:
            return even_depth(cells, numpy_generator(seed, "even depth", node[0].node))

        dividing = tuple(of for of in node if of.divides_type)
        in_half = real_differences(self.split, in_split, dividing, tested_as=even)
        return found | {child: of.without_p() if self.fitted else of for child, of in in_half.items()}


def match_numbers(cells: Cells, other: Cells, *, seed: int) -> Cells:
    """Sample as many cells of each type as there are in ``other``, or all where there are fewer."""
    return cells[sample_by_type(cells, smaller_numbers(cells.n_by_type, other.n_by_type), seed=seed)]


def types_to_split(contrasts: Iterable[Contrast], model: BranchedModel) -> set[str]:
    """Cell types on the sides of contrasts that divide a type."""
    divided = [contrast for contrast in contrasts if contrast.divides_type]
    return {model.cell_type_of[name] for contrast in divided for name in (*contrast.inside, *contrast.outside)}


def split_counts(adata: AnnData, cell_types: set[str], model: BranchedModel, *, seed: int) -> Cells:
    """Take half of the counts of cells of some types, with the populations that the other half makes most probable.

    Sub-populations are found in counts, so a gene that is high in some cells by chance can put them into one
    sub-population, and then marks it. Given the expression of a cell, the halves of its counts are independent, so
    that chance in one half does not appear in the other.

    References
    ----------
    Neufeld et al. 2024, Biostatistics 25:270, https://doi.org/10.1093/biostatistics/kxac047; for negative binomial
    counts, Neufeld et al. 2023, https://arxiv.org/abs/2307.12985
    """
    label = adata.obs["cell_type"].astype(str).to_numpy()
    of_types = np.isin(label, list(cell_types))
    counts, obs, label = sparse.csr_matrix(adata.X[of_types], dtype=np.float32), adata.obs[of_types], label[of_types]
    generator = numpy_generator(seed, "count splitting")
    order = [np.flatnonzero(label == cell_type) for cell_type in sorted(cell_types)]
    halves = [observation_model(model, label[rows[0]]).half(counts[rows], generator) for rows in order if len(rows)]
    if not halves:
        return Cells(counts, label)
    rows = np.concatenate(order)
    first = sparse.vstack(halves, format="csr")[np.argsort(rows)]
    second = sparse.csr_matrix(counts - first)
    second.eliminate_zeros()
    known = np.flatnonzero((first.getnnz(axis=1) > 0) & (second.getnnz(axis=1) > 0))
    population = populations_of_cells(AnnData(first[known], obs=obs.iloc[known]), model.autoencoder)
    return Cells(second[known], population)


def even_depth(cells: Cells, generator: np.random.Generator) -> Cells:
    """Sample the counts of cells down to one library size, without the cells that have fewer counts.

    How surely a cell joins a population depends on its library size, and so do the ranks of its log1p(CP10k), as counts
    are whole numbers. The library size is the lower quartile of the side in which this is least.
    """
    depth = min(np.quantile(cells.library_size[cells.cell_type == side], MIN_DEPTH) for side in cells.n_by_type.index)
    cells = cells[np.flatnonzero(cells.library_size >= max(depth, 1))]
    share = np.repeat(depth / cells.library_size, np.diff(cells.counts.indptr))
    counts = cells.counts.copy()
    counts.data = generator.binomial(counts.data.astype(np.int64), np.minimum(share, 1)).astype(np.float32)
    counts.eliminate_zeros()
    return Cells(counts, cells.cell_type)
