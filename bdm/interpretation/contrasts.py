"""Contrasts between children of a node: differences in expression and their agreement."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.stats import norm, spearmanr
from sklearn.metrics import average_precision_score

from bdm.data.gene_tests import PSEUDOCOUNT, Agreement, adjusted
from bdm.hierarchy.tree import Hierarchy


@dataclass(frozen=True)
class Contrast:
    """A child of an inner node against its siblings."""

    node: str  # name of the branch
    level: float  # noise level at which the children separate
    child: str
    inside: tuple[str, ...]  # populations below the child
    outside: tuple[str, ...]  # populations below its siblings
    names_inside: tuple[str, ...] = ()  # inside, where a cell type replaces its populations if all are there
    names_outside: tuple[str, ...] = ()
    divides_type: bool = False  # whether a cell type has populations on both sides; counts then decide a cell's side

    def among(self, populations: Collection[str]) -> Contrast:
        """Return the contrast restricted to ``populations``."""
        inside, outside = (tuple(name for name in side if name in populations) for side in (self.inside, self.outside))
        return replace(self, inside=inside, outside=outside)


def list_contrasts(hierarchy: Hierarchy) -> tuple[Contrast, ...]:
    """List the contrasts of all inner nodes, one per child, grouped by node."""
    contrasts = []
    for branch in hierarchy.branches:
        below = {child: tuple(hierarchy.leaves(child)) for child in hierarchy.children[branch.name]}
        for child, inside in below.items():
            outside = tuple(leaf for sibling, leaves in below.items() if sibling != child for leaf in leaves)
            names = fewest_names(inside, hierarchy), fewest_names(outside, hierarchy)
            divides_type = not set().union(*names) <= set(hierarchy.cell_types)
            contrasts.append(Contrast(branch.name, branch.level, child, inside, outside, *names, divides_type))
    return tuple(contrasts)


def fewest_names(populations: Collection[str], hierarchy: Hierarchy) -> tuple[str, ...]:
    """Replace complete sets of a cell type's populations by the name of the type."""
    among, names = set(populations), []
    for name in populations:
        cell_type = hierarchy.by_name[name].cell_type or name
        names.append(cell_type if among.issuperset(hierarchy.populations_of(cell_type)) else name)
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Expression:
    """Mean and variance of each gene over cells, including count noise, in CP10k."""

    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class PopulationExpression:
    """Expression of each population."""

    by_population: dict[str, Expression]
    n_cells: dict[str, int]  # real cells, the weights in mixtures
    blocks: tuple[int, ...] = ()  # number of features of each modality; empty for RNA alone

    def total(self, populations: tuple[str, ...]) -> int:
        """Return the number of real cells of several populations."""
        return sum(self.n_cells[name] for name in populations)

    def mixture(self, populations: tuple[str, ...]) -> Expression:
        """Return the expression of a mixture of populations, weighted by their cells."""
        weight, means, variances = self._parts(populations)
        mean = weight @ means
        return Expression(mean, weight @ (variances + (means - mean) ** 2))

    def squared_error(self, populations: tuple[str, ...]) -> np.ndarray:
        """Return the squared standard error of the mixture's mean, by gene."""
        weight, _, variances = self._parts(populations)
        return np.asarray(weight @ variances / self.total(populations))

    def _parts(self, populations: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight = np.array([self.n_cells[name] for name in populations]) / self.total(populations)
        parts = [self.by_population[name] for name in populations]
        return weight, np.stack([part.mean for part in parts]), np.stack([part.variance for part in parts])


@dataclass(frozen=True)
class Log2FoldChange:
    """Log2 fold change of mean CP10k by gene, with a pseudo-count of 1 CP10k."""

    log2: np.ndarray
    standard_error: np.ndarray  # from sampling of cells, by the delta method

    @classmethod
    def from_expression(cls, expression: PopulationExpression, contrast: Contrast) -> Log2FoldChange:
        """Compare the two sides of a contrast."""
        sides = contrast.inside, contrast.outside
        inside, outside = (expression.mixture(side).mean + PSEUDOCOUNT for side in sides)
        errors = [expression.squared_error(side) for side in sides]
        relative = np.sqrt(errors[0] / inside**2 + errors[1] / outside**2)
        return cls(np.log2(inside / outside), relative / np.log(2))

    @property
    def z(self) -> np.ndarray:
        """Fold change in standard errors; 0 if the standard error is 0."""
        error = self.standard_error
        return np.asarray(np.divide(self.log2, error, out=np.zeros_like(self.log2), where=error > 0))

    @property
    def p(self) -> np.ndarray:
        """Two-sided p-values of :attr:`z`."""
        return np.asarray(2 * norm.sf(np.abs(self.z)))


MIN_FOLD_CHANGE, MAX_P = 1.0, 0.05  # of significant genes: log2 fold change, adjusted p-value


@dataclass(frozen=True)
class Differences:
    """Differential expression between the sides of a contrast, by gene; positive if higher inside.

    If the contrast divides a cell type, p-values are NaN in the model, and in the cells that defined its
    sub-populations, as they would be invalid. Ranks and adjusted p-values are computed within each modality.
    """

    fold_change: Log2FoldChange
    score: np.ndarray  # Wilcoxon z in real cells, Cohen's d in the model; ranks genes
    p: np.ndarray  # two-sided; Wilcoxon test in real cells, z of the fold change in the model
    blocks: tuple[int, ...] = ()  # number of features of each modality

    @cached_property
    def p_adjusted(self) -> np.ndarray:
        """p-values adjusted by Benjamini and Hochberg's method; NaN without p-values."""
        return np.concatenate([adjusted(part) for part in self._by_modality(self.p)])

    @property
    def has_p(self) -> bool:
        """Whether all p-values are valid."""
        return not np.isnan(self.p).any()

    def without_p(self) -> Differences:
        """Return a copy with p-values set to NaN."""
        return replace(self, p=np.full_like(self.p, np.nan))

    @property
    def rank(self) -> np.ndarray:
        """Rank of each gene by score; 1 is the best marker of the inside."""
        orders = [np.argsort(-part, kind="stable") for part in self._by_modality(self.score)]
        return np.concatenate([1 + np.argsort(order) for order in orders])

    @property
    def order(self) -> np.ndarray:
        """Indices of the genes, the best markers of the inside first."""
        return np.argsort(self.rank, kind="stable")

    def of_features(self, features: slice) -> Differences:
        """Select the features of one modality."""
        change = Log2FoldChange(self.fold_change.log2[features], self.fold_change.standard_error[features])
        return Differences(change, self.score[features], self.p[features])

    @property
    def significant(self) -> np.ndarray:
        """Mask of genes that are significantly, and at least twofold, higher inside."""
        return (self.p_adjusted < MAX_P) & (self.fold_change.log2 > MIN_FOLD_CHANGE)

    def _by_modality(self, values: np.ndarray) -> list[np.ndarray]:
        """Split values by modality."""
        return np.split(values, np.cumsum(self.blocks[:-1], dtype=int))


@dataclass(frozen=True)
class Commitment:
    """Separation of the sides of a contrast by single genes under noise.

    The decoder is linear, so a gene's log expression is a direction in whitened space. Noise of level sigma adds to the
    variance along it: ``AUC(sigma) = Phi(|shift| / sqrt(variance + 2 sigma**2 size**2))``, as for the levels of the
    hierarchy. Count noise is ignored; it would hide rare genes at any level.
    """

    shift: np.ndarray  # difference in mean log expression, inside minus outside, natural logarithm, genes
    variance: np.ndarray  # variance of log expression, summed over both sides, genes
    size: np.ndarray  # change in log expression per whitened unit along the gene's direction, genes

    def auc(self, sigma: float) -> np.ndarray:
        """Return the AUC of each gene at a noise level."""
        return np.asarray(norm.cdf(np.abs(self.shift) / np.sqrt(self.variance + 2 * (sigma * self.size) ** 2)))

    def level(self, threshold: float) -> np.ndarray:
        """Return the highest noise level with AUC >= ``threshold``; NaN if never."""
        noise_variance = (self.shift / norm.ppf(threshold)) ** 2 - self.variance
        return np.where(noise_variance >= 0, np.sqrt(np.maximum(noise_variance, 0) / 2) / self.size, np.nan)


QUERIES = ("model", "training", "equal")  # compared with test cells


@dataclass(frozen=True)
class ContrastGenes:
    """Genes of one contrast, in the model and in real cells."""

    contrast: Contrast
    model: Differences
    commitment: Commitment
    training: Differences | None  # None with too few cells, also below
    equal: Differences | None  # training cells, subsampled to as many per population as there are test cells
    test: Differences | None

    def agreement(self, query: str, features: slice, *, n_genes: int) -> dict[str, float]:
        """Compare one of ``QUERIES`` with the test cells; empty with too few cells."""
        differences = getattr(self, query)
        if not (differences and self.test):
            return {}
        return agreement(differences.of_features(features), self.test.of_features(features), n_genes=n_genes)


MEASURES = ("pearson", "spearman", "slope", "top_shared", "auprc", "coverage")  # keys of agreement()
Z_95 = 1.96  # half width of a 95% interval in standard errors


def agreement(query: Differences, test: Differences, *, n_genes: int) -> dict[str, float]:
    """Compare differential expression of a query with test cells; 1 is perfect.

    ``pearson``, ``spearman`` and ``slope`` (query on test) compare log fold changes. ``top_shared`` is the share of the
    ``n_genes`` top genes by score that both have. ``auprc`` is the average precision of the query's score for genes
    significantly higher in test cells; NaN without such genes. ``coverage`` is the share of genes with fold changes
    that agree within the 95% interval of their difference.
    """
    n_genes = min(n_genes, len(test.score))
    change, test_change = query.fold_change, test.fold_change
    changes = Agreement(change.log2, test_change.log2)
    error = np.hypot(change.standard_error, test_change.standard_error)
    positive = test.significant
    return {
        "pearson": changes.correlation,
        "spearman": float(spearmanr(change.log2, test_change.log2).statistic),
        "slope": changes.slope,
        "top_shared": float(np.mean(query.rank[test.rank <= n_genes] <= n_genes)),
        "auprc": float(average_precision_score(positive, query.score)) if positive.any() else np.nan,
        "coverage": float(np.mean(np.abs(change.log2 - test_change.log2) <= Z_95 * error)),
    }


def agreement_column(measure: str, query: str) -> str:
    """Return the column of a measure in tables of agreement."""
    return measure if query == "model" else f"{measure}_{query}"
