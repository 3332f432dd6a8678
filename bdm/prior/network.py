"""The network of the diffusion prior, with a trunk that all branches share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bdm._core.seeds import derive
from bdm.prior.base import PriorData
from bdm.settings import PriorSettings


@dataclass(frozen=True)
class NetworkShape:
    """Sizes that fix a network's parameters."""

    n_input: int  # dimensions of whitened space
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


class BranchNetwork(nn.Module):
    """Network F(x; c_noise, branch), 0 before training; the trunk is shared, so hundreds of branches take no longer."""

    frequencies: Tensor

    def __init__(self, shape: NetworkShape) -> None:
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

    @classmethod
    def initial(cls, data: PriorData, settings: PriorSettings, *, seed: int) -> BranchNetwork:
        """Make the network of a hierarchy before training; torch's global random generator is left alone."""
        n_branches = len(data.hierarchy.branches)
        shape = NetworkShape(data.moments.mean.shape[1], n_branches, settings.width, settings.n_layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "denoiser"))
            return cls(shape)

    def forward(self, x: Tensor, c_noise: Tensor, branch: Tensor) -> Tensor:
        """F of standardised x, cells x dimensions; c_noise (n x 1) and row of the branch (n): n cells, or 1 for all."""
        angles = c_noise * self.frequencies
        condition = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.branch(branch)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        learned: Tensor = self.leave(h)
        return learned

    def with_branches(self, embeddings: Tensor) -> BranchNetwork:
        """Copy the network with more branches, by their embeddings (branches x width)."""
        known = self.branch.weight
        with torch.random.fork_rng(devices=[]):
            extended = BranchNetwork(replace(self.shape, n_branches=len(known) + len(embeddings)))
        rows = torch.cat([known.detach(), embeddings.to(known)])
        extended.load_state_dict({**self.state_dict(), "branch.weight": rows})
        return extended.eval().requires_grad_(False).to(known.device)
