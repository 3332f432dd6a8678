"""The default prior, a tree of Gaussian mixtures, and its sampler: an ODE solver on branches, transport at nodes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

from bdm._core.seeds import torch_generator
from bdm.autoencoder.moments import Mixture, Normal, PopulationMoments
from bdm.hierarchy.tree import Hierarchy, Segment
from bdm.prior.base import FittedPrior, LatentPrior, PriorData, Sampler
from bdm.prior.populations import BranchPopulations
from bdm.prior.transport import AffineMap, MixtureMap, gaussian_transport, gaussian_trend, normal_flow
from bdm.settings import TrainSettings

logger = logging.getLogger(__name__)

DenoiseOnBranch = Callable[[Tensor, float], Tensor]
RHO = 7  # exponent of the noise levels (Karras et al. 2022, arXiv 2206.00364)
N_LEVELS = 12  # one evaluation of the denoiser each
SIGMA_MIN = 0.1  # in whitened units; below it the denoised x hardly changes


@dataclass(frozen=True, eq=False)
class GaussianMixturePrior(LatentPrior, name="mixture"):
    """A normal for each population; each branch is the mixture of its populations.

    The diffusion of a mixture has a closed form, so nothing is trained. With components k (:class:`BranchPopulations`)
    and their responsibilities r_k at noise level sigma, the denoised x is
    ``sum_k r_k(x) (m_k + C_k (C_k + sigma**2)**-1 (x - m_k))``.
    """

    populations: BranchPopulations

    has_network: ClassVar[bool] = False

    @classmethod
    def from_moments(cls, moments: PopulationMoments, hierarchy: Hierarchy) -> GaussianMixturePrior:
        """Build the prior from the moments of its populations."""
        return GaussianMixturePrior(hierarchy, BranchPopulations.from_moments(moments, hierarchy))

    @classmethod
    def fit(
        cls,
        data: PriorData,
        settings: TrainSettings,
        *,
        seed: int,
        device: str = "auto",
    ) -> FittedPrior:
        """Build the prior from the moments of the populations."""
        return FittedPrior(cls.from_moments(data.moments, data.hierarchy))

    @property
    def description(self) -> str:
        """Short description for reports."""
        return "a normal distribution of each population, in closed form"

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on a device."""
        return replace(self, populations=self.populations.to(torch.device(device)))

    def sampler(self) -> HierarchicalSampler:
        """Return a sampler along the hierarchy."""
        return HierarchicalSampler(self)

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoise cells in closed form, see :meth:`LatentPrior.denoise`."""
        return self.populations.denoised(x, sigma, branch)

    def log_prob(self, x: Tensor, population: str) -> Tensor:
        """Return the log density of cells (cells x dimensions) in a population, in nats."""
        return self.populations.mixture(self.hierarchy.rows[population], 0.0).log_prob(x)

    def condition(self, direction: Tensor, value: float) -> GaussianMixturePrior:
        """Condition the normals and weights of the populations on ``x @ direction == value``."""
        return replace(self, populations=self.populations.conditioned(direction, value))

    def extended(
        self, hierarchy: Hierarchy, tree: Hierarchy, moments: PopulationMoments, state: dict[str, Tensor]
    ) -> Self:
        """Add branches without changing the mixtures of existing ones."""
        added = BranchPopulations.from_moments(moments, tree).to(self.populations.device)
        return replace(self, hierarchy=hierarchy, populations=self.populations.joined(added))


# ---- sampling


@dataclass(frozen=True, eq=False)
class HierarchicalSampler(Sampler):
    """Sample from the root down: denoise cells along each branch, then transport them to its child.

    Cells are whitened, cells x dimensions. Without a network, populations have a closed form, and need no solver.
    Results depend on the arguments and the generator alone, not on earlier calls.
    """

    prior: GaussianMixturePrior
    n_levels: int = N_LEVELS  # of the solver, from the root to a population

    @property
    def hierarchy(self) -> Hierarchy:
        """Tree of the populations."""
        return self.prior.hierarchy

    @cached_property
    def mixture(self) -> Callable[[int, float], Mixture]:
        """Cached :meth:`bdm.prior.populations.BranchPopulations.mixture`."""
        return cache(self.prior.populations.mixture)

    @cached_property
    def transport_map(self) -> Callable[[int, int, float], MixtureMap]:
        """Cached function: transport from one branch to another (by row) at a noise level."""
        return cache(
            lambda source, target, sigma: MixtureMap(
                self.mixture(source, sigma).noised(sigma), self.mixture(target, sigma).noised(sigma)
            )
        )

    @cached_property
    def trend(self) -> Callable[[int, float], AffineMap]:
        """Cached function: :func:`gaussian_trend` of a branch (by row) at a noise level."""
        return cache(lambda branch, sigma: gaussian_trend(self.mixture(branch, sigma).moments, sigma))

    def normal(self, name: str) -> Normal:
        """Return the clean moments of a population."""
        return self.mixture(self.hierarchy.rows[name], 0.0).moments

    def solver_levels(self, high: float, low: float) -> list[float]:
        """Return the noise levels of the solver from ``high`` to ``low``."""
        return noise_levels(high, low, sigma_max=self.hierarchy.sigma_max, n_levels=self.n_levels)

    def solve(self, branch: int, x: Tensor, sigmas: list[float]) -> Tensor:
        """Solve the probability-flow ODE on a branch (by row) along noise levels."""
        device = self.prior.populations.device
        row = torch.tensor([branch], device=device)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return self.prior.denoise(x, torch.tensor([sigma], device=device), row)

        trend = self.trend(branch, sigmas[0])(x).to(device)
        return dpm_solver(denoise, x.to(device), sigmas, trend=trend).cpu()

    def start_branch(self, segment: Segment, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells at the upper end of a branch, cells x dimensions."""
        return sample_noised(self.mixture(segment.row, segment.high), segment.high, n_cells, generator)

    def single_normal(self, segment: Segment) -> Normal | None:
        """Return the normal of a branch that needs no solver: no network, one component."""
        mixture = self.mixture(segment.row, segment.low)  # the lowest level has the most components
        return mixture.moments if mixture.n_components == 1 and not self.prior.has_network else None

    @torch.no_grad()
    def descend_branch(self, segment: Segment, x: Tensor) -> Tensor:
        """Move cells from the upper to the lower end of a branch."""
        if normal := self.single_normal(segment):
            return normal_flow(normal, segment.high, segment.low)(x)
        return self.solve(segment.row, x, self.solver_levels(segment.high, segment.low))

    @torch.no_grad()
    def ascend_branch(self, segment: Segment, x: Tensor) -> Tensor:
        """Move cells from the lower to the upper end of a branch.

        Inverse of :meth:`descend_branch`, except from level 0 to ``SIGMA_MIN``, where the branch is approximated by one
        normal.
        """
        high, branch = segment.high, segment.row
        if normal := self.single_normal(segment):
            return normal_flow(normal, segment.low, high)(x)
        low = min(max(segment.low, SIGMA_MIN), high)
        if low > segment.low:
            x = normal_flow(self.mixture(branch, low).moments, segment.low, low)(x)
        return x if low == high else self.solve(branch, x, self.solver_levels(high, low)[::-1])

    def ascend_path(self, ancestor: int, segments: Sequence[Segment], x: Tensor, generator: torch.Generator) -> Tensor:
        """Move cells up a path (segments top to bottom) to an ancestor (by row)."""
        above = [ancestor, *(segment.row for segment in segments)]
        for parent, segment in reversed(list(zip(above, segments, strict=False))):
            x = self.ascend_branch(segment, x)
            x = self.transport(segment.row, parent, segment.high, x, generator)
        return x

    def descend_path(self, ancestor: int, segments: Sequence[Segment], x: Tensor, generator: torch.Generator) -> Tensor:
        """Move cells of an ancestor (by row) down a path below it."""
        for segment in segments:
            x = self.transport(ancestor, segment.row, segment.high, x, generator)
            x = self.descend_branch(segment, x)
            ancestor = segment.row
        return x

    def transmute(self, x: Tensor, population: str, to: str, generator: torch.Generator) -> Tensor:
        """Convert cells of one population to another through their common ancestor.

        The probability-flow ODE moves cells up to the ancestor, then down. Without a network, optimal transport between
        the two normals at the ancestor's level connects both paths; it preserves the relative position of cells and is
        invertible.
        """
        ancestor = self.hierarchy.common_ancestor(population, to)
        up, down = (self.hierarchy.path_below(ancestor, name) for name in (population, to))
        level, top = ancestor.level, self.hierarchy.rows[ancestor.name]
        if self.prior.has_network:
            return self.descend_path(top, down, self.ascend_path(top, up, x, generator), generator)
        x = normal_flow(self.normal(population), 0, level)(x)
        x = gaussian_transport(self.normal(population), self.normal(to), level)(x)
        return normal_flow(self.normal(to), level, 0)(x)

    def sample(self, population: str, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample independent cells of a population, cells x dimensions.

        With a network, sampling starts at the root.
        """
        if not self.prior.has_network:
            return sample_noised(self.mixture(self.hierarchy.rows[population], 0.0), 0.0, n_cells, generator)
        first, *below = self.hierarchy.path(population)
        x = self.descend_branch(first, self.start_branch(first, n_cells, generator))
        return self.descend_path(first.row, below, x, generator)

    def sample_shared(self, branches: Collection[str], n_cells: int, seed: int) -> dict[str, Tensor]:
        """Sample cells with shared ancestors at the lower end of each branch.

        The samples of a branch do not depend on which other branches are sampled. Transport to all children of a branch
        uses the same random numbers, so that a cell is assigned to the same mixture component for each child.
        """
        samples: dict[tuple[Segment, ...], Tensor] = {}
        root = self.hierarchy.rows[self.hierarchy.root.name]
        for branch in branches:
            path = self.path_to_lower_end(branch)
            for i, segment in enumerate(path):
                above, current = path[:i], path[: i + 1]
                if current in samples:
                    continue
                if above:
                    parent = above[-1].row
                    generator = torch_generator(seed, "transport", parent)
                    x = self.transport(parent, segment.row, segment.high, samples[above], generator)
                else:  # ancestors depend on the root's row, even if it has no length
                    x = self.start_branch(segment, n_cells, torch_generator(seed, root))
                samples[current] = self.descend_branch(segment, x) if segment.high > segment.low else x
        return {branch: samples[self.path_to_lower_end(branch)] for branch in branches}

    def path_to_lower_end(self, branch: str) -> tuple[Segment, ...]:
        """Return the path from the root to the lower end of a branch, with its segment even if that has length 0."""
        path, end = self.hierarchy.path(branch), self.hierarchy.segment(branch)
        if path and path[-1].row == end.row:
            return path
        return (*path, replace(end, high=end.low))

    def transport(self, source: int, target: int, sigma: float, x: Tensor, generator: torch.Generator) -> Tensor:
        """Transport cells from one branch to another (by row) at a noise level."""
        return x if source == target else self.transport_map(source, target, sigma)(x, generator)

    @torch.no_grad()
    def denoise_at_node(self, x: Tensor, branch: str) -> Tensor:
        """Denoise cells at the lower end of a branch."""
        sigma = self.hierarchy.by_name[branch].level
        if sigma == 0:
            return x
        end, device = self.path_to_lower_end(branch)[-1], self.prior.populations.device
        # a branch without length has no network
        denoise = self.prior.denoise if end.high > end.low else self.prior.populations.denoised
        return denoise(x.to(device), torch.tensor([sigma], device=device), torch.tensor([end.row], device=device)).cpu()


def sample_noised(mixture: Mixture, sigma: float, n_cells: int, generator: torch.Generator) -> Tensor:
    """Sample noised cells of a clean mixture, cells x dimensions."""
    return mixture.noised(sigma).sample(n_cells, generator).float()


# ---- solver


def noise_levels(
    high: float, low: float, *, sigma_max: float, n_levels: int, sigma_min: float = SIGMA_MIN
) -> list[float]:
    """Return the noise levels of the solver from ``high`` to ``low``.

    Levels are evenly spaced in ``sigma**(1 / RHO)`` (Karras et al. 2022), as densely as ``n_levels`` levels from
    ``sigma_max`` to ``sigma_min``. Below ``sigma_min``, a single step leads to ``low``.
    """
    if high <= sigma_min:
        return [high, low]
    end = max(low, sigma_min)
    top, bottom = high ** (1 / RHO), end ** (1 / RHO)
    full_range = sigma_max ** (1 / RHO) - sigma_min ** (1 / RHO)
    n_steps = max(1, round((n_levels - 1) * (top - bottom) / full_range))
    inner = [(top + (bottom - top) * step / n_steps) ** RHO for step in range(1, n_steps)]
    return [high, *inner, end] if end == low else [high, *inner, end, low]


def dpm_solver(denoise: DenoiseOnBranch, x: Tensor, sigmas: list[float], *, trend: Tensor | None = None) -> Tensor:
    """Solve the probability-flow ODE by DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095).

    The denoiser is evaluated once per step. Each step is exact for a denoised x that is linear in log sigma,
    extrapolated from the last two evaluations; in the first step, from ``trend``, the derivative of the denoised x by
    log sigma (cells x dimensions). ``sigmas`` decrease to denoise and increase to add noise; only the last may be 0.
    """
    previous, step = None, 0.0
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            return denoised
        if previous is not None:
            trend = (denoised - previous) / step
        ratio = sigma_next / sigma
        step = math.log(ratio)
        middle = denoised if trend is None else denoised + trend * (step / 2)
        x = middle + ratio * (x - middle)
        previous = denoised
    return x
