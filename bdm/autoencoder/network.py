from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdm.autoencoder.likelihood import negative_binomial_log_likelihood


@dataclass(frozen=True)
class AutoencoderShape:
    """Sizes that fix an autoencoder's parameters; ``n_batches`` is 0 where no batch enters."""

    n_genes: int
    n_latent: int = 20
    n_hidden: int = 128
    n_batches: int = 0


@dataclass(frozen=True)
class Posterior:
    """Normal posterior of the latent, cells x latent dimensions."""

    mean: Tensor
    scale: Tensor


class CountAutoencoder(nn.Module):
    """Variational autoencoder of counts with a linear decoder, so that gene loadings can be read.

    The decoder gives each cell's expression as the softmax over genes of ``loadings z + offset[batch]``; counts
    follow a negative binomial around expression x library size (Svensson et al. 2020, Bioinformatics 36:3418).

    Not a generative model by itself: the diffusion model is the prior of its latent.
    """

    def __init__(self, shape: AutoencoderShape):
        super().__init__()
        self.shape = shape
        self.encoder = nn.Sequential(
            nn.Linear(shape.n_genes + shape.n_batches, shape.n_hidden),
            nn.LayerNorm(shape.n_hidden),
            nn.SiLU(),
            nn.Linear(shape.n_hidden, shape.n_hidden),
            nn.LayerNorm(shape.n_hidden),
            nn.SiLU(),
            nn.Linear(shape.n_hidden, 2 * shape.n_latent),
        )
        self.loadings = nn.Linear(shape.n_latent, shape.n_genes)
        self.batch_offset = nn.Parameter(torch.zeros(max(shape.n_batches, 1), shape.n_genes))
        self.log_inverse_dispersion = nn.Parameter(torch.zeros(shape.n_genes))

    def encode(self, counts: Tensor, batch: Tensor) -> Posterior:
        """Posterior of the latent from counts (cells x genes) and batch indices (cells)."""
        library = counts.sum(dim=1, keepdim=True)
        normalised = torch.log1p(counts * (1e4 / library))
        if self.shape.n_batches:
            one_hot = nn.functional.one_hot(batch, self.shape.n_batches).to(normalised.dtype)
            normalised = torch.cat([normalised, one_hot], dim=1)
        mean, log_scale = self.encoder(normalised).chunk(2, dim=1)
        return Posterior(mean, torch.exp(log_scale.clamp(-8, 4)))

    def decode(self, latent: Tensor, batch: Tensor) -> Tensor:
        """Log expression, normalised over genes, from latents (cells x latent dimensions)."""
        return torch.log_softmax(self.loadings(latent) + self.batch_offset[batch], dim=1)

    def forward(self, counts: Tensor, batch: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
        """Negative evidence lower bound of each cell, with the KL term weighted."""
        posterior = self.encode(counts, batch)
        log_mean = self.decode(posterior.mean + posterior.scale * noise, batch) + counts.sum(dim=1, keepdim=True).log()
        likelihood = negative_binomial_log_likelihood(counts, log_mean, self.log_inverse_dispersion)
        divergence = 0.5 * (posterior.mean**2 + posterior.scale**2 - 1 - 2 * posterior.scale.log()).sum(dim=1)
        return kl_weight * divergence - likelihood
