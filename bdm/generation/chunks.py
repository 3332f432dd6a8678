"""Chunks: cells of one population that are sampled together, and parts of a request for several jobs."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bdm._core.parallel import Map
from bdm._core.progress import Item, progress
from bdm._core.seeds import derive, torch_generator
from bdm.errors import InputError, abbreviated
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


@dataclass(frozen=True)
class Part:
    """Share of the requested cells that one of ``n_parts`` jobs generates, numbered from 1."""

    number: int = 1
    n_parts: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read a part as :meth:`__str__` writes it."""
        match = re.fullmatch(r"([1-9]\d*)-of-([1-9]\d*)", text)
        if not match or int(match[1]) > int(match[2]):
            raise InputError(f"There is no part {text!r} of the cells; write 2-of-8 for the second of eight parts.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}-of-{self.n_parts}"

    def select(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items, such as folds or experiments, of this part: every ``n_parts``-th one."""
        return items[self.number - 1 :: self.n_parts]


WHOLE = Part()


def check_complete(numbers: Sequence[int], n_items: int, *, what: str) -> None:
    """Reject parts that together lack an item, such as a fold, or have it twice."""
    twice = [number for number, n in Counter(numbers).items() if n > 1]
    if twice:
        raise InputError(f"{what} {twice[0]} is in two of the parts; give each part once.")
    missing = [str(number) for number in range(1, n_items + 1) if number not in numbers]
    if missing:
        raise InputError(f"the parts lack {what}s {abbreviated(missing, n_shown=10)} of {n_items}; give all parts.")


def chunk_specs(population: str, n_cells: int) -> Iterator[ChunkSpec]:
    """Chunks of growing size, which are sampled whole, so that a cell does not depend on the number requested."""
    start = 0
    while start < n_cells:
        size = min(max(start, MIN_CHUNK), MAX_CHUNK)
        yield ChunkSpec(population, start, size, min(size, n_cells - start))
        start += size


def chunk_specs_of(request: Request, part: Part = WHOLE, *, shared: bool = False) -> list[ChunkSpec]:
    """List the chunks of a part by population, then start; all parts have about the same number of cells to sample."""
    specs = [spec for population, n in request.n_by_population.items() for spec in chunk_specs(population, n)]
    group = np.unique([spec.start for spec in specs], return_inverse=True)[1] if shared else np.arange(len(specs))
    size = np.bincount(group, weights=[spec.size for spec in specs]).astype(int)
    middle = 2 * size.cumsum() - size  # in halves of a cell
    number = 1 + middle * part.n_parts // (2 * size.sum())
    return [spec for spec, i in zip(specs, group, strict=True) if number[i] == part.number]


def rows_of(specs: Iterable[ChunkSpec], request: Request) -> np.ndarray:
    """Rows of the cells of chunks among all requested cells, which are ordered by population, then number."""
    n_cells = request.n_by_population
    first = dict(zip(n_cells, np.cumsum([0, *n_cells.values()]), strict=False))
    starts = [(first[spec.population] + spec.start, spec.n_cells) for spec in specs]
    return np.concatenate([np.arange(0), *(np.arange(start, start + n) for start, n in starts)])


@dataclass(frozen=True)
class Chunk:
    """Cells of one population that were sampled together."""

    population: str
    start: int  # number of cells of the population before these
    x: Tensor  # whitened cells, cells x dimensions


def independent_chunks(
    sampler: Sampler, request: Request, seed: int, run: Map = map, part: Part = WHOLE
) -> Iterator[Chunk]:
    """Sample each cell from its own start at the root; a cell depends on seed, population and number alone."""

    def sample(spec: ChunkSpec) -> Chunk:
        generator = torch_generator(seed, "path", spec.population, spec.start)
        x = sampler.sample(spec.population, spec.size, generator)
        return Chunk(spec.population, spec.start, x[: spec.n_cells])

    specs = chunk_specs_of(request, part)
    yield from _progress(run(sample, specs), len(specs))


def shared_chunks(sampler: Sampler, request: Request, seed: int, run: Map = map, part: Part = WHOLE) -> Iterator[Chunk]:
    """Sample all populations from shared ancestors; all latents of the part are kept in memory."""
    specs = chunk_specs_of(request, part, shared=True)
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
