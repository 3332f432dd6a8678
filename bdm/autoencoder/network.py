from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdm.autoencoder.likelihood import negative_binomial_log_likelihood

SCALE_FLOOR = 0.1  # keeps genes that hardly vary from being blown up
DISPERSION_PACE = 5  # log dispersions have further to go than weights: over several units in as many steps


def log_normalise(counts: Tensor) -> Tensor:
    """Natural logarithm of one plus counts per 10,000, cells x genes."""
    return torch.log1p(counts * (1e4 / counts.sum(dim=1, keepdim=True)))


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
        self.register_buffer("gene_mean", torch.zeros(shape.n_genes))
        self.register_buffer("gene_scale", torch.ones(shape.n_genes))
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
        self.paced_dispersion = nn.Parameter(torch.zeros(shape.n_genes))

    @property
    def log_inverse_dispersion(self) -> Tensor:
        """Natural logarithm of the inverse dispersion, one a gene."""
        return DISPERSION_PACE * self.paced_dispersion

    @torch.no_grad()
    def start_from(self, counts: Tensor) -> None:
        """Set what cells (cells x genes) tell without training: the encoder's scale, and the decoder's mean expression.

        Without it, training spends its first thousand steps on the means of genes.
        """
        normalised = log_normalise(counts)
        self.gene_mean.copy_(normalised.mean(dim=0))
        self.gene_scale.copy_(normalised.std(dim=0) + SCALE_FLOOR)
        total = counts.sum(dim=0) + 0.5
        self.loadings.bias.copy_((total / total.sum()).log())

    def encode(self, counts: Tensor, batch: Tensor, *, kept: Tensor | None = None) -> Posterior:
        """Posterior of the latent.

        Parameters
        ----------
        counts
            Cells x genes.
        batch
            Batch index of each cell.
        kept
            Weights of the encoder's inputs in training, cells x genes: 0 where a gene is dropped.
        """
        normalised = (log_normalise(counts) - self.gene_mean) / self.gene_scale
        if kept is not None:
            normalised = normalised * kept
        if self.shape.n_batches:
            one_hot = nn.functional.one_hot(batch, self.shape.n_batches).to(normalised.dtype)
            normalised = torch.cat([normalised, one_hot], dim=1)
        mean, log_scale = self.encoder(normalised).chunk(2, dim=1)
        return Posterior(mean, torch.exp(log_scale.clamp(-8, 4)))

    def decode(self, latent: Tensor, batch: Tensor) -> Tensor:
        """Log expression, normalised over genes, from latents (cells x latent dimensions)."""
        return torch.log_softmax(self.loadings(latent) + self.batch_offset[batch], dim=1)

    def forward(
        self, counts: Tensor, batch: Tensor, noise: Tensor, kl_weight: float, kept: Tensor | None = None
    ) -> Tensor:
        """Negative evidence lower bound of each cell, with the KL term weighted."""
        posterior = self.encode(counts, batch, kept=kept)
        log_mean = self.decode(posterior.mean + posterior.scale * noise, batch) + counts.sum(dim=1, keepdim=True).log()
        likelihood = negative_binomial_log_likelihood(counts, log_mean, self.log_inverse_dispersion)
        divergence = 0.5 * (posterior.mean**2 + posterior.scale**2 - 1 - 2 * posterior.scale.log()).sum(dim=1)
        return kl_weight * divergence - likelihood
