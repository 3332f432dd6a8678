"""Contrasts of a node's children, differences in expression between them, and how well two of these agree."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.stats import norm, spearmanr
from sklearn.metrics import average_precision_score

from bdm.evaluation.genes import PSEUDOCOUNT, adjusted
from bdm.evaluation.metrics import Agreement
from bdm.hierarchy.tree import Hierarchy


@dataclass(frozen=True)
class Contrast:
    """A child of an inner node against all else below that node."""

    node: str  # name of the branch
    level: float  # noise level at which the node's children separate
    child: str
    inside: tuple[str, ...]  # populations below the child
    outside: tuple[str, ...]  # populations below the node's other children
    names_inside: tuple[str, ...] = ()  # cell types where all of their populations are inside
    names_outside: tuple[str, ...] = ()
    divides_type: bool = False  # so the side of a cell depends on its counts

    def among(self, populations: Collection[str]) -> Contrast:
        """Return the same contrast without the populations that are not among ``populations``."""
        inside, outside = (tuple(name for name in side if name in populations) for side in (self.inside, self.outside))
        return replace(self, inside=inside, outside=outside)


def contrasts_of(hierarchy: Hierarchy) -> tuple[Contrast, ...]:
    """List the contrasts of all inner nodes, node by node; the two contrasts of two children mirror each other."""
    contrasts = []
    for branch in hierarchy.branches:
        below = {child: tuple(hierarchy.leaves(child)) for child in hierarchy.children[branch.name]}
        for child, inside in below.items():
            outside = tuple(leaf for other, leaves in below.items() if other != child for leaf in leaves)
            names = fewest_names(inside, hierarchy), fewest_names(outside, hierarchy)
            divides_type = not set().union(*names) <= set(hierarchy.cell_types)
            contrasts.append(Contrast(branch.name, branch.level, child, inside, outside, *names, divides_type))
    return tuple(contrasts)


def fewest_names(populations: Collection[str], hierarchy: Hierarchy) -> tuple[str, ...]:
    """Name populations by their cell type where all of the type are there, and by themselves elsewhere."""
    among, names = set(populations), []
    for name in populations:
        cell_type = hierarchy.by_name[name].cell_type or name
        names.append(cell_type if among.issuperset(hierarchy.populations_of(cell_type)) else name)
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Expression:
    """Mean and variance of each gene's expression over cells with counts, in CP10k."""

    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class PopulationExpression:
    """Expression of each population, and the numbers of real cells that populations weigh by in a mixture."""

    by_population: dict[str, Expression]
    n_cells: dict[str, int]
    blocks: tuple[int, ...] = ()  # numbers of features of modalities; none for RNA alone

    def total(self, populations: tuple[str, ...]) -> int:
        """Cells of several populations together."""
        return sum(self.n_cells[name] for name in populations)

    def mixture(self, populations: tuple[str, ...]) -> Expression:
        """Expression of a mixture of populations in proportion to their cells."""
        weight, means, variances = self._parts(populations)
        mean = weight @ means
        return Expression(mean, weight @ (variances + (means - mean) ** 2))

    def squared_error(self, populations: tuple[str, ...]) -> np.ndarray:
        """Squared standard error of the mixture's mean, estimated from the number of cells of each, by gene."""
        weight, _, variances = self._parts(populations)
        return np.asarray(weight @ variances / self.total(populations))

    def _parts(self, populations: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight = np.array([self.n_cells[name] for name in populations]) / self.total(populations)
        parts = [self.by_population[name] for name in populations]
        return weight, np.stack([part.mean for part in parts]), np.stack([part.variance for part in parts])


MIN_FOLD_CHANGE = 1.0  # log2
MAX_P = 0.05


@dataclass(frozen=True)
class Log2FoldChange:
    """Log2 fold change of mean expression in CP10k, with 1 CP10k added to both means, by gene."""

    log2: np.ndarray
    standard_error: np.ndarray  # of the sampling of cells alone, by the delta method

    @classmethod
    def of(cls, expression: PopulationExpression, contrast: Contrast) -> Log2FoldChange:
        """Compare the two sides of a contrast."""
        sides = contrast.inside, contrast.outside
        inside, outside = (expression.mixture(side).mean + PSEUDOCOUNT for side in sides)
        errors = [expression.squared_error(side) for side in sides]
        relative = np.sqrt(errors[0] / inside**2 + errors[1] / outside**2)
        return cls(np.log2(inside / outside), relative / np.log(2))

    @property
    def z(self) -> np.ndarray:
        """Fold change in standard errors; 0 where there is neither."""
        error = self.standard_error
        return np.asarray(np.divide(self.log2, error, out=np.zeros_like(self.log2), where=error > 0))

    @property
    def p(self) -> np.ndarray:
        """Two-sided p-values of standard normal :attr:`z`."""
        return np.asarray(2 * norm.sf(np.abs(self.z)))


@dataclass(frozen=True)
class Differences:
    """How genes differ between the two sides of a contrast; positive where higher inside. All arrays are by gene.

    p is NaN where it would not be valid: where a cell type is divided, in the model and in the cells that its
    sub-populations were found in. Ranks and adjusted p-values are among the genes of a modality.
    """

    fold_change: Log2FoldChange
    score: np.ndarray  # ranks genes: z of a Wilcoxon test in real cells, Cohen's d in the model
    p: np.ndarray  # two-sided: of the Wilcoxon test; in the model, of the fold change's z
    blocks: tuple[int, ...] = ()  # numbers of features of modalities

    @cached_property
    def p_adjusted(self) -> np.ndarray:
        """p-values adjusted over genes by Benjamini and Hochberg; NaN where there are none."""
        return np.concatenate([adjusted(part) for part in self._by_modality(self.p)])

    @property
    def has_p(self) -> bool:
        """Whether there are p-values."""
        return not np.isnan(self.p).any()

    def without_p(self) -> Differences:
        """Return the same differences without p-values."""
        return replace(self, p=np.full_like(self.p, np.nan))

    @property
    def rank(self) -> np.ndarray:
        """Rank of each gene by score, from 1 for the gene that marks the inside most."""
        orders = [np.argsort(-part, kind="stable") for part in self._by_modality(self.score)]
        return np.concatenate([1 + np.argsort(order) for order in orders])

    def of_features(self, features: slice) -> Differences:
        """Differences of the features of a modality."""
        change = Log2FoldChange(self.fold_change.log2[features], self.fold_change.standard_error[features])
        return Differences(change, self.score[features], self.p[features])

    def _by_modality(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of the features of each modality."""
        return np.split(values, np.cumsum(self.blocks[:-1], dtype=int))

    @property
    def significant(self) -> np.ndarray:
        """Genes that are significantly, and at least twofold, higher inside; none without p-values."""
        return (self.p_adjusted < MAX_P) & (self.fold_change.log2 > MIN_FOLD_CHANGE)


QUERIES = ("model", "training", "equal")
Z_95 = 1.96


@dataclass(frozen=True)
class Commitment:
    """How well each gene alone distinguishes the two sides of a contrast, under noise; all arrays are by gene.

    With the linear decoder, a gene's log expression is a direction in whitened space. Noise of level sigma adds to the
    variances along it, so that ``AUC(sigma) = Phi(|shift| / sqrt(variance + 2 sigma**2 size**2))``, as of the branch
    levels of the hierarchy. The noise of counts, which would hide rare genes at any level, is left out.
    """

    shift: np.ndarray  # of mean log expression, inside minus outside, in natural units
    variance: np.ndarray  # of log expression, the sum over both sides
    size: np.ndarray  # change in log expression with one whitened unit along the gene's direction

    def auc(self, sigma: float) -> np.ndarray:
        """AUC at a noise level."""
        return np.asarray(norm.cdf(np.abs(self.shift) / np.sqrt(self.variance + 2 * (sigma * self.size) ** 2)))

    def level(self, threshold: float) -> np.ndarray:
        """Highest noise level at which the AUC is ``threshold`` or more; NaN where it is less without any noise."""
        room = (self.shift / norm.ppf(threshold)) ** 2 - self.variance
        return np.where(room >= 0, np.sqrt(np.maximum(room, 0) / 2) / self.size, np.nan)


@dataclass(frozen=True)
class ContrastGenes:
    """The genes of one contrast, in the model and in real cells; None where there are too few cells."""

    contrast: Contrast
    model: Differences
    commitment: Commitment
    training: Differences | None
    equal: Differences | None  # in as many training cells of each type as there are test cells
    test: Differences | None

    def agreement(self, query: str, features: slice, *, n_genes: int) -> dict[str, float]:
        """Agreement with the test cells of one of ``QUERIES``; nothing where there are too few cells."""
        differences = getattr(self, query)
        if not (differences and self.test):
            return {}
        return agreement(differences.of_features(features), self.test.of_features(features), n_genes=n_genes)


MEASURES = ("pearson", "spearman", "slope", "top_shared", "auprc", "coverage")  # of agreement, see below


def agreement(query: Differences, test: Differences, *, n_genes: int) -> dict[str, float]:
    """Compare the differences of a query with the differences in test cells; 1 is perfect.

    ``pearson``, ``spearman`` and ``slope`` (of query on test) are of log fold changes. ``top_shared`` is the share of
    the top genes by score that are the same, and ``auprc`` the average precision of the query's score for genes that
    are significantly higher in test cells; NaN where there are none. ``coverage`` is the share of genes whose fold
    changes differ by no more than their joint 95% interval.
    """
    n_genes = min(n_genes, len(test.score))
    ours, theirs = query.fold_change, test.fold_change
    changes = Agreement(ours.log2, theirs.log2)
    error = np.hypot(ours.standard_error, theirs.standard_error)
    positive = test.significant
    return {
        "pearson": changes.correlation,
        "spearman": float(spearmanr(ours.log2, theirs.log2).statistic),
        "slope": changes.slope,
        "top_shared": float(np.mean(query.rank[test.rank <= n_genes] <= n_genes)),
        "auprc": float(average_precision_score(positive, query.score)) if positive.any() else np.nan,
        "coverage": float(np.mean(np.abs(ours.log2 - theirs.log2) <= Z_95 * error)),
    }


def column_of(measure: str, query: str) -> str:
    """Name the column of a measure."""
    return measure if query == "model" else f"{measure}_{query}"
