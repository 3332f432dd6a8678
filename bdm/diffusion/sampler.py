"""Sampling along the hierarchy: noise levels, start, solver and transport, and the walk down and up its branches."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from bdm.arrays import matrix_power
from bdm.diffusion.denoiser import BranchedDenoiser
from bdm.hierarchy.tree import Hierarchy, Segment
from bdm.latent.moments import Normal
from bdm.seeds import torch_generator
from bdm.settings import SamplerSettings

Denoise = Callable[[Tensor, float], Tensor]
RHO = 7  # of the grid of Karras et al. 2022 (arXiv 2206.00364)
SIGMA_MIN = 0.1  # in whitened units; below it the denoised x hardly changes


class Start(Protocol):
    """Samples cells of a population at a noise level; :func:`gaussian_start` by default."""

    def __call__(self, population: Normal, sigma: float, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample ``n_cells``, cells x dimensions."""


class Solver(Protocol):
    """Follows the diffusion through noise levels; :func:`dpm_solver` by default, which describes the arguments."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: list[float],
        *,
        trend: Tensor | None = None,
        churn: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return cells at the last noise level, cells x dimensions."""


class Transport(Protocol):
    """Computes a map of cells from one population to another; :func:`gaussian_transport` by default."""

    def __call__(self, source: Normal, target: Normal, sigma: float) -> Callable[[Tensor], Tensor]:
        """Return the map of noised cells (cells x dimensions), given the moments of both populations without noise."""


def noise_levels(
    high: float, low: float, *, sigma_max: float, n_levels: int, sigma_min: float = SIGMA_MIN
) -> list[float]:
    """Noise levels of the solver on a branch from ``high`` down to ``low``, both included.

    They are evenly spaced in ``sigma**(1 / RHO)``, as in Karras et al. 2022, and as dense as on a path from
    ``sigma_max`` through ``sigma_min`` to 0 in ``n_levels`` steps; a branch has at least one step.

    Parameters
    ----------
    n_levels
        Levels above 0 on a whole path, at each of which the denoiser is evaluated once.
    """
    if high <= sigma_min:
        return [high, low]
    end = max(low, sigma_min)
    top, bottom = high ** (1 / RHO), end ** (1 / RHO)
    whole = sigma_max ** (1 / RHO) - sigma_min ** (1 / RHO)
    n_steps = max(1, round((n_levels - 1) * (top - bottom) / whole))
    inner = [(top + (bottom - top) * step / n_steps) ** RHO for step in range(1, n_steps)]
    return [high, *inner, end] if end == low else [high, *inner, end, low]


def gaussian_start(population: Normal, sigma: float, n_cells: int, generator: torch.Generator) -> Tensor:
    """Sample cells at a noise level from the normal with the moments of their population, cells x dimensions."""
    noise = torch.randn(n_cells, len(population.mean), generator=generator)
    return population.mean + noise @ matrix_power(population.noised(sigma).covariance, 0.5)


def dpm_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: list[float],
    *,
    trend: Tensor | None = None,
    churn: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Follow the diffusion through noise levels by DPM-Solver++(2M), with one evaluation of the denoiser per step.

    Each step solves the equation exactly for a denoised x that is extrapolated from the last two, linearly in the
    logarithm of sigma (Lu et al. 2022, arXiv 2211.01095). The first step extrapolates by ``trend``.

    Parameters
    ----------
    denoise
        Denoised x at a noise level.
    x
        Cells at noise level ``sigmas[0]``, cells x dimensions.
    sigmas
        Noise levels in the order of the steps: downwards to generate, upwards to encode; only the last may be 0.
    trend
        Estimate of the derivative of the denoised x by log sigma at the start, cells x dimensions; 0 if not given.
    churn
        Rate at which fresh noise replaces the noise of the cells on the way down: 0 for the probability-flow ODE, 1
        for the reverse-time SDE. Needs the generator.
    """
    before, step = None, 0.0
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            return denoised
        if before is not None:
            trend = (denoised - before) / step
        ratio = sigma_next / sigma
        step = math.log(ratio)
        middle = denoised if trend is None else denoised + trend * (step / 2)
        x = middle + ratio ** (1 + churn) * (x - middle)
        if churn:
            fresh = sigma_next * (1 - ratio ** (2 * churn)) ** 0.5
            x = x + fresh * torch.randn(x.shape, generator=generator).to(x)
        before = denoised
    return x


@dataclass(frozen=True)
class AffineMap:
    """The map x -> target + (x - source) A, cells x dimensions."""

    source: Tensor
    matrix: Tensor
    target: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Map cells, cells x dimensions."""
        return self.target + (x - self.source) @ self.matrix


def gaussian_transport(source: Normal, target: Normal, sigma: float) -> AffineMap:
    """Optimal transport map between two noised populations, both taken as normal.

    With S = covariance + sigma**2 I, the map ``m_u + A (x - m_v)``,
    ``A = S_v^-1/2 (S_v^1/2 S_u S_v^1/2)^1/2 S_v^-1/2``, brings samples of the source v, such as the mixture of a parent
    branch, to the distribution of the target u (Dowson & Landau 1982, J Multivar Anal 12:450).

    Parameters
    ----------
    source, target
        Moments of the cells of two branches without noise.
    sigma
        Noise level of their node.
    """
    noise = sigma**2 * torch.eye(len(source.mean), dtype=torch.float64)
    from_, to = source.covariance.double() + noise, target.covariance.double() + noise
    root, inverse_root = matrix_power(from_, 0.5), matrix_power(from_, -0.5)
    matrix = inverse_root @ matrix_power(root @ to @ root, 0.5) @ inverse_root
    return AffineMap(source.mean, matrix.to(source.mean.dtype), target.mean)


def gaussian_trend(population: Normal, sigma: float) -> AffineMap:
    """Compute the derivative of the denoised x by log sigma along the path of x, for a normal population."""
    covariance = population.covariance.double()
    noised = torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance), dtype=torch.float64))
    matrix = -(sigma**2) * covariance @ noised @ noised
    return AffineMap(population.mean, matrix.to(population.mean.dtype), torch.zeros_like(population.mean))


CHURN = 0.5  # more noise than that costs as much fidelity as the denoiser has errors


@dataclass(frozen=True, eq=False)
class TreeWalk:
    """Sampler of the hierarchy: decode a branch from its upper to its lower end, transport cells to its children.

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
