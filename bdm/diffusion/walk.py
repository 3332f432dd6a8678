from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from bdm.arrays import matrix_power
from bdm.diffusion.denoiser import BranchedDenoiser
from bdm.diffusion.sampler import SIGMA_MIN, Denoise, dpm_solver, noise_levels
from bdm.diffusion.transport import AffineMap, gaussian_transport
from bdm.hierarchy.tree import Hierarchy, Segment
from bdm.latent.moments import Normal
from bdm.seeds import torch_generator
from bdm.settings import SamplerSettings

Transport = Callable[[Normal, Normal, float], Callable[[Tensor], Tensor]]

CHURN = 0.5  # more noise than that costs as much fidelity as the denoiser has errors


@dataclass(frozen=True, eq=False)
class TreeWalk:
    """Walks samples down the tree: run a branch's interval, hand over to each child, go on.

    Everything is a function of the arguments and the generator, so cells do not depend on what else is sampled.

    Attributes
    ----------
    transport
        Gives the map of cells (cells x dimensions) from a parent's population to a child's, both without noise, at the
        noise level of their branch point.
    """

    denoiser: BranchedDenoiser
    hierarchy: Hierarchy
    settings: SamplerSettings = field(default=SamplerSettings())
    transport: Transport = gaussian_transport

    def __post_init__(self):
        for method in (self.population, self.transport_between, self.trend):
            object.__setattr__(self, method.__name__, cache(method))

    def population(self, number: int) -> Normal:
        """Moments of the cells that a branch of the denoiser was trained on, without noise."""
        return self.denoiser.population(number)

    def transport_between(self, parent: int, child: int, sigma: float) -> Callable[[Tensor], Tensor]:
        """Map of cells from one branch of the denoiser to another at a noise level."""
        return self.transport(self.population(parent), self.population(child), sigma)

    def trend(self, number: int, sigma: float) -> AffineMap:
        """Estimate the derivative of the denoised x by log sigma along x's way, as if the branch were normal."""
        population = self.population(number)
        covariance = population.covariance.double()
        noised = torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance), dtype=torch.float64))
        matrix = -(sigma**2) * covariance @ noised @ noised
        return AffineMap(population.mean, matrix.to(population.mean.dtype), torch.zeros_like(population.mean))

    def start(self, segment: Segment, n_cells: int, generator: torch.Generator) -> Tensor:
        """Draw cells at the upper end of a branch, from the normal that has its population's moments."""
        normal = self.population(segment.number)
        noise = torch.randn(n_cells, len(normal.mean), generator=generator)
        covariance = normal.covariance + segment.high**2 * torch.eye(len(normal.mean))
        return normal.mean + noise @ matrix_power(covariance, 0.5)

    @torch.no_grad()
    def run(self, segment: Segment, x: Tensor, generator: torch.Generator) -> Tensor:
        """Denoise cells from the upper to the lower end of a branch, cells x dimensions."""
        where = next(self.denoiser.parameters()).device
        sigmas = self.levels(segment.high, segment.low)
        churn = CHURN if self.settings.stochastic else 0.0
        trend = (1 - churn) * self.trend(segment.number, segment.high)(x)
        denoise = self.denoise_on(segment.number)
        return dpm_solver(denoise, x.to(where), sigmas, trend=trend.to(where), churn=churn, generator=generator).cpu()

    def levels(self, high: float, low: float) -> list[float]:
        """Noise levels that cells stop at on a part of the way."""
        return noise_levels(high, low, sigma_max=self.hierarchy.sigma_max, n_levels=self.settings.n_levels)

    def denoise_on(self, number: int) -> Denoise:
        """Denoiser of one of its branches."""
        where = next(self.denoiser.parameters()).device
        branch = torch.tensor([number], device=where)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return self.denoiser(x, torch.tensor([sigma], device=where), branch)

        return denoise

    @torch.no_grad()
    def rise(self, segment: Segment, x: Tensor) -> Tensor:
        """Follow the probability-flow ODE from the lower to the upper end of a branch, cells x dimensions.

        It undoes :meth:`run`, but for the first steps out of 0, which are taken as if the branch were normal.
        """
        population = self.population(segment.number)
        low = min(max(segment.low, SIGMA_MIN), segment.high)
        if low > segment.low:
            x = gaussian_transport(population.noised(segment.low), population.noised(low), 0)(x)
        if low == segment.high:
            return x
        sigmas = self.levels(segment.high, low)[::-1]
        where = next(self.denoiser.parameters()).device
        trend = self.trend(segment.number, low)(x).to(where)
        return dpm_solver(self.denoise_on(segment.number), x.to(where), sigmas, trend=trend).cpu()

    def ascend(self, ancestor: int, segments: Sequence[Segment], x: Tensor) -> Tensor:
        """Bring cells up a way (given from top to bottom) to an ancestor, by the same steps as down."""
        above = [ancestor, *(segment.number for segment in segments)]
        for parent, segment in reversed(list(zip(above, segments, strict=False))):
            x = self.rise(segment, x)
            x = self.handed_over(segment.number, parent, segment.high, x)
        return x

    def descend(self, ancestor: int, segments: Sequence[Segment], x: Tensor, generator: torch.Generator) -> Tensor:
        """Bring an ancestor's cells down a way, cells x dimensions."""
        for segment in segments:
            x = self.handed_over(ancestor, segment.number, segment.high, x)
            x = self.run(segment, x, generator)
            ancestor = segment.number
        return x

    def move(self, x: Tensor, cell_type: str, to: str, generator: torch.Generator) -> Tensor:
        """Bring cells of one type up to the common ancestor with another and down to that, cells x dimensions.

        The way up is the probability-flow ODE; with ``settings.stochastic`` it is fresh noise.
        """
        ancestor = self.hierarchy.common_ancestor(cell_type, to)
        numbers = self.hierarchy.numbers
        if self.settings.stochastic:
            x = x + ancestor.level * torch.randn(x.shape, generator=generator)
            x = self.handed_over(numbers[cell_type], numbers[ancestor.name], ancestor.level, x)
        else:
            x = self.ascend(numbers[ancestor.name], self.hierarchy.path_below(ancestor, cell_type), x)
        return self.descend(numbers[ancestor.name], self.hierarchy.path_below(ancestor, to), x, generator)

    def independent(self, cell_type: str, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells of one type, every one by a path of its own, cells x dimensions."""
        first, *later = self.hierarchy.path(cell_type)
        x = self.run(first, self.start(first, n_cells, generator), generator)
        return self.descend(first.number, later, x, generator)

    def shared(self, cell_types: Collection[str], n_cells: int, seed: int) -> dict[str, Tensor]:
        """Sample ``n_cells`` of each of many types; row i of every type descends from one sample of the root.

        Each ancestor's samples serve all its children, so that the way above a branch point is walked once. What else
        is sampled makes no difference to a type's cells.

        Parameters
        ----------
        cell_types
            Or other branches, whose cells are sampled down to their lower ends.
        """
        samples: dict[tuple[Segment, ...], Tensor] = {}
        for cell_type in cell_types:
            way = self.way(cell_type)
            for i, segment in enumerate(way):
                above, here = way[:i], way[: i + 1]
                if here in samples:
                    continue
                generator = torch_generator(seed, segment.number)
                if above:
                    x = self.handed_over(above[-1].number, segment.number, segment.high, samples[above])
                else:
                    x = self.start(segment, n_cells, generator)
                samples[here] = self.run(segment, x, generator) if segment.high > segment.low else x
        return {cell_type: samples[self.way(cell_type)] for cell_type in cell_types}

    def way(self, branch: str) -> tuple[Segment, ...]:
        """Way of a branch's cells down to its lower end, which is on the branch itself, be that of no length."""
        path, end = self.hierarchy.path(branch), self.hierarchy.segment(branch)
        if path and path[-1].number == end.number:
            return path
        return (*path, replace(end, high=end.low))

    def handed_over(self, parent: int, child: int, sigma: float, x: Tensor) -> Tensor:
        """Cells of one branch as another's, at a noise level, cells x dimensions."""
        return x if parent == child else self.transport_between(parent, child, sigma)(x)
