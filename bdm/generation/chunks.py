"""Chunks: cells of one population that are sampled together."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bdm._core.parallel import Map
from bdm._core.progress import Item, progress
from bdm._core.seeds import derive, torch_generator
from bdm.generation.request import Request
from bdm.prior.base import Sampler

MIN_CHUNK, MAX_CHUNK = 64, 512  # cells that are sampled together; part of what a seed means


@dataclass(frozen=True)
class ChunkSpec:
    """Specification of a chunk of cells of one population."""

    population: str
    start: int  # number of cells of the population before the chunk
    size: int  # number of cells that are sampled, whatever number is requested
    n_cells: int  # number of these cells that are requested


def chunk_specs(population: str, n_cells: int) -> Iterator[ChunkSpec]:
    """Chunks of growing size, which are sampled whole, so that a cell does not depend on the number requested."""
    start = 0
    while start < n_cells:
        size = min(max(start, MIN_CHUNK), MAX_CHUNK)
        yield ChunkSpec(population, start, size, min(size, n_cells - start))
        start += size


def chunk_specs_of(request: Request) -> list[ChunkSpec]:
    """List the chunks of a request by population, then start."""
    return [spec for population, n in request.n_by_population.items() for spec in chunk_specs(population, n)]


@dataclass(frozen=True)
class Chunk:
    """Cells of one population that were sampled together."""

    population: str
    start: int  # number of cells of the population before these
    x: Tensor  # whitened cells, cells x dimensions


def independent_chunks(sampler: Sampler, request: Request, seed: int, run: Map = map) -> Iterator[Chunk]:
    """Sample each cell from its own start at the root; a cell depends on seed, population and number alone."""

    def sample(spec: ChunkSpec) -> Chunk:
        generator = torch_generator(seed, "path", spec.population, spec.start)
        x = sampler.sample(spec.population, spec.size, generator)
        return Chunk(spec.population, spec.start, x[: spec.n_cells])

    specs = chunk_specs_of(request)
    yield from _progress(run(sample, specs), len(specs))


def shared_chunks(sampler: Sampler, request: Request, seed: int, run: Map = map) -> Iterator[Chunk]:
    """Sample all populations from shared ancestors; all latents are kept in memory."""
    specs = chunk_specs_of(request)
    by_start: dict[int, list[ChunkSpec]] = {}
    for spec in specs:
        by_start.setdefault(spec.start, []).append(spec)

    def sample(group: list[ChunkSpec]) -> dict[str, Tensor]:
        first = group[0]
        populations = [spec.population for spec in group]
        samples = sampler.sample_shared(populations, first.size, derive(seed, "ancestors", first.start))
        return {spec.population: samples[spec.population][: spec.n_cells].clone() for spec in group}

    samples = dict(zip(by_start, _progress(run(sample, by_start.values()), len(by_start)), strict=True))
    for spec in specs:
        yield Chunk(spec.population, spec.start, samples[spec.start].pop(spec.population))


def _progress(chunks: Iterator[Item], n: int) -> Iterator[Item]:
    return progress(chunks, total=n, doing="generating", unit="chunk")
