"""Count autoencoder: prior and posterior of latents, decoder, evidence lower bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from bdm._core.parallel import Map
from bdm.autoencoder.decoder import AutoencoderShape, Decoder
from bdm.autoencoder.softmax import ONE_BLOCK, Blocks
from bdm.settings import DECODERS

OVERSAMPLING = 10  # extra components in the randomised SVD, so that the last principal components converge
PORTION = 128  # cells per thread when posteriors are computed in parallel
MEMORY = 0.95  # factor on the weight of past cells in the running prior means, per training step
MAX_STEP = 3  # of a Newton step, in prior standard deviations; prevents overshooting far from the mode
MIN_STEP = 1e-3  # same units; a cell with a shorter step has converged


class CountAutoencoder(nn.Module):
    """Latent factor model of counts with latents ~ N(prior_mean[cell_type], I).

    There is no encoder network: Newton's method finds the posterior of each cell under the model. An encoder would
    overfit the noise of the training cells and encode held-out cells differently. Not a generative model by itself: a
    prior generates the latents.
    """

    prior_sum: Tensor
    prior_weight: Tensor

    def __init__(self, shape: AutoencoderShape, decoder: Decoder | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.decoder = DECODERS.find(shape.likelihood)(shape) if decoder is None else decoder
        self.register_buffer("prior_sum", torch.zeros(shape.n_types, shape.n_latent))
        self.register_buffer("prior_weight", torch.ones(shape.n_types))

    @classmethod
    def from_decoder(cls, decoder: Decoder, prior_mean: Tensor) -> CountAutoencoder:
        """Create an autoencoder from a decoder and prior means (types x latent dimensions)."""
        network = cls(decoder.shape, decoder)
        network.prior_sum = prior_mean.clone()
        return network.eval()

    @property
    def prior_mean(self) -> Tensor:
        """Mean latent of each type, types x latent dimensions."""
        return self.prior_sum / self.prior_weight[:, None]

    @torch.no_grad()
    def initialise(self, counts: Tensor, cell_type: Tensor) -> None:
        """Initialise from principal components of cells (cells x genes); uses torch's global generator."""
        normalised = log_normalise(counts, self.decoder.blocks)
        normalised = normalised - normalised.mean(dim=0)
        n_components = min(self.shape.n_latent, *normalised.shape)
        n_searched = min(n_components + OVERSAMPLING, *normalised.shape)
        scores, size, axes = torch.svd_lowrank(normalised, q=n_searched, niter=4)
        scores, axes = (scores * size)[:, :n_components], axes[:, :n_components]
        n_missing = self.shape.n_latent - n_components
        scores, axes = (nn.functional.pad(values, (0, n_missing)) for values in (scores, axes))
        member = nn.functional.one_hot(cell_type, self.shape.n_types).T.float()
        means = member @ scores / member.sum(dim=1, keepdim=True).clamp(min=1)
        spread = (scores - means[cell_type]).std(dim=0, correction=0).clamp(min=1e-3)
        self.decoder.initialise(counts, axes * spread)
        self.prior_weight.fill_(1)
        self.prior_sum.copy_(means / spread)

    @torch.no_grad()
    def update_prior_means(self, cell_type: Tensor, latent: Tensor) -> None:
        """Update the running prior means from a minibatch; absent types keep theirs."""
        member = nn.functional.one_hot(cell_type, self.shape.n_types).T.to(latent)
        seen = member.sum(dim=1)
        keep = torch.where(seen > 0, MEMORY, 1.0)
        self.prior_sum.mul_(keep[:, None]).add_(member @ latent)
        self.prior_weight.mul_(keep).add_(seen)

    @torch.no_grad()
    def rotate_to_principal_axes(self, precision: Tensor) -> None:
        """Rotate the latent space to the principal axes of a precision matrix.

        The axis of highest precision comes first. The isotropic prior makes the rotated model equivalent. Posterior
        errors become uncorrelated on average.
        """
        axes = self.decoder.rotate(torch.linalg.eigh(precision.double())[1].flip(1).float())
        self.prior_sum.copy_(self.prior_sum @ axes)

    def encoded_part(self) -> CountAutoencoder:
        """Return the network of the features that latents depend on."""
        return self.from_decoder(self.decoder.encoded_part(), self.prior_mean)

    def with_batches(self, offsets: Tensor) -> CountAutoencoder:
        """Copy the network with more batches, given their offsets (batches x genes)."""
        return self.from_decoder(self.decoder.with_batches(offsets), self.prior_mean)

    def mean_of_types(self, member: Tensor) -> CountAutoencoder:
        """Replace types by weighted means of types, in a copy.

        ``member`` has the weights: numbers of cells, groups x types.
        """
        weight = member / member.sum(dim=1, keepdim=True)
        return self.from_decoder(self.decoder.mean_of_types(weight), weight @ self.prior_mean)

    @torch.no_grad()
    def encode(self, counts: Tensor, cell_type: Tensor, batch: Tensor, *, n_iterations: int = 12) -> Posterior:
        """Compute the posterior of latents given counts (cells x genes), type and batch."""
        evidence = self.decoder.evidence(counts, cell_type, batch)
        posterior: Posterior = laplace_posterior([evidence], self.prior_mean[cell_type], n_iterations=n_iterations)
        return posterior

    def forward(
        self,
        counts: Tensor,
        cell_type: Tensor,
        batch: Tensor,
        noise: Tensor,
        *,
        n_iterations: int,
        run: Map | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the negative evidence lower bound of each cell in nats, and the posterior means.

        The posterior is treated as a constant in the gradient, since it is close to the optimum. Latents are sampled
        from it by standard normal ``noise``, cells x latent dimensions. ``run`` replaces ``map`` to encode portions of
        cells in parallel on the CPU.
        """
        with torch.no_grad():
            evidence, prior_mean = self.decoder.evidence(counts, cell_type, batch), self.prior_mean[cell_type]

        def encode(cells: slice) -> tuple[Tensor, Tensor, Tensor]:
            posterior = laplace_posterior([evidence.select(cells)], prior_mean[cells], n_iterations=n_iterations)
            return posterior.mean, posterior.sample(noise[cells]), posterior.divergence(prior_mean[cells])

        size = len(counts) if run is None or counts.device.type != "cpu" else PORTION
        portions = (slice(start, start + size) for start in range(0, len(counts), size))
        mean, latent, divergence = map(torch.cat, zip(*(run or map)(encode, portions), strict=True))
        return divergence - self.decoder.log_likelihood(counts, latent, cell_type, batch), mean


@dataclass(frozen=True)
class Posterior:
    """Normal posterior of the latent of each cell."""

    mean: Tensor  # cells x latent dimensions
    factor: Tensor  # lower Cholesky factor of the precision matrix, cells x latent dimensions x latent dimensions

    @property
    def scale(self) -> Tensor:
        """Standard deviation of each latent dimension, cells x latent dimensions."""
        return torch.cholesky_inverse(self.factor).diagonal(dim1=1, dim2=2).sqrt()

    @property
    def precision(self) -> Tensor:
        """Precision matrix, cells x latent dimensions x latent dimensions."""
        return self.factor @ self.factor.transpose(1, 2)

    def sample(self, noise: Tensor) -> Tensor:
        """Transform standard normal noise to samples of latents, both cells x latent dimensions."""
        deviation: Tensor = torch.linalg.solve_triangular(self.factor.transpose(1, 2), noise[:, :, None], upper=True)
        return self.mean + deviation.squeeze(2)

    def divergence(self, prior_mean: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence of each cell from N(prior_mean, I)."""
        log_determinant = 2 * self.factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        variance = torch.cholesky_inverse(self.factor).diagonal(dim1=1, dim2=2).sum(dim=1)
        distance = ((self.mean - prior_mean) ** 2).sum(dim=1)
        return (variance + distance - prior_mean.shape[1] + log_determinant) / 2


class Evidence(Protocol):
    """Likelihood of latents given one matrix of counts, from :meth:`Decoder.evidence`."""

    def select(self, cells: Tensor | slice) -> Self:
        """Select a subset of the cells."""

    def derivatives(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of each cell's log likelihood, cells x dimensions, and its Fisher information."""


@torch.no_grad()
@torch.autocast("cuda", enabled=False)  # type: ignore[untyped-decorator]
def laplace_posterior(evidence: Sequence[Evidence], prior_mean: Tensor, *, n_iterations: int) -> Posterior:
    """Compute the Laplace approximation of posteriors by Fisher scoring.

    ``evidence`` has the likelihoods of matrices that are independent given the latent, such as counts of genes. The
    search starts from ``prior_mean``, cells x latent dimensions. The prior covariance is the identity.
    """
    n_latent, device = prior_mean.shape[1], prior_mean.device
    identity = torch.eye(n_latent, device=device)
    latent, factors = prior_mean.clone(), torch.empty(*prior_mean.shape, n_latent, device=device)
    # Cells that have not converged: their indices, evidence and prior means
    active, active_evidence, active_mean = torch.arange(len(latent), device=device), evidence, prior_mean
    for _ in range(n_iterations):
        z = latent[active]
        gradients, information = zip(*(part.derivatives(z) for part in active_evidence), strict=True)
        gradient = sum(gradients) - (z - active_mean)
        factor = torch.linalg.cholesky(sum(information) + identity)
        step = torch.cholesky_solve(gradient[:, :, None], factor).squeeze(2)
        length = step.norm(dim=1)
        latent[active] = z + step * (MAX_STEP / length).clamp(max=1)[:, None]
        factors[active] = factor
        is_active = length > MIN_STEP
        if not is_active.any():
            break
        if not is_active.all():  # selecting cells copies their counts
            active = active[is_active]
            active_evidence, active_mean = [part.select(active) for part in evidence], prior_mean[active]
    return Posterior(latent, factors)


def log_normalise(counts: Tensor, blocks: Blocks = ONE_BLOCK) -> Tensor:
    """Compute log1p of counts (cells x genes), in normalised blocks per 10,000 counts."""
    return torch.log1p(counts * blocks.spread(1e4 / blocks.sums(counts), others=1))
