"""The count autoencoder: prior and posteriors of latents, decoder, and evidence lower bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from bdm._core.kinds import DECODERS
from bdm._core.parallel import Map
from bdm.autoencoder.decoder import AutoencoderShape, Decoder
from bdm.autoencoder.softmax import ONE_BLOCK, Blocks

OVERSAMPLING = 10  # further components in the search for principal ones, so that the last of these converge too
PORTION = 128  # cells whose posteriors are computed together, where several portions are computed in parallel
MEMORY = 0.95  # weight of past cells in the running means of the prior, per training step
MAX_STEP = 3  # in standard deviations of the prior; prevents Newton's method from overshooting far from the mode
MIN_STEP = 1e-3  # in these; below it, a cell has reached its mode


def log_normalise(counts: Tensor, blocks: Blocks = ONE_BLOCK) -> Tensor:
    """Natural logarithm of one plus counts, per 10,000 of their block if it is normalised, cells x genes."""
    return torch.log1p(counts * blocks.spread(1e4 / blocks.sums(counts), others=1))


class CountAutoencoder(nn.Module):
    """Latent factor model of counts: latents of type c are normal around ``prior_mean[c]`` with unit covariance.

    There is no encoder network: a cell is encoded by its posterior under the model, by Newton's method. A network would
    overfit to the noise of the training cells, and encode held-out cells differently. Not a generative model by itself:
    a prior generates the latents.
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
        """Make an autoencoder of a decoder and the prior means of its types, types x latent dimensions."""
        network = cls(decoder.shape, decoder)
        network.prior_sum = prior_mean.clone()
        return network.eval()

    @property
    def prior_mean(self) -> Tensor:
        """Mean latent of each type, types x latent dimensions."""
        return self.prior_sum / self.prior_weight[:, None]

    @torch.no_grad()
    def initialise(self, counts: Tensor, cell_type: Tensor) -> None:
        """Initialise by the principal components of cells (cells x genes); uses torch's global generator."""
        normalised = log_normalise(counts, self.decoder.blocks)
        normalised = normalised - normalised.mean(dim=0)
        n_found = min(self.shape.n_latent, *normalised.shape)
        n_searched = min(n_found + OVERSAMPLING, *normalised.shape)
        scores, size, axes = torch.svd_lowrank(normalised, q=n_searched, niter=4)
        scores, axes = (scores * size)[:, :n_found], axes[:, :n_found]
        scores, axes = (nn.functional.pad(values, (0, self.shape.n_latent - n_found)) for values in (scores, axes))
        member = nn.functional.one_hot(cell_type, self.shape.n_types).T.float()
        means = member @ scores / member.sum(dim=1, keepdim=True).clamp(min=1)
        spread = (scores - means[cell_type]).std(dim=0, correction=0).clamp(min=1e-3)
        self.decoder.initialise(counts, axes * spread)
        self.prior_weight.fill_(1)
        self.prior_sum.copy_(means / spread)

    @torch.no_grad()
    def update_prior_means(self, cell_type: Tensor, latent: Tensor) -> None:
        """Update the prior means by cells: running means over the last minibatches that included a type."""
        member = nn.functional.one_hot(cell_type, self.shape.n_types).T.to(latent)
        seen = member.sum(dim=1)
        keep = torch.where(seen > 0, MEMORY, 1.0)
        self.prior_sum.mul_(keep[:, None]).add_(member @ latent)
        self.prior_weight.mul_(keep).add_(seen)

    @torch.no_grad()
    def rotate_to_principal_axes(self, precision: Tensor) -> None:
        """Rotate the latent space to the principal axes of a precision, the axis of the highest precision first.

        The model stays the same (isotropic prior), while errors of the posterior become independent on average.
        """
        axes = self.decoder.rotate(torch.linalg.eigh(precision.double())[1].flip(1).float())
        self.prior_sum.copy_(self.prior_sum @ axes)

    def with_batches(self, offsets: Tensor) -> CountAutoencoder:
        """Copy the network with additional batches, by their offsets (batches x genes)."""
        return self.from_decoder(self.decoder.with_batches(offsets), self.prior_mean)

    def mean_of_types(self, member: Tensor) -> CountAutoencoder:
        """Copy the network with groups of types (cells of each, groups x types) in place of them, by their means."""
        weight = member / member.sum(dim=1, keepdim=True)
        return self.from_decoder(self.decoder.mean_of_types(weight), weight @ self.prior_mean)

    @torch.no_grad()
    def encode(self, counts: Tensor, cell_type: Tensor, batch: Tensor, *, n_iterations: int = 12) -> Posterior:
        """Posterior of the latent of cells (cells x genes) of known type and batch."""
        evidence = self.decoder.evidence(counts, cell_type, batch)
        found: Posterior = laplace_posterior([evidence], self.prior_mean[cell_type], n_iterations=n_iterations)
        return found

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
        """Negative evidence lower bound of each cell, and the mean of its posterior.

        The posterior is close to the optimum, so the gradient is close to that with a constant posterior. With ``run``,
        which is like ``map``, portions of cells are encoded in parallel on the CPU.
        """
        with torch.no_grad():
            evidence, prior_mean = self.decoder.evidence(counts, cell_type, batch), self.prior_mean[cell_type]

        def encoded(cells: slice) -> tuple[Tensor, Tensor, Tensor]:
            posterior = laplace_posterior([evidence.select(cells)], prior_mean[cells], n_iterations=n_iterations)
            return posterior.mean, posterior.sample(noise[cells]), posterior.divergence(prior_mean[cells])

        size = len(counts) if run is None or counts.device.type != "cpu" else PORTION
        portions = (slice(start, start + size) for start in range(0, len(counts), size))
        mean, latent, divergence = map(torch.cat, zip(*(run or map)(encoded, portions), strict=True))
        return divergence - self.decoder.log_likelihood(counts, latent, cell_type, batch), mean


@dataclass(frozen=True)
class Posterior:
    """Normal posterior of the latent."""

    mean: Tensor  # cells x latent dimensions
    factor: Tensor  # lower Cholesky factor of the precision, cells x latent dimensions x latent dimensions

    @property
    def scale(self) -> Tensor:
        """Standard deviation of each latent dimension, cells x latent dimensions."""
        return torch.cholesky_inverse(self.factor).diagonal(dim1=1, dim2=2).sqrt()

    @property
    def precision(self) -> Tensor:
        """Precision, cells x latent dimensions x latent dimensions."""
        return self.factor @ self.factor.transpose(1, 2)

    def sample(self, noise: Tensor) -> Tensor:
        """Sample latents from standard normal noise, both cells x latent dimensions."""
        deviation: Tensor = torch.linalg.solve_triangular(self.factor.transpose(1, 2), noise[:, :, None], upper=True)
        return self.mean + deviation.squeeze(2)

    def divergence(self, prior_mean: Tensor) -> Tensor:
        """Kullback-Leibler divergence from normals of unit covariance around ``prior_mean``, one a cell."""
        log_determinant = 2 * self.factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        variance = torch.cholesky_inverse(self.factor).diagonal(dim1=1, dim2=2).sum(dim=1)
        distance = ((self.mean - prior_mean) ** 2).sum(dim=1)
        return (variance + distance - prior_mean.shape[1] + log_determinant) / 2


class Evidence(Protocol):
    """What one matrix of cells says about their latents; a decoder gives it."""

    def select(self, cells: Tensor | slice) -> Self:
        """Evidence of a subset of the cells."""

    def derivatives(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each cell's log likelihood by its latent, cells x latent dimensions, and Fisher's information."""


@torch.no_grad()
@torch.autocast("cuda", enabled=False)  # type: ignore[untyped-decorator]
def laplace_posterior(evidence: Sequence[Evidence], prior_mean: Tensor, *, n_iterations: int) -> Posterior:
    """Approximate posteriors by normals around their modes, by Newton's method with Fisher's information.

    Parameters
    ----------
    evidence
        Of each matrix of the cells, such as their counts of genes; given the latent, matrices are independent.
    prior_mean
        Mean of the prior of each cell, cells x latent dimensions, where the search starts; its covariance is the
        identity.
    """
    n_latent, device = prior_mean.shape[1], prior_mean.device
    identity = torch.eye(n_latent, device=device)
    latent, factors = prior_mean.clone(), torch.empty(*prior_mean.shape, n_latent, device=device)
    moving, pieces, prior = torch.arange(len(latent), device=device), evidence, prior_mean
    for _ in range(n_iterations):
        z = latent[moving]
        gradients, information = zip(*(piece.derivatives(z) for piece in pieces), strict=True)
        gradient = sum(gradients) - (z - prior)
        # Step
        factor = torch.linalg.cholesky(sum(information) + identity)
        step = torch.cholesky_solve(gradient[:, :, None], factor).squeeze(2)
        length = step.norm(dim=1)
        latent[moving] = z + step * (MAX_STEP / length).clamp(max=1)[:, None]
        factors[moving] = factor
        goes_on = length > MIN_STEP
        if not goes_on.any():
            break
        if not goes_on.all():  # selecting cells copies their counts
            moving = moving[goes_on]
            pieces, prior = [piece.select(moving) for piece in evidence], prior_mean[moving]
    return Posterior(latent, factors)
