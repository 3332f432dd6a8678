"""Observation models: distribution of counts given their means."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from bdm._core.seeds import to_tensor

MIN_DISPERSION = 1e-4  # within groups of cells; almost Poisson
GROWTH = 0.5  # exponent of the mean in the inverse dispersion of generated counts; 0.25 and 0.75 are about as good
MIN_MEAN = 1e-9  # below, the inverse dispersion stays the same


@dataclass(frozen=True)
class ObservationModel(ABC):
    """Distribution of counts given their means.

    The mean of a count is library size x expression; the observation model describes the noise around it. Subclasses
    are frozen dataclasses whose fields are the parameters of the noise: tensors, cells x genes or genes.
    """

    @classmethod
    def from_parameters(cls, parameters: dict[str, Tensor]) -> Self:
        """Create an observation model from its parameters by name."""
        constructor: Any = cls  # only the subclass declares the fields
        model: Self = constructor(**parameters)
        return model

    @classmethod
    @abstractmethod
    def average(cls, models: Sequence[Self], *, weights: np.ndarray) -> Self:
        """Average models of the same genes, such as several cell types.

        Parameters
        ----------
        models
            Models with parameters of equal shape.
        weights
            Weight of each model.
        """

    def select(self, cells: Tensor | slice) -> Self:
        """Select a subset of the cells by index."""
        return self.from_parameters({name: value[cells] for name, value in vars(self).items()})

    def of_genes(self, genes: np.ndarray) -> Self:
        """Select a subset of the genes by index."""
        return self.from_parameters({name: value[..., to_tensor(genes)] for name, value in vars(self).items()})

    def within(self, log_variance: Tensor) -> Self:
        """Remove variation between groups of cells from the noise; by default, change nothing.

        Parameters
        ----------
        log_variance
            Variance of log means between groups, of each gene.

        Returns
        -------
        Observation model of counts within a group.
        """
        return self

    @abstractmethod
    def log_likelihood(self, counts: Tensor, log_mean: Tensor) -> Tensor:
        """Return the log likelihood of each cell.

        Parameters
        ----------
        counts, log_mean
            Counts and their log means, cells x genes.

        Returns
        -------
        Log likelihood of each cell in nats.
        """

    @abstractmethod
    def derivatives(self, counts: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiate the log likelihood with respect to the log means.

        Parameters
        ----------
        counts, mean
            Counts and their means, cells x genes.

        Returns
        -------
        Gradient and Fisher information, each cells x genes.
        """

    def parameter_gradients(self, counts: Tensor, mean: Tensor) -> dict[str, Tensor]:
        """Differentiate the log likelihood with respect to the parameters of the noise.

        Parameters
        ----------
        counts, mean
            Counts and their means, any shape.

        Returns
        -------
        Gradient for each count by parameter, each in the shape of ``counts``; empty without parameters.
        """
        return {}

    @abstractmethod
    def variance(self, mean: np.ndarray) -> np.ndarray:
        """Return the variance of counts with the given means, cells x genes."""

    @abstractmethod
    def detection(self, mean: np.ndarray) -> np.ndarray:
        """Return the probability of a count above 0 given the means, cells x genes."""

    @abstractmethod
    def sample(self, mean: np.ndarray, generator: np.random.Generator) -> sp.csr_matrix:
        """Sample counts with the given means.

        Parameters
        ----------
        mean
            Cells x genes.
        generator
            Source of all random numbers. The counts of a cell do not depend on the cells after it.

        Returns
        -------
        Counts, cells x genes.
        """

    @abstractmethod
    def half(self, counts: sp.csr_matrix, generator: np.random.Generator) -> sp.csr_matrix:
        """Split counts (cells x genes) into independent halves at random, and return one half."""

    @abstractmethod
    def rescale(
        self, counts: np.ndarray, mean: np.ndarray, factor: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Rescale counts as if their means changed by ``factor``.

        Parameters
        ----------
        counts, mean
            Counts and their means, cells x genes.
        factor
            Fold change of the means, broadcast to cells x genes. Counts rise above 1 and fall below 1.
        generator
            Source of all random numbers.

        Returns
        -------
        Changed counts, cells x genes.
        """


@dataclass(frozen=True)
class NegativeBinomial(ObservationModel):
    """Negative binomial counts with mean m and variance m + m**2 / r."""

    log_inverse_dispersion: Tensor  # natural log of r, cells x genes or genes

    @property
    def inverse_dispersion(self) -> Tensor:
        """Inverse dispersion r, cells x genes or genes."""
        return self.log_inverse_dispersion.exp()

    def inverse_dispersion_at(self, mean: np.ndarray) -> np.ndarray:
        """Return r of counts with the given means (cells x genes), cells x genes or genes."""
        return self.inverse_dispersion.double().numpy()

    @classmethod
    def average(cls, models: Sequence[Self], *, weights: np.ndarray) -> Self:
        """Average models by the geometric means of their parameters, in double precision."""
        logs = {
            entry.name: [getattr(model, entry.name).exp().double().log().numpy() for model in models]
            for entry in fields(cls)
        }
        return cls(
            **{name: torch.from_numpy(np.average(values, axis=0, weights=weights)) for name, values in logs.items()}
        )

    def within(self, log_variance: Tensor) -> Self:
        """Remove variation between groups of cells from the dispersion.

        The new 1 / r is ``(1 + 1 / r) exp(-log_variance) - 1``, but at least ``MIN_DISPERSION``.
        """
        dispersion = (1 + 1 / self.inverse_dispersion.double()) * (-log_variance.double()).exp() - 1
        log_inverse_dispersion = -dispersion.clamp(min=MIN_DISPERSION).log()
        return replace(self, log_inverse_dispersion=log_inverse_dispersion.to(self.log_inverse_dispersion.dtype))

    def log_likelihood(self, counts: Tensor, log_mean: Tensor) -> Tensor:
        """Return the log likelihood of each cell."""
        # Log-gamma terms are 0 for zero counts
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
        """Return gradient q (x - m) and information q m, for q = r / (r + m)."""
        r = self.inverse_dispersion
        q = r / (r + mean)
        return (counts - mean) * q, mean * q

    def parameter_gradients(self, counts: Tensor, mean: Tensor) -> dict[str, Tensor]:
        """Return the gradient with respect to log r."""
        # Digamma terms are 0 for zero counts
        r = self.inverse_dispersion
        q = r / (r + mean)
        gradient = r * (q.log() + 1 - q) - counts * q
        above_zero = torch.nonzero(counts, as_tuple=True)
        x, r = counts[above_zero], r.expand_as(counts)[above_zero]
        gradient[above_zero] += r * (torch.digamma(x + r) - torch.digamma(r))
        return {"log_inverse_dispersion": gradient}

    def variance(self, mean: np.ndarray) -> np.ndarray:
        """Return the variance of counts in double precision, cells x genes."""
        return np.asarray(mean + mean**2 / self.inverse_dispersion_at(mean))

    def detection(self, mean: np.ndarray) -> np.ndarray:
        """Return the probability of counts above 0 in double precision, cells x genes."""
        r = self.inverse_dispersion_at(mean)
        return np.asarray(-np.expm1(-r * np.log1p(mean / r)))

    def sample(self, mean: np.ndarray, generator: np.random.Generator) -> sp.csr_matrix:
        """Sample counts in time proportional to the number of nonzero counts.

        A negative binomial count is a compound Poisson process at time r: jumps occur at rate ``log(1 + mean / r)`` and
        have logarithmic series sizes (Quenouille 1949, Biometrics 5:162). The count is 0 if the first jump, after an
        exponential waiting time, comes later than r. Otherwise it is the size of this jump plus a negative binomial
        count (Poisson with a gamma rate) for the time left.
        """
        inverse_dispersion = self.inverse_dispersion_at(mean).astype(np.float32)
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
        """Split counts into independent halves at random, and return one half.

        Beta-binomial splitting with parameters r / 2 and r / 2 gives independent halves with mean m / 2 and inverse
        dispersion r / 2 (Neufeld et al. 2023, https://arxiv.org/abs/2307.12985). Requires one r per gene.
        """
        r = self.inverse_dispersion.double().numpy()[counts.indices]
        split = generator.binomial(counts.data.astype(np.int64), generator.beta(r / 2, r / 2))
        half = sp.csr_matrix((split.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape, copy=True)
        half.eliminate_zeros()
        return half

    def rescale(
        self, counts: np.ndarray, mean: np.ndarray, factor: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Rescale counts as if their means changed by ``factor``, at the same r.

        Factors below 1 thin counts binomially. Factors above 1 add Poisson counts at ``factor - 1`` times the rate of
        the cell. Given the count x, this rate is gamma distributed with shape r + x and mean m (r + x) / (r + m).
        """
        r = np.broadcast_to(self.inverse_dispersion_at(mean), counts.shape)
        factor, changed = np.broadcast_to(factor, counts.shape), counts.copy()
        for_thinning, for_rates, for_more = generator.spawn(3)
        thinned = (factor < 1) & (counts > 0)
        changed[thinned] = for_thinning.binomial(counts[thinned].astype(np.int64), factor[thinned])
        more = factor > 1
        x, m, shape = counts[more], mean[more], r[more]
        rate = for_rates.standard_gamma(shape + x) * m / (shape + m)
        changed[more] = x + for_more.poisson((factor[more] - 1) * rate)
        return changed


@dataclass(frozen=True)
class GrowingNegativeBinomial(NegativeBinomial):
    """Negative binomial counts whose inverse dispersion r grows with the mean, ``r (mean / reference)**GROWTH``.

    Generated counts have this noise, as counts of real cells vary less at high means than with one r for all means.
    """

    log_reference: Tensor  # log of the mean with inverse dispersion r, cells x genes or genes

    def inverse_dispersion_at(self, mean: np.ndarray) -> np.ndarray:
        """Return r of counts with the given means, cells x genes."""
        relative = np.log(np.maximum(mean, MIN_MEAN)) - self.log_reference.double().numpy()
        return np.asarray(np.exp(self.log_inverse_dispersion.double().numpy() + GROWTH * relative))
