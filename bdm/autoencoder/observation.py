"""Observation model: the distribution of counts given the mean of each, which only this module specifies."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from bdm._core.seeds import to_tensor

MIN_DISPERSION = 1e-4  # of counts within groups of cells: almost that of Poisson counts


@dataclass(frozen=True)
class ObservationModel(ABC):
    """Distribution of counts given their means, as decoders, generation and interpretation need it.

    The mean of a count is the library size of the cell times the expression of the gene; everything else about the
    distribution belongs to the observation model. It is a frozen dataclass, whose fields are its parameters: tensors,
    cells x genes or one per gene.
    """

    @classmethod
    def from_parameters(cls, parameters: dict[str, Tensor]) -> Self:
        """Make an observation model of its parameters by name."""
        make: Any = cls  # whose fields only the subclass knows
        model: Self = make(**parameters)
        return model

    @classmethod
    @abstractmethod
    def average(cls, models: Sequence[Self], *, weights: np.ndarray) -> Self:
        """Average observation models of the same genes, such as of several cell types."""

    def select(self, cells: Tensor | slice) -> Self:
        """Observation model of a subset of the cells, by index."""
        return self.from_parameters({name: value[cells] for name, value in vars(self).items()})

    def of_genes(self, genes: np.ndarray) -> Self:
        """Observation model of a subset of the genes, by index."""
        return self.from_parameters({name: value[..., to_tensor(genes)] for name, value in vars(self).items()})

    def within(self, log_variance: Tensor) -> Self:
        """Observation model within groups of cells, whose log means vary by ``log_variance`` (genes) between groups."""
        return self

    @abstractmethod
    def log_likelihood(self, counts: Tensor, log_mean: Tensor) -> Tensor:
        """Log likelihood of the counts of each cell, in nats, from counts and their log means, cells x genes."""

    @abstractmethod
    def derivatives(self, counts: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiate the log likelihood by each log mean; with its Fisher information, both cells x genes."""

    def parameter_gradients(self, counts: Tensor, mean: Tensor) -> dict[str, Tensor]:
        """Differentiate the log likelihood of each count by each parameter, in the shape of ``counts``, by name."""
        return {}

    @abstractmethod
    def variance(self, mean: np.ndarray) -> np.ndarray:
        """Variance of each count, cells x genes."""

    @abstractmethod
    def detection(self, mean: np.ndarray) -> np.ndarray:
        """Probability that each count is above 0, cells x genes."""

    @abstractmethod
    def sample(self, mean: np.ndarray, generator: np.random.Generator) -> sp.csr_matrix:
        """Sample counts of these means, cells x genes; the counts of a cell do not depend on the cells after it."""

    @abstractmethod
    def half(self, counts: sp.csr_matrix, generator: np.random.Generator) -> sp.csr_matrix:
        """Take half of the counts, cells x genes, at random, such that it is independent of the other half."""

    @abstractmethod
    def rescale(
        self, counts: np.ndarray, mean: np.ndarray, factor: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Change counts, cells x genes, as if their means had been ``factor`` times as large in the same cells.

        The factor is broadcast to cells x genes. Counts rise where it is above 1, and fall where it is below.
        """


@dataclass(frozen=True)
class NegativeBinomial(ObservationModel):
    """Negative binomial counts: a count of mean m has the variance m + m**2 / r."""

    log_inverse_dispersion: Tensor  # natural log of r: cells x genes, or one per gene

    @property
    def inverse_dispersion(self) -> Tensor:
        """Inverse dispersion r, in the shape of its logarithm."""
        return self.log_inverse_dispersion.exp()

    @classmethod
    def average(cls, models: "Sequence[NegativeBinomial]", *, weights: np.ndarray) -> "NegativeBinomial":
        """Average observation models by the geometric mean of their inverse dispersions, in double precision."""
        logs = [model.inverse_dispersion.double().log().numpy() for model in models]
        return cls(torch.from_numpy(np.average(logs, axis=0, weights=weights)))

    def within(self, log_variance: Tensor) -> "NegativeBinomial":
        """Set 1 / r to ``(1 + 1 / r) exp(-log_variance) - 1``, or that of a Poisson count where this is below 0."""
        beyond = (1 + 1 / self.inverse_dispersion.double()) * (-log_variance.double()).exp() - 1
        return NegativeBinomial(-beyond.clamp(min=MIN_DISPERSION).log().to(self.log_inverse_dispersion.dtype))

    def log_likelihood(self, counts: Tensor, log_mean: Tensor) -> Tensor:
        """Log likelihood by cell, in nats; log-gamma terms vanish at zeros, and are computed for other counts alone."""
        log_r = self.log_inverse_dispersion.expand_as(log_mean)
        log_total = torch.logaddexp(log_r, log_mean)
        at_zero = log_r.exp() * (log_r - log_total)
        cell, gene = torch.nonzero(counts, as_tuple=True)
        x, r = counts[cell, gene], log_r[cell, gene].exp()
        above_zero = (
            torch.lgamma(x + r)
            - torch.lgamma(r)
            - torch.lgamma(x + 1)
            + x * (log_mean[cell, gene] - log_total[cell, gene])
        )
        return at_zero.sum(dim=1).index_add(0, cell, above_zero)

    def derivatives(self, counts: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient q (x - m) and Fisher information q m by the log mean, with q = r / (r + m)."""
        r = self.inverse_dispersion
        q = r / (r + mean)
        return (counts - mean) * q, mean * q

    def parameter_gradients(self, counts: Tensor, mean: Tensor) -> dict[str, Tensor]:
        """Gradient by the log inverse dispersion; digamma terms vanish at zeros, so are not computed there."""
        r = self.inverse_dispersion
        q = r / (r + mean)
        gradient = r * (q.log() + 1 - q) - counts * q
        above_zero = torch.nonzero(counts, as_tuple=True)
        x, r = counts[above_zero], r.expand_as(counts)[above_zero]
        gradient[above_zero] += r * (torch.digamma(x + r) - torch.digamma(r))
        return {"log_inverse_dispersion": gradient}

    def variance(self, mean: np.ndarray) -> np.ndarray:
        """Variance of counts, cells x genes, in double precision."""
        return np.asarray(mean + mean**2 / self.inverse_dispersion.double().numpy())

    def detection(self, mean: np.ndarray) -> np.ndarray:
        """Probability that counts are above 0, cells x genes, in double precision."""
        r = self.inverse_dispersion.double().numpy()
        return np.asarray(-np.expm1(-r * np.log1p(mean / r)))

    def sample(self, mean: np.ndarray, generator: np.random.Generator) -> sp.csr_matrix:
        """Sample counts, with work in proportion to the counts that are not 0.

        A negative binomial count is the position at time r of a process that jumps at rate ``log(1 + mean / r)``, each
        time by a logarithmic series number (Quenouille 1949, Biometrics 5:162). So it is 0 where the first jump, an
        exponential time, is after r; otherwise that jump, plus a negative binomial number (Poisson with a gamma rate)
        of the remaining time.
        """
        inverse_dispersion = self.inverse_dispersion.numpy()
        n_cells, n_genes = mean.shape
        for_times, for_jumps, for_rates, for_rest = generator.spawn(4)
        per_time = mean / inverse_dispersion
        n_expected = torch.log1p(to_tensor(per_time)).numpy() * inverse_dispersion
        first = for_times.standard_exponential(mean.shape)
        detected = np.flatnonzero(first < n_expected)

        gene = detected % n_genes
        r = inverse_dispersion[gene] if inverse_dispersion.ndim == 1 else inverse_dispersion.ravel()[detected]
        r, per_time = r.astype(float), per_time.ravel()[detected].astype(float)
        time_left = np.maximum(r - first.ravel()[detected] / np.log1p(per_time), 0)
        jump = for_jumps.logseries(np.minimum(per_time / (1 + per_time), np.nextafter(1, 0)))
        counts = jump + for_rest.poisson(for_rates.standard_gamma(time_left) * per_time)
        ends = np.searchsorted(detected, n_genes * np.arange(n_cells + 1))
        return sp.csr_matrix((counts.astype(np.float32), gene.astype(np.int32), ends), shape=mean.shape)

    def half(self, counts: sp.csr_matrix, generator: np.random.Generator) -> sp.csr_matrix:
        """Take half of the counts at random, such that it is independent of the other half.

        A beta-binomial share with parameters r / 2 and r / 2 gives two independent halves, each of mean m / 2 and
        inverse dispersion r / 2 (Neufeld et al. 2023, https://arxiv.org/abs/2307.12985). Here r is one per gene.
        """
        r = self.inverse_dispersion.double().numpy()[counts.indices]
        taken = generator.binomial(counts.data.astype(np.int64), generator.beta(r / 2, r / 2))
        half = sp.csr_matrix((taken.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape, copy=True)
        half.eliminate_zeros()
        return half

    def rescale(
        self, counts: np.ndarray, mean: np.ndarray, factor: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Change counts as if their means had been ``factor`` times as large in the same cells; r stays.

        Below 1, counts are thinned. Above 1, Poisson numbers are added at the gamma rate of the cell, which given its
        count x has shape r + x and mean m (r + x) / (r + m).
        """
        r = np.broadcast_to(self.inverse_dispersion.double().numpy(), counts.shape)
        factor, changed = np.broadcast_to(factor, counts.shape), counts.copy()
        for_thinning, for_rates, for_more = generator.spawn(3)
        thinned = (factor < 1) & (counts > 0)
        changed[thinned] = for_thinning.binomial(counts[thinned].astype(np.int64), factor[thinned])
        more = factor > 1
        x, m, shape = counts[more], mean[more], r[more]
        rate = for_rates.standard_gamma(shape + x) * m / (shape + m)
        changed[more] = x + for_more.poisson((factor[more] - 1) * rate)
        return changed
