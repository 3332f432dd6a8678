import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DenoiserShape:
    """Sizes that fix a denoiser's parameters.

    Attributes
    ----------
    n_input
        Dimensions of whitened space: the latent's and one for library size.
    sigma_data
        Standard deviation of all cells in whitened space.
    """

    n_input: int
    n_branches: int
    sigma_data: float
    width: int = 192
    n_layers: int = 3


class ResidualBlock(nn.Module):
    """Residual perceptron whose normalised input is scaled and shifted by noise level and branch."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Next h, cells x width, given the condition, cells (or one for all) x width."""
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        inner = nn.functional.silu(self.norm(h) * (1 + scale) + shift)
        return h + self.out(nn.functional.silu(self.hidden(inner)))


class BranchedDenoiser(nn.Module):
    """Denoiser D(x; sigma, branch) of all branches: a shared trunk, and one embedding a branch that modulates it.

    ``D = c_skip x + c_out F(c_in x; c_noise, branch)`` with the preconditioning of Karras et al. 2022
    (arXiv 2206.00364). The embeddings are all that belongs to one branch alone, so that a branch costs ``width``
    parameters, and hundreds of them cost no time.
    """

    def __init__(self, shape: DenoiserShape):
        super().__init__()
        self.shape = shape
        width = shape.width
        self.register_buffer("frequencies", 2 * math.pi * torch.logspace(-2, 1, 32))
        self.noise = nn.Sequential(nn.Linear(2 * len(self.frequencies), width), nn.SiLU())
        self.branch = nn.Embedding(shape.n_branches, width)
        nn.init.normal_(self.branch.weight, std=0.3)
        self.enter = nn.Linear(shape.n_input, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(shape.n_layers))
        self.leave = nn.Linear(width, shape.n_input)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoised x.

        Parameters
        ----------
        x
            Noised cells in whitened space, cells x dimensions.
        sigma
            Noise level, one a cell, or one for all.
        branch
            Index of the branch, one a cell, or one for all.
        """
        sigma, sigma_data = sigma[:, None], self.shape.sigma_data
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
        c_in = 1 / (sigma**2 + sigma_data**2).sqrt()
        c_noise = sigma.log() / 4
        return c_skip * x + c_out * self.network(c_in * x, c_noise, branch)

    def network(self, x: Tensor, c_noise: Tensor, branch: Tensor) -> Tensor:
        """F of the preconditioned denoiser."""
        angles = c_noise * self.frequencies
        condition = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.branch(branch)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        return self.leave(h)
