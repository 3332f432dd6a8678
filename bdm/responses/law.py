"""The law by which responses vary over cell types: along their tree, with their distance, and by expression.

The log fold change of a gene in cell type t is normal around its common part, with the covariance

    cov(t, u) = 1 + level**2 x_t x_u + strength**2 (shared K(t, u) + (1 - shared) [t = u]),

where x is the expression of the gene in the control, relative to its mean over types, and K is a kernel: the length of
the path that two types share in their tree (Brownian motion along its branches, Felsenstein 1985), or a smooth function
of the distance of their profiles. What was measured has its sampling variance on top. A response that was never
measured is then a conditional expectation, in closed form. Kernel, level, strength and share differ from gene to gene:
each combination is a hypothesis, whose prior over genes is the one with the highest marginal likelihood (empirical
Bayes), and predictions are averaged over them by their posterior.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from bdm.hierarchy.tree import Clade
from bdm.settings import Relation

STRENGTHS = tuple(np.geomspace(0.05, 2, 6).tolist())
SHARED = (0.5, 0.9, 0.99)
LEVELS = (0.0, 0.3)
SCALES = (0.5, 1.0, 2.0)  # of distances, in units of their median
CLOCKS = (1.0, 2.0)  # powers of the heights of nodes
N_GENES = 1000  # with the most significant responses, whose marginal likelihood decides on the prior of hypotheses
N_SCREENED = 250  # of these, on which hypotheses are left out that explain hardly any gene
MIN_PRIOR = 0.01  # of a hypothesis that is kept
MAX_HYPOTHESES = 16
N_STEPS = 60  # of expectation maximisation
ENTRIES = 2**20  # of the largest array; larger ones are slower, as the system clears their memory each time


@dataclass(frozen=True)
class Relations:
    """How cell types are related.

    Attributes
    ----------
    profile
        Log shares of counts of the genes in the control, types x genes.
    distance
        Euclidean distance of their control profiles, types x types.
    height
        Height of the last common ancestor of two types in their tree, 0 for a type with itself and 1 at the root.
    """

    cell_types: tuple[str, ...]
    profile: np.ndarray
    distance: np.ndarray
    height: np.ndarray

    @classmethod
    def of(cls, profile: np.ndarray, cell_types: tuple[str, ...], tree: Clade | None = None) -> "Relations":
        """Relate types by their profiles, and by a tree; that of average linkage if none is given."""
        distances = pdist(profile)
        height = heights(tree, cell_types) if tree else squareform(cophenet(linkage(distances, "average")))
        return cls(cell_types, profile, squareform(distances), height / max(height.max(), 1e-12))

    def kernels(self, relation: Relation) -> list[np.ndarray]:
        """Kernels that compete, types x types, with ones on the diagonal."""
        along_tree = [1 - self.height**power for power in CLOCKS]
        relative = self.distance / max(float(np.median(self.distance[np.triu_indices(len(self.distance), 1)])), 1e-12)
        smooth = [np.exp(-(relative**power) * scale) for power in (1, 2) for scale in SCALES]
        return {"all": along_tree + smooth, "tree": along_tree, "distance": smooth, "none": []}[relation]

    @cached_property
    def nodes(self) -> list[frozenset[str]]:
        """Cell types below each node of the tree, the root first, and those with fewest types last."""
        below = {frozenset(np.flatnonzero(row <= level)) for row in self.height for level in row}
        ordered = sorted(below, key=lambda rows: (-len(rows), min(rows)))
        return [frozenset(self.cell_types[row] for row in rows) for rows in ordered]

    def parent(self, node: frozenset[str]) -> frozenset[str] | None:
        """Node above a node; None for the root."""
        above = [other for other in self.nodes if node < other]
        return min(above, key=lambda other: len(other)) if above else None


def heights(tree: Clade, cell_types: tuple[str, ...]) -> np.ndarray:
    """Height of the last common ancestor of types: the most nodes from it down to a type."""
    found = np.zeros((len(cell_types), len(cell_types)))

    def fill(node: Clade) -> tuple[int, list[int]]:
        if not node.children:
            return 0, [cell_types.index(str(node.name))]
        below = [fill(child) for child in node.children]
        height = 1 + max(depth for depth, _ in below)
        rows = [row for _, of_child in below for row in of_child]
        for _, of_child in below:
            for row in of_child:
                others = [other for other in rows if other not in of_child]
                found[row, others] = height
        return height, rows

    fill(tree)
    return found


@dataclass(frozen=True)
class Hypothesis:
    """One covariance of a gene's responses; ``kernel`` is its number, or -1 where types are independent."""

    kernel: int
    shared: float
    strength: float
    level: float


@dataclass(frozen=True)
class Law:
    """Hypotheses on the covariance of responses, with their shares of genes.

    Attributes
    ----------
    slope
        Mean change of a log fold change with the log expression of the gene in the control, over genes.
    """

    hypotheses: tuple[Hypothesis, ...]
    prior: np.ndarray
    slope: float


@dataclass(frozen=True)
class Measurements:
    """Log fold changes of genes in the types where they were measured.

    Attributes
    ----------
    effect, variance
        With their sampling variances, genes x measured types.
    level
        Log expression in the control relative to the mean over measured types, genes x all types.
    measured
        Rows of the measured types among all.
    """

    effect: Tensor
    variance: Tensor
    level: Tensor
    measured: np.ndarray

    def genes(self, rows: slice | np.ndarray) -> "Measurements":
        """Take some of the genes."""
        return replace(self, effect=self.effect[rows], variance=self.variance[rows], level=self.level[rows])


@dataclass(frozen=True)
class Prediction:
    """Responses at cell types, genes x types: mean, variance, and the parts that add up to the mean."""

    mean: np.ndarray
    variance: np.ndarray
    parts: dict[str, np.ndarray]


PARTS = ("common", "level", "related", "own")


def parts_of(hypothesis: Hypothesis, kernels: list[Tensor], n: int) -> dict[str, Tensor]:
    """Covariances of n types that are the same for all genes: of all types, of related types, of one type."""
    one = torch.eye(n, dtype=torch.double)
    kernel = kernels[hypothesis.kernel] if hypothesis.kernel >= 0 else one
    shared, square = (hypothesis.shared if hypothesis.kernel >= 0 else 0.0), hypothesis.strength**2
    return {"common": torch.ones_like(one), "related": square * shared * kernel, "own": square * (1 - shared) * one}


def with_level(parts: dict[str, Tensor], hypothesis: Hypothesis, left: Tensor, right: Tensor) -> Tensor:
    """Add up covariances, and that by expression (``left`` and ``right``, genes x types); genes x types x types."""
    alike = torch.stack([*parts.values()]).sum(dim=0)
    return torch.baddbmm(alike[None], left[:, :, None], right[:, None], alpha=hypothesis.level**2)


@dataclass(frozen=True)
class Solved:
    """A hypothesis given measurements: log evidence of each gene, weights of measurements, Cholesky factor."""

    evidence: Tensor
    weights: Tensor  # genes x measured types
    factor: Tensor


def solve(hypothesis: Hypothesis, data: Measurements, kernels: list[Tensor], slope: float) -> Solved:
    """Condition a hypothesis on measurements."""
    of = torch.from_numpy(data.measured)
    level = data.level[:, of]
    parts = {name: part[of][:, of] for name, part in parts_of(hypothesis, kernels, data.level.shape[1]).items()}
    covariance = with_level(parts, hypothesis, level, level)
    covariance.diagonal(dim1=1, dim2=2).add_(data.variance)
    factor = torch.linalg.cholesky(covariance)
    residual = (data.effect - slope * level)[:, :, None]
    weights = torch.cholesky_solve(residual, factor)
    log_determinant = 2 * torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)
    evidence = -((residual * weights).sum(dim=(1, 2)) + log_determinant) / 2
    return Solved(evidence, weights.squeeze(2), factor)


def fit_law(data: Measurements, kernels: list[np.ndarray]) -> Law:
    """Find the prior of hypotheses with the highest marginal likelihood, from the genes that respond most clearly.

    The others, most of all genes, say little of how responses covary, and would make all of them small.
    """
    significance = (data.effect**2 / data.variance).mean(dim=1).numpy()
    sample = data.genes(np.argsort(-significance, kind="stable")[:N_GENES])
    slope = slope_of(sample)
    hypotheses = [Hypothesis(-1, 0.0, strength, level) for strength in STRENGTHS for level in LEVELS]
    hypotheses += [
        Hypothesis(number, shared, strength, level)
        for number in range(len(kernels))
        for shared in SHARED
        for strength in STRENGTHS
        for level in LEVELS
    ]
    tensors = [torch.from_numpy(kernel) for kernel in kernels]
    few = sample.genes(slice(None, None, max(1, len(sample.effect) // N_SCREENED)))
    plausible = maximise(evidence_of(hypotheses, few, tensors, slope)) >= MIN_PRIOR / 10
    hypotheses = [hypothesis for hypothesis, kept in zip(hypotheses, plausible.tolist(), strict=True) if kept]
    evidence = evidence_of(hypotheses, sample, tensors, slope)
    prior = maximise(evidence)
    order = torch.argsort(prior, descending=True, stable=True)[:MAX_HYPOTHESES]
    kept = sorted(int(number) for number in order if prior[number] >= MIN_PRIOR) or [int(order[0])]
    return Law(tuple(hypotheses[number] for number in kept), maximise(evidence[:, kept]).numpy(), slope)


def evidence_of(hypotheses: list[Hypothesis], data: Measurements, kernels: list[Tensor], slope: float) -> Tensor:
    """Log evidence of each hypothesis, genes x hypotheses."""
    parts = in_chunks(data)
    return torch.cat(
        [torch.stack([solve(of, part, kernels, slope).evidence for of in hypotheses], 1) for part in parts]
    )


def maximise(evidence: Tensor) -> Tensor:
    """Shares of genes by hypothesis with the highest marginal likelihood, by expectation maximisation."""
    prior = torch.full((evidence.shape[1],), 1 / evidence.shape[1], dtype=torch.double)
    for _ in range(N_STEPS):
        prior = torch.softmax(evidence + prior.clamp(min=1e-12).log(), dim=1).mean(dim=0)
    return prior


def slope_of(data: Measurements) -> float:
    """Regression of effects on expression over types, pooled over genes and weighted by precision."""
    of = torch.from_numpy(data.measured)
    weight = 1 / (data.variance + 0.05)
    level = data.level[:, of]
    total = weight.sum(dim=1, keepdim=True)
    x = level - (weight * level).sum(dim=1, keepdim=True) / total
    y = data.effect - (weight * data.effect).sum(dim=1, keepdim=True) / total
    return float((weight * x * y).sum() / (weight * x * x).sum().clamp(min=1e-12))


def in_chunks(data: Measurements) -> Iterator[Measurements]:
    """Divide the genes, so that a covariance matrix for each fits into memory."""
    step = max(1, ENTRIES // data.level.shape[1] ** 2)
    for start in range(0, len(data.effect), step):
        yield data.genes(slice(start, start + step))


def left_out(law: Law, data: Measurements, kernels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Predict each measured type from all others: mean, and variance with sampling noise, genes x measured types.

    In closed form (Sundararajan & Keerthi 2001): with the inverse Q of the covariance of measurements, the prediction
    differs from the measurement by (Q y)_t / Q_tt, and has the variance 1 / Q_tt.
    """
    tensors, means, variances = [torch.from_numpy(kernel) for kernel in kernels], [], []
    for part in in_chunks(data):
        logs, each = [], []
        for hypothesis, prior in zip(law.hypotheses, law.prior, strict=True):
            found = solve(hypothesis, part, tensors, law.slope)
            variance = 1 / torch.diagonal(torch.cholesky_inverse(found.factor), dim1=1, dim2=2)
            off = found.weights * variance
            density = -(off**2 / variance + variance.log()) / 2
            logs.append(found.evidence[:, None] - density + np.log(prior))
            each.append((part.effect - off, variance))
        mean, variance = averaged(torch.stack(logs), *(torch.stack(of_kind) for of_kind in zip(*each, strict=True)))
        means.append(mean)
        variances.append(variance)
    return torch.cat(means).numpy(), torch.cat(variances).numpy()


def averaged(logs: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of mixtures over the first axis, whose weights are exp(logs) up to a constant."""
    weight = torch.softmax(logs, dim=0)
    average = (weight * mean).sum(dim=0)
    return average, (weight * (variance + mean**2)).sum(dim=0) - average**2


def predict(law: Law, data: Measurements, kernels: list[np.ndarray], at: np.ndarray) -> Prediction:
    """Condition the law on measurements, at the cell types in rows ``at``, measured or not."""
    tensors, results = [torch.from_numpy(kernel) for kernel in kernels], []
    rows, of = torch.from_numpy(at), torch.from_numpy(data.measured)
    for part in in_chunks(data):
        logs, means, variances, pieces = [], [], [], []
        level = part.level[:, rows]
        for hypothesis, prior in zip(law.hypotheses, law.prior, strict=True):
            found = solve(hypothesis, part, tensors, law.slope)
            parts = parts_of(hypothesis, tensors, part.level.shape[1])
            cross = {name: covariance[rows][:, of] for name, covariance in parts.items()}
            together = with_level(cross, hypothesis, level, part.level[:, of])
            explained = (torch.cholesky_solve(together.mT.contiguous(), found.factor).mT * together).sum(dim=2)
            square = hypothesis.level**2
            unexplained = sum(torch.diagonal(whole)[rows] for whole in parts.values()) + square * level**2
            added = {name: found.weights @ piece.T for name, piece in cross.items()}
            by_level = (part.level[:, of] * found.weights).sum(dim=1, keepdim=True)
            added["level"] = (square * by_level + law.slope) * level
            logs.append(found.evidence[:, None] + np.log(prior))
            pieces.append(torch.stack([added[name] for name in PARTS]))
            means.append(pieces[-1].sum(dim=0))
            variances.append(unexplained - explained)
        weight = torch.softmax(torch.stack(logs), dim=0)
        mean, variance = averaged(torch.stack(logs), torch.stack(means), torch.stack(variances))
        results.append((mean, variance, (weight[:, None] * torch.stack(pieces)).sum(dim=0)))
    means_of, variances_of, parts_of_mean = (torch.cat(kind, dim=-2).numpy() for kind in zip(*results, strict=True))
    return Prediction(means_of, np.maximum(variances_of, 0), dict(zip(PARTS, parts_of_mean, strict=True)))
