"""Sampling along the hierarchy: down and up its branches by a solver, with transport at nodes."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from bdm._core.seeds import torch_generator
from bdm.hierarchy.tree import Hierarchy, Segment
from bdm.latent.moments import Mixture, Normal
from bdm.prior.base import Sampler
from bdm.prior.transport import (
    AffineMap,
    MixtureMap,
    gaussian_transport,
    gaussian_trend,
    normal_flow,
)
from bdm.settings import SamplerSettings

DenoiseOnBranch = Callable[[Tensor, float], Tensor]
RHO = 7  # of the grid of Karras et al. 2022 (arXiv 2206.00364)
SIGMA_MIN = 0.1  # in whitened units; below it the denoised x hardly changes


class DenoisingPrior(Protocol):
    """What the sampler needs of a prior; :class:`bdm.prior.mixture.GaussianMixturePrior` and its like have it."""

    @property
    def hierarchy(self) -> Hierarchy:
        """Tree of the populations."""

    @property
    def learned(self) -> Tensor:
        """Whether a network is used on each branch, by row."""

    @property
    def device(self) -> torch.device:
        """Where the prior computes."""

    def population(self, branch: int, sigma: float) -> Mixture:
        """Mixture, without noise, of the cells of a branch, with the components that it has at a noise level."""

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoised x, see :meth:`bdm.prior.base.LatentPrior.denoise`."""

    def closed_form(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoised x without a network."""


@dataclass(frozen=True, eq=False)
class HierarchicalSampler(Sampler):
    """Sampler of the hierarchy: decode a branch from its upper to its lower end, transport cells to its children.

    Where the network has learned nothing on a path, the closed form of its populations replaces the solver. Everything
    is a function of the arguments and the generator, so cells do not depend on what else is sampled.
    """

    prior: DenoisingPrior
    settings: SamplerSettings = field(default=SamplerSettings())

    @property
    def hierarchy(self) -> Hierarchy:
        """Tree of the populations."""
        return self.prior.hierarchy

    @cached_property
    def learned(self) -> list[bool]:
        """Whether a network is used on each branch, by row."""
        learned: list[bool] = self.prior.learned.tolist()
        return learned

    @cached_property
    def population(self) -> Callable[[int, float], Mixture]:
        """Function that returns the mixture, without noise, of the row of a branch at a noise level."""
        return cache(self.prior.population)

    @cached_property
    def transport_map(self) -> Callable[[int, int, float], MixtureMap]:
        """Function that returns the map of cells from the row of one branch to another at a noise level."""

        @cache
        def transport_map(source: int, target: int, sigma: float) -> MixtureMap:
            return MixtureMap(*(self.population(branch, sigma).noised(sigma) for branch in (source, target)))

        return transport_map

    @cached_property
    def trend(self) -> Callable[[int, float], AffineMap]:
        """Function that returns the trend of the denoised x on a branch at a noise level, as if it were normal."""

        @cache
        def trend(branch: int, sigma: float) -> AffineMap:
            return gaussian_trend(self.population(branch, sigma).moments, sigma)

        return trend

    def normal(self, name: str) -> Normal:
        """Moments of a population, without noise."""
        return self.population(self.hierarchy.rows[name], 0.0).moments

    def has_learned(self, segment: Segment) -> bool:
        """Whether the network is used on a branch."""
        return self.learned[segment.row]

    @property
    def device(self) -> torch.device:
        """Where the prior denoises."""
        return self.prior.device

    def levels(self, high: float, low: float) -> list[float]:
        """Noise levels of the solver on a part of a path."""
        return noise_levels(high, low, sigma_max=self.hierarchy.sigma_max, n_levels=self.settings.n_levels)

    def denoise_on(self, row: int) -> DenoiseOnBranch:
        """Return a function that denoises on one branch."""
        device = self.device
        branch = torch.tensor([row], device=device)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return self.prior.denoise(x, torch.tensor([sigma], device=device), branch)

        return denoise

    def start_branch(self, segment: Segment, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells at the upper end of a branch, cells x dimensions."""
        return start(self.population(segment.row, segment.high), segment.high, n_cells, generator)

    def one_normal(self, segment: Segment, low: float) -> Normal | None:
        """Moments of the cells of a branch from a noise level up, if these are one normal without a network."""
        population = self.population(segment.row, low)  # with the most components
        return population.moments if population.n_components == 1 and not self.has_learned(segment) else None

    @torch.no_grad()
    def decode_branch(self, segment: Segment, x: Tensor) -> Tensor:
        """Denoise cells from the upper to the lower end of a branch, cells x dimensions."""
        high, low, branch = segment.high, segment.low, segment.row
        if normal := self.one_normal(segment, low):
            return normal_flow(normal, high, low)(x)
        trend = self.trend(branch, high)(x).to(self.device)
        return dpm_solver(self.denoise_on(branch), x.to(self.device), self.levels(high, low), trend=trend).cpu()

    @torch.no_grad()
    def encode_branch(self, segment: Segment, x: Tensor) -> Tensor:
        """Follow the probability-flow ODE from the lower to the upper end of a branch, cells x dimensions.

        Inverse of :meth:`decode_branch`, except from level 0 to ``SIGMA_MIN``, as if the branch were normal.
        """
        high, branch = segment.high, segment.row
        if normal := self.one_normal(segment, segment.low):
            return normal_flow(normal, segment.low, high)(x)
        low = min(max(segment.low, SIGMA_MIN), high)
        if low > segment.low:
            x = normal_flow(self.population(branch, low).moments, segment.low, low)(x)
        if low == high:
            return x
        trend = self.trend(branch, low)(x).to(self.device)
        levels = self.levels(high, low)[::-1]
        return dpm_solver(self.denoise_on(branch), x.to(self.device), levels, trend=trend).cpu()

    def encode_path(self, ancestor: int, segments: Sequence[Segment], x: Tensor, generator: torch.Generator) -> Tensor:
        """Encode cells along a path (given from top to bottom) up to an ancestor, given by its row."""
        above = [ancestor, *(segment.row for segment in segments)]
        for parent, segment in reversed(list(zip(above, segments, strict=False))):
            x = self.encode_branch(segment, x)
            x = self.transported(segment.row, parent, segment.high, x, generator)
        return x

    def decode_path(self, ancestor: int, segments: Sequence[Segment], x: Tensor, generator: torch.Generator) -> Tensor:
        """Decode cells of an ancestor, given by its row, along a path below it, cells x dimensions."""
        for segment in segments:
            x = self.transported(ancestor, segment.row, segment.high, x, generator)
            x = self.decode_branch(segment, x)
            ancestor = segment.row
        return x

    def transmute(self, x: Tensor, population: str, to: str, generator: torch.Generator) -> Tensor:
        """Encode cells (cells x dimensions) up to the common ancestor of two populations, and decode them down.

        They are encoded by the probability-flow ODE. Where no branch between the ancestor and either has a network,
        both are normal, and transport at the level of the ancestor maps one to the other: cells keep their place, and
        return if they are transmuted back.
        """
        ancestor = self.hierarchy.common_ancestor(population, to)
        up, down = (self.hierarchy.path_below(ancestor, name) for name in (population, to))
        level, top = ancestor.level, self.hierarchy.rows[ancestor.name]
        if any(self.has_learned(segment) for segment in (*up, *down)):
            return self.decode_path(top, down, self.encode_path(top, up, x, generator), generator)
        x = normal_flow(self.normal(population), 0, level)(x)
        x = gaussian_transport(self.normal(population), self.normal(to), level)(x)
        return normal_flow(self.normal(to), level, 0)(x)

    def sample(self, population: str, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells of one population, each from its own start, cells x dimensions.

        The start is at the upper end of the first branch with a network; below the last one, the population is normal.
        """
        path = self.hierarchy.path(population)
        learned = [i for i, segment in enumerate(path) if self.has_learned(segment)]
        if not learned:
            whole = self.population(self.hierarchy.rows[population], 0.0)
            return start(whole, 0.0, n_cells, generator)
        first, last = path[learned[0]], path[learned[-1]]
        x = self.decode_branch(first, self.start_branch(first, n_cells, generator))
        x = self.decode_path(first.row, path[learned[0] + 1 : learned[-1] + 1], x, generator)
        below = [] if last is path[-1] else [replace(path[-1], high=last.low)]
        return self.decode_path(last.row, below, x, generator)

    def sample_shared(self, branches: Collection[str], n_cells: int, seed: int) -> dict[str, Tensor]:
        """Sample ``n_cells`` at the lower end of each branch; row i of all descends from one sample of the root.

        The samples of a branch do not depend on which others are sampled. Transport to all children of a branch has the
        same random numbers, so that a cell is of the same component of the mixture for all.
        """
        samples: dict[tuple[Segment, ...], Tensor] = {}
        root = self.hierarchy.rows[self.hierarchy.root.name]
        for branch in branches:
            path = self.path_to_lower_end(branch)
            for i, segment in enumerate(path):
                above, here = path[:i], path[: i + 1]
                if here in samples:
                    continue
                generator = torch_generator(seed, segment.row)
                if above:
                    parent = above[-1].row
                    drawn = torch_generator(seed, "transport", parent)
                    x = self.transported(parent, segment.row, segment.high, samples[above], drawn)
                else:  # on the root, unless it has no length
                    drawn = generator if segment.row == root else torch_generator(seed, root)
                    x = self.start_branch(segment, n_cells, drawn)
                samples[here] = self.decode_branch(segment, x) if segment.high > segment.low else x
        return {branch: samples[self.path_to_lower_end(branch)] for branch in branches}

    def path_to_lower_end(self, branch: str) -> tuple[Segment, ...]:
        """Path from the root to the lower end of a branch, whose last segment is on the branch, if of length 0."""
        path, end = self.hierarchy.path(branch), self.hierarchy.segment(branch)
        if path and path[-1].row == end.row:
            return path
        return (*path, replace(end, high=end.low))

    def transported(self, source: int, target: int, sigma: float, x: Tensor, generator: torch.Generator) -> Tensor:
        """Transport cells from the row of one branch to another at a noise level, cells x dimensions."""
        return x if source == target else self.transport_map(source, target, sigma)(x, generator)

    @torch.no_grad()
    def denoised(self, x: Tensor, branch: str) -> Tensor:
        """Denoise cells at the lower end of a branch, cells x dimensions; by the closed form if it has no length."""
        sigma = self.hierarchy.by_name[branch].level
        if sigma == 0:
            return x
        end, device = self.path_to_lower_end(branch)[-1], self.device
        x, level = x.to(device), torch.tensor([sigma], device=device)
        denoise = self.prior.denoise if end.high > end.low else self.prior.closed_form
        return denoise(x, level, torch.tensor([end.row], device=device)).cpu()


def start(population: Mixture, sigma: float, n_cells: int, generator: torch.Generator) -> Tensor:
    """Sample cells of a population at a noise level, cells x dimensions."""
    return population.noised(sigma).sample(n_cells, generator).float()


# ---- solver


def noise_levels(
    high: float, low: float, *, sigma_max: float, n_levels: int, sigma_min: float = SIGMA_MIN
) -> list[float]:
    """Noise levels of the solver on a branch from ``high`` down to ``low``, both included.

    Evenly spaced in ``sigma**(1 / RHO)`` (Karras et al. 2022), as dense as ``n_levels`` levels above 0 on a whole path
    from ``sigma_max`` through ``sigma_min`` to 0; a branch has at least one step.
    """
    if high <= sigma_min:
        return [high, low]
    end = max(low, sigma_min)
    top, bottom = high ** (1 / RHO), end ** (1 / RHO)
    whole = sigma_max ** (1 / RHO) - sigma_min ** (1 / RHO)
    n_steps = max(1, round((n_levels - 1) * (top - bottom) / whole))
    inner = [(top + (bottom - top) * step / n_steps) ** RHO for step in range(1, n_steps)]
    return [high, *inner, end] if end == low else [high, *inner, end, low]


def dpm_solver(denoise: DenoiseOnBranch, x: Tensor, sigmas: list[float], *, trend: Tensor | None = None) -> Tensor:
    """Follow the probability-flow equation through noise levels by DPM-Solver++(2M).

    The denoiser is evaluated once a step. Each step solves the equation exactly for a denoised x that is extrapolated
    from the last two, linearly in the logarithm of sigma (Lu et al. 2022, arXiv 2211.01095); the first extrapolates by
    ``trend``, its derivative by log sigma (cells x dimensions). ``sigmas`` go down to generate and up to encode; only
    the last may be 0.
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
        x = middle + ratio * (x - middle)
        before = denoised
    return x
