"""The denoiser of all branches: exact for normal populations, with a network for the remainder."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdm.latent.moments import Normal


@dataclass(frozen=True)
class DenoiserShape:
    """Sizes that fix a denoiser's parameters.

    Attributes
    ----------
    n_input
        Dimensions of whitened space.
    """

    n_input: int
    n_branches: int
    width: int = 128
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
        change: Tensor = self.out(nn.functional.silu(self.hidden(inner)))
        return h + change


class BranchedDenoiser(nn.Module):
    """Denoiser D(x; sigma, branch) of all branches: exact for normal populations, and a network for the remainder.

    ``D = m + C (C + sigma**2)**-1 (x - m) + c_out F((C + sigma**2)**-0.5 (x - m); c_noise, branch)``

    with mean m and covariance C of the branch's cells. This is the preconditioning of Karras et al. 2022
    (arXiv 2206.00364) with C in place of the variance of all data, and ``c_out = sigma / sqrt(1 + sigma**2)``, as
    cells of one type have unit covariance in whitened space. Most populations are nearly normal, so the network F has
    little left to learn.

    F is a trunk that all branches share, modulated by one embedding per branch, so that hundreds of branches take no
    more time.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor
    frequencies: Tensor

    def __init__(self, shape: DenoiserShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.register_buffer("mean", torch.zeros(shape.n_branches, shape.n_input))
        self.register_buffer("axes", torch.eye(shape.n_input).repeat(shape.n_branches, 1, 1))
        self.register_buffer("variance", torch.ones(shape.n_branches, shape.n_input))
        self.register_buffer("frequencies", 2 * math.pi * torch.logspace(-2, 1, 32))
        self.noise = nn.Sequential(nn.Linear(2 * len(self.frequencies), width), nn.SiLU())
        self.branch = nn.Embedding(shape.n_branches, width)
        nn.init.normal_(self.branch.weight, std=0.3)
        self.enter = nn.Linear(shape.n_input, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(shape.n_layers))
        self.leave = nn.Linear(width, shape.n_input)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @torch.no_grad()
    def set_populations(self, mean: Tensor, covariance: Tensor) -> None:
        """Set the moments of the cells of each branch.

        Parameters
        ----------
        mean
            Branches x dimensions.
        covariance
            Branches x dimensions x dimensions.
        """
        axes, variance = principal_axes(covariance)
        self.mean.copy_(mean)
        self.axes.copy_(axes)
        self.variance.copy_(variance)

    def population(self, branch: int) -> Normal:
        """Moments, without noise, of the cells that a branch was trained on."""
        axes, variance = self.axes[branch].cpu().double(), self.variance[branch].cpu().double()
        return Normal(self.mean[branch].cpu(), (axes * variance @ axes.T).float())

    def forward(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoised x.

        Parameters
        ----------
        x
            Noised cells in whitened space, cells x dimensions.
        sigma
            Noise level, one per cell, or one for all.
        branch
            Index of the branch, one per cell, or one for all.
        """
        sigma = sigma[:, None]
        normal: Tensor
        normal, standardised = self.standardise(x, sigma, branch)
        c_out = sigma / (1 + sigma**2).sqrt()
        c_noise = sigma.log() / 4
        return normal + c_out * self.network(standardised, c_noise, branch)

    @torch.autocast("cuda", enabled=False)  # type: ignore[untyped-decorator]
    def standardise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """Denoised x if the populations of the branches were normal, and the input of the network."""
        mean, axes, variance = self.mean[branch], self.axes[branch], self.variance[branch]
        noised_variance = variance + sigma**2
        away = _multiply(x - mean, axes)
        normal = mean + _multiply(away * variance / noised_variance, axes.mT)
        return normal, _multiply(away * noised_variance.rsqrt(), axes.mT)

    def network(self, x: Tensor, c_noise: Tensor, branch: Tensor) -> Tensor:
        """F of the preconditioned denoiser, from standardised x."""
        angles = c_noise * self.frequencies
        condition = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.branch(branch)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        learned: Tensor = self.leave(h)
        return learned


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Principal axes of covariances (... x dimensions x dimensions), and the variances along these."""
    variance, axes = torch.linalg.eigh(covariance.double())
    return axes.float(), variance.clamp(min=0).float()


def _multiply(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each row of x by its matrix, or all rows by the only one."""
    return x @ matrices[0] if len(matrices) == 1 else (x[:, None] @ matrices).squeeze(1)
