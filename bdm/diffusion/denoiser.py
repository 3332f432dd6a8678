"""The denoiser of all branches: exact for mixtures of normals, with a network for the remainder."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from bdm.diffusion.populations import BranchPopulations
from bdm.latent.mixtures import Mixture


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
    """Denoiser D(x; sigma, branch) of all branches: exact for mixtures of normals, and a network for the remainder.

    ``D = sum_k r_k(x) (m_k + C_k (C_k + sigma**2)**-1 (x - m_k)) + c_out F((C + sigma**2)**-0.5 (x - m); c_noise,
    branch)``

    with the components k of the branch's mixture (:class:`BranchPopulations`), their responsibilities r_k at sigma, and
    mean m and covariance C of all cells of the branch. The input and the output of F have the preconditioning of Karras
    et al. 2022 (arXiv 2206.00364) with C in place of the variance of all data, and
    ``c_out = sigma / sqrt(1 + sigma**2)``, as cells of one type have unit covariance in whitened space. Most
    populations are nearly normal, so the network F has little left to learn; D has it on the branches that are
    ``learned``, and is the closed form alone on the others.

    F is a trunk that all branches share, modulated by one embedding per branch, so that hundreds of branches take no
    more time.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor
    learned: Tensor
    frequencies: Tensor

    def __init__(self, shape: DenoiserShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        for name, value in vars(BranchPopulations.unset(shape.n_branches, shape.n_input)).items():
            self.register_buffer(name, value)
        self.register_buffer("learned", torch.ones(shape.n_branches, dtype=torch.bool))
        self.register_buffer("frequencies", 2 * math.pi * torch.logspace(-2, 1, 32))
        self.noise = nn.Sequential(nn.Linear(2 * len(self.frequencies), width), nn.SiLU())
        self.branch = nn.Embedding(shape.n_branches, width)
        nn.init.normal_(self.branch.weight, std=0.3)
        self.enter = nn.Linear(shape.n_input, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(shape.n_layers))
        self.leave = nn.Linear(width, shape.n_input)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @property
    def populations(self) -> BranchPopulations:
        """Normals that stand for the cells of each branch."""
        return BranchPopulations(**{field.name: getattr(self, field.name) for field in fields(BranchPopulations)})

    @torch.no_grad()
    def set_populations(self, populations: BranchPopulations) -> None:
        """Set the normals that stand for the cells of each branch."""
        for name, value in vars(populations).items():
            getattr(self, name).copy_(value)

    def population(self, branch: int, sigma: float) -> Mixture:
        """Mixture, without noise, of a branch's cells, with the components that it has at a noise level."""
        return self.populations.mixture(branch, sigma)

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
        denoised: Tensor = self.closed_form(x, sigma, branch)
        learned = self.learned[branch][:, None]
        if not learned.any():
            return denoised
        return denoised + torch.where(learned, self.remainder(x, sigma, branch), 0)

    def remainder(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Compute what the network adds to the closed form; the arguments as of :meth:`forward`."""
        standardised: Tensor = self.standardise(x, sigma, branch)
        noise = sigma[:, None]
        return noise / (1 + noise**2).sqrt() * self.network(standardised, noise.log() / 4, branch)

    @torch.autocast("cuda", enabled=False)  # type: ignore[untyped-decorator]
    def closed_form(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoised x without the network; the arguments as of :meth:`forward`."""
        return self.populations.denoised(x, sigma, branch)

    @torch.autocast("cuda", enabled=False)  # type: ignore[untyped-decorator]
    def standardise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Input of the network: x in units of all noised cells of its branch; the arguments as of :meth:`forward`."""
        axes = self.axes[branch]
        away = _multiply(x - self.mean[branch], axes)
        return _multiply(away * (self.variance[branch] + sigma[:, None] ** 2).rsqrt(), axes.mT)

    def network(self, x: Tensor, c_noise: Tensor, branch: Tensor) -> Tensor:
        """F of the preconditioned denoiser, from standardised x."""
        angles = c_noise * self.frequencies
        condition = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.branch(branch)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        learned: Tensor = self.leave(h)
        return learned


def _multiply(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each row of x by its matrix, or all rows by the only one."""
    return x @ matrices[0] if len(matrices) == 1 else (x[:, None] @ matrices).squeeze(1)
