"""Sampling along the hierarchy: decode cells down its branches, encode them up, and transmute them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from bdm.diffusion.denoiser import BranchedDenoiser
from bdm.diffusion.sampler import (
    SIGMA_MIN,
    AffineMap,
    Denoise,
    Solver,
    Start,
    Transport,
    dpm_solver,
    gaussian_start,
    gaussian_transport,
    gaussian_trend,
    noise_levels,
)
from bdm.hierarchy.tree import Hierarchy, Segment
from bdm.latent.moments import Normal
from bdm.seeds import torch_generator
from bdm.settings import SamplerSettings

CHURN = 0.5  # more noise than that costs as much fidelity as the denoiser has errors


@dataclass(frozen=True, eq=False)
class TreeWalk:
    """Sampler of the hierarchy: decode a branch from its upper to its lower end, transport cells to each child, go on.

    Everything is a function of the arguments and the generator, so cells do not depend on what else is sampled.

    Attributes
    ----------
    transport
        Computes the map of cells from a branch to another at the noise level of their node.
    solver
        Follows the diffusion along a branch.
    start
        Samples cells at the upper end of the root.
    """

    denoiser: BranchedDenoiser
    hierarchy: Hierarchy
    settings: SamplerSettings = field(default=SamplerSettings())
    transport: Transport = gaussian_transport
    solver: Solver = dpm_solver
    start: Start = gaussian_start

    @cached_property
    def population(self) -> Callable[[int], Normal]:
        """Function that returns the moments, without noise, of the cells that a branch of the denoiser was trained on.

        This and the next two compute each result once.
        """
        return cache(self.denoiser.population)

    @cached_property
    def transport_map(self) -> Callable[[int, int, float], Callable[[Tensor], Tensor]]:
        """Function that returns the map of cells from one branch of the denoiser to another at a noise level."""

        @cache
        def transport_map(source: int, target: int, sigma: float) -> Callable[[Tensor], Tensor]:
            return self.transport(self.population(source), self.population(target), sigma)

        return transport_map

    @cached_property
    def trend(self) -> Callable[[int, float], AffineMap]:
        """Function that returns the trend of the denoised x on a branch at a noise level, as if it were normal."""

        @cache
        def trend(branch: int, sigma: float) -> AffineMap:
            return gaussian_trend(self.population(branch), sigma)

        return trend

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        return next(self.denoiser.parameters()).device

    def levels(self, high: float, low: float) -> list[float]:
        """Noise levels of the solver on a part of a path."""
        return noise_levels(high, low, sigma_max=self.hierarchy.sigma_max, n_levels=self.settings.n_levels)

    def denoise_on(self, denoiser_branch: int) -> Denoise:
        """Denoiser of one of its branches."""
        device = self.device
        branch = torch.tensor([denoiser_branch], device=device)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            denoised: Tensor = self.denoiser(x, torch.tensor([sigma], device=device), branch)
            return denoised

        return denoise

    def start_branch(self, segment: Segment, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells at the upper end of a branch, cells x dimensions."""
        return self.start(self.population(segment.denoiser_branch), segment.high, n_cells, generator)

    @torch.no_grad()
    def decode_branch(self, segment: Segment, x: Tensor, generator: torch.Generator) -> Tensor:
        """Denoise cells from the upper to the lower end of a branch, cells x dimensions."""
        sigmas = self.levels(segment.high, segment.low)
        churn = CHURN if self.settings.stochastic else 0.0
        trend = ((1 - churn) * self.trend(segment.denoiser_branch, segment.high)(x)).to(self.device)
        denoise = self.denoise_on(segment.denoiser_branch)
        return self.solver(denoise, x.to(self.device), sigmas, trend=trend, churn=churn, generator=generator).cpu()

    @torch.no_grad()
    def encode_branch(self, segment: Segment, x: Tensor) -> Tensor:
        """Follow the probability-flow ODE from the lower to the upper end of a branch, cells x dimensions.

        Inverse of :meth:`decode_branch`, except for the first steps from level 0, which are taken as if the branch were
        normal.
        """
        population = self.population(segment.denoiser_branch)
        low = min(max(segment.low, SIGMA_MIN), segment.high)
        if low > segment.low:
            x = gaussian_transport(population.noised(segment.low), population.noised(low), 0)(x)
        if low == segment.high:
            return x
        sigmas = self.levels(segment.high, low)[::-1]
        trend = self.trend(segment.denoiser_branch, low)(x).to(self.device)
        return self.solver(self.denoise_on(segment.denoiser_branch), x.to(self.device), sigmas, trend=trend).cpu()

    def encode_path(self, ancestor: int, segments: Sequence[Segment], x: Tensor) -> Tensor:
        """Encode cells along a path (given from top to bottom) up to an ancestor, a branch of the denoiser.

        Inverse of :meth:`decode_path`, by the same steps.
        """
        above = [ancestor, *(segment.denoiser_branch for segment in segments)]
        for parent, segment in reversed(list(zip(above, segments, strict=False))):
            x = self.encode_branch(segment, x)
            x = self.transported(segment.denoiser_branch, parent, segment.high, x)
        return x

    def decode_path(self, ancestor: int, segments: Sequence[Segment], x: Tensor, generator: torch.Generator) -> Tensor:
        """Decode cells of an ancestor, a branch of the denoiser, along a path below it, cells x dimensions."""
        for segment in segments:
            x = self.transported(ancestor, segment.denoiser_branch, segment.high, x)
            x = self.decode_branch(segment, x, generator)
            ancestor = segment.denoiser_branch
        return x

    def transmute(self, x: Tensor, cell_type: str, to: str, generator: torch.Generator) -> Tensor:
        """Encode cells of a type up to its common ancestor with another, and decode them to that, cells x dimensions.

        They are encoded by the probability-flow ODE; with ``settings.stochastic``, by fresh noise.
        """
        ancestor = self.hierarchy.common_ancestor(cell_type, to)
        branches = self.hierarchy.denoiser_branches
        if self.settings.stochastic:
            x = x + ancestor.level * torch.randn(x.shape, generator=generator)
            x = self.transported(branches[cell_type], branches[ancestor.name], ancestor.level, x)
        else:
            x = self.encode_path(branches[ancestor.name], self.hierarchy.path_below(ancestor, cell_type), x)
        return self.decode_path(branches[ancestor.name], self.hierarchy.path_below(ancestor, to), x, generator)

    def independent(self, cell_type: str, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells of one type, each from its own start at the root, cells x dimensions."""
        first, *later = self.hierarchy.path(cell_type)
        x = self.decode_branch(first, self.start_branch(first, n_cells, generator), generator)
        return self.decode_path(first.denoiser_branch, later, x, generator)

    def shared(self, branches: Collection[str], n_cells: int, seed: int) -> dict[str, Tensor]:
        """Sample ``n_cells`` at the lower end of each branch; row i of all descends from one sample of the root.

        The samples of an ancestor serve all of its children, so that a path above a node is sampled once. The samples
        of a branch do not depend on which others are sampled.

        Parameters
        ----------
        branches
            Names of cell types, or of other branches.
        """
        samples: dict[tuple[Segment, ...], Tensor] = {}
        for branch in branches:
            path = self.path_to_lower_end(branch)
            for i, segment in enumerate(path):
                above, here = path[:i], path[: i + 1]
                if here in samples:
                    continue
                generator = torch_generator(seed, segment.denoiser_branch)
                if above:
                    x = samples[above]
                    x = self.transported(above[-1].denoiser_branch, segment.denoiser_branch, segment.high, x)
                else:
                    x = self.start_branch(segment, n_cells, generator)
                samples[here] = self.decode_branch(segment, x, generator) if segment.high > segment.low else x
        return {branch: samples[self.path_to_lower_end(branch)] for branch in branches}

    def path_to_lower_end(self, branch: str) -> tuple[Segment, ...]:
        """Path from the root to the lower end of a branch, whose last segment is on the branch, if of length 0."""
        path, end = self.hierarchy.path(branch), self.hierarchy.segment(branch)
        if path and path[-1].denoiser_branch == end.denoiser_branch:
            return path
        return (*path, replace(end, high=end.low))

    def transported(self, source: int, target: int, sigma: float, x: Tensor) -> Tensor:
        """Transport cells from one branch of the denoiser to another at a noise level, cells x dimensions."""
        return x if source == target else self.transport_map(source, target, sigma)(x)
