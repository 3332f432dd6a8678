"""Contrasts of a node's children, and differences in expression between them."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.stats import false_discovery_control, norm

from bdm.hierarchy.tree import Hierarchy


@dataclass(frozen=True)
class Contrast:
    """A child of an inner node against all else below that node.

    Attributes
    ----------
    node, child
        Names of branches.
    level
        Noise level at which the node's children separate.
    inside, outside
        Cell types below the child, and below the node's other children.
    """

    node: str
    level: float
    child: str
    inside: tuple[str, ...]
    outside: tuple[str, ...]

    def among(self, cell_types: Collection[str]) -> "Contrast":
        """Return the same contrast without the types that are not among ``cell_types``."""
        inside, outside = (tuple(t for t in side if t in cell_types) for side in (self.inside, self.outside))
        return replace(self, inside=inside, outside=outside)


def contrasts_of(hierarchy: Hierarchy) -> tuple[Contrast, ...]:
    """List the contrasts of all inner nodes, node by node; the two contrasts of two children mirror each other."""
    contrasts = []
    for branch in hierarchy.branches:
        below = {child: tuple(hierarchy.leaves(child)) for child in hierarchy.children[branch.name]}
        for child, inside in below.items():
            outside = tuple(leaf for other, leaves in below.items() if other != child for leaf in leaves)
            contrasts.append(Contrast(branch.name, branch.level, child, inside, outside))
    return tuple(contrasts)


@dataclass(frozen=True)
class Expression:
    """Mean and variance of each gene's expression over cells with counts, in CP10k."""

    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class TypeExpression:
    """Expression of each cell type, and the numbers of real cells that types weigh by in a mixture."""

    by_type: dict[str, Expression]
    n_cells: dict[str, int]

    def total(self, cell_types: tuple[str, ...]) -> int:
        """Cells of several types together."""
        return sum(self.n_cells[cell_type] for cell_type in cell_types)

    def mixture(self, cell_types: tuple[str, ...]) -> Expression:
        """Expression of a mixture of types in proportion to their cells."""
        weight, means, variances = self._parts(cell_types)
        mean = weight @ means
        return Expression(mean, weight @ (variances + (means - mean) ** 2))

    def squared_error(self, cell_types: tuple[str, ...]) -> np.ndarray:
        """Squared standard error of the mixture's mean, estimated from the number of cells of each type, by gene."""
        weight, _, variances = self._parts(cell_types)
        return np.asarray(weight @ variances / self.total(cell_types))

    def _parts(self, cell_types: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight = np.array([self.n_cells[cell_type] for cell_type in cell_types]) / self.total(cell_types)
        parts = [self.by_type[cell_type] for cell_type in cell_types]
        return weight, np.stack([part.mean for part in parts]), np.stack([part.variance for part in parts])


MIN_FOLD_CHANGE = 1.0  # log2
MAX_P = 0.05
PSEUDOCOUNT = 1.0  # CP10k


@dataclass(frozen=True)
class FoldChange:
    """Log2 fold change of mean expression in CP10k, with 1 CP10k added to both means, by gene.

    Attributes
    ----------
    standard_error
        From the spread of single cells and their number on either side: what other cells of the same populations, as
        many, would change. It does not cover what is wrong in the labels, nor, in a model, what the model smooths away.
    """

    log2: np.ndarray
    standard_error: np.ndarray

    @classmethod
    def of(cls, expression: TypeExpression, contrast: Contrast) -> "FoldChange":
        """Compare the two sides of a contrast; the error follows by the delta method."""
        sides = contrast.inside, contrast.outside
        inside, outside = (expression.mixture(side).mean + PSEUDOCOUNT for side in sides)
        errors = [expression.squared_error(side) for side in sides]
        relative = np.sqrt(errors[0] / inside**2 + errors[1] / outside**2)
        return cls(np.log2(inside / outside), relative / np.log(2))

    @property
    def z(self) -> np.ndarray:
        """Fold change in standard errors; 0 where there is neither."""
        z: np.ndarray = np.zeros_like(self.log2)
        np.divide(self.log2, self.standard_error, out=z, where=self.standard_error > 0)
        return z


@dataclass(frozen=True)
class Differences:
    """How genes differ between the two sides of a contrast; positive where higher inside. All arrays are by gene.

    Attributes
    ----------
    score
        What genes are ranked by: the z of a Wilcoxon test in real cells, a standardised difference in the model.
    p
        Two-sided p-value: of the Wilcoxon test in real cells; in the model, of the fold change's z.
    """

    fold_change: FoldChange
    score: np.ndarray
    p: np.ndarray

    @cached_property
    def p_adjusted(self) -> np.ndarray:
        """p-values adjusted over genes by Benjamini and Hochberg."""
        return false_discovery_control(self.p)

    @property
    def rank(self) -> np.ndarray:
        """Rank of each gene by score, from 1 for the gene that marks the inside most."""
        rank = np.empty(len(self.score), dtype=int)
        rank[np.argsort(-self.score, kind="stable")] = np.arange(1, len(self.score) + 1)
        return rank

    @property
    def significant(self) -> np.ndarray:
        """Genes that are significantly, and at least twofold, higher inside."""
        return (self.p_adjusted < MAX_P) & (self.fold_change.log2 > MIN_FOLD_CHANGE)


def two_sided_p(z: np.ndarray) -> np.ndarray:
    """Two-sided p-values of standard normal z."""
    return np.asarray(2 * norm.sf(np.abs(z)))
