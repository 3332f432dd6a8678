"""Chunks: cells of one type that are sampled together, and parts of a request for several jobs."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bdm.diffusion.walk import TreeWalk
from bdm.errors import InputError
from bdm.generation.request import Request
from bdm.progress import progress
from bdm.seeds import derive, torch_generator
from bdm.threads import Map

SMALLEST, LARGEST = 64, 512  # cells that are sampled together; part of what a seed means


@dataclass(frozen=True)
class ChunkSpec:
    """Where a chunk of a type's cells begins, how many it always samples, and how many of them are asked for."""

    cell_type: str
    start: int
    size: int
    n_cells: int


@dataclass(frozen=True)
class Part:
    """One of ``n_parts`` jobs that generate a request's cells, numbered from 1."""

    number: int = 1
    n_parts: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read a part as :meth:`__str__` writes it.

        Raises
        ------
        InputError
            If the text tells no part, or one that there is not.
        """
        match = re.fullmatch(r"([1-9]\d*)-of-([1-9]\d*)", text)
        if not match or int(match[1]) > int(match[2]):
            raise InputError(f"There is no part {text!r} of the cells; write 2-of-8 for the second of eight.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}-of-{self.n_parts}"


WHOLE = Part()


def chunk_specs(cell_type: str, n_cells: int) -> Iterator[ChunkSpec]:
    """Divide a type's cells into chunks, of twice as many cells each until they are large.

    Chunks are sampled whole, so that a cell is the same to the last digit however many are asked for, and a few cells
    cost little.
    """
    start = 0
    while start < n_cells:
        size = min(max(start, SMALLEST), LARGEST)
        yield ChunkSpec(cell_type, start, size, min(size, n_cells - start))
        start += size


def chunk_specs_of(request: Request, part: Part = WHOLE, *, shared: bool = False) -> list[ChunkSpec]:
    """List a part's chunks, by type, then start; all parts have about as many cells to sample.

    Parameters
    ----------
    shared
        Whether all types share ancestors, so that chunks of one start are sampled together and stay in one part. Else
        a part's chunks follow one another.
    """
    every = [place for cell_type, n in request.n_cells.items() for place in chunk_specs(cell_type, n)]
    together = np.unique([place.start for place in every], return_inverse=True)[1] if shared else np.arange(len(every))
    work = np.bincount(together, weights=[place.size for place in every]).astype(int)
    middle = 2 * work.cumsum() - work  # in halves of a cell
    number = 1 + middle * part.n_parts // (2 * work.sum())
    return [place for place, i in zip(every, together, strict=True) if number[i] == part.number]


def rows_at(request: Request, wanted: Iterable[ChunkSpec]) -> np.ndarray:
    """Give the rows of the cells at some places among all cells, which are by type, then number."""
    n_cells = request.n_cells
    first = dict(zip(n_cells, np.cumsum([0, *n_cells.values()]), strict=False))
    starts = [(first[place.cell_type] + place.start, place.n_cells) for place in wanted]
    return np.concatenate([np.arange(0), *(np.arange(start, start + n) for start, n in starts)])


@dataclass(frozen=True)
class Chunk:
    """Cells of one type that were sampled together.

    Attributes
    ----------
    start
        Number of the type's cells before these.
    x
        Whitened cells, cells x dimensions.
    """

    cell_type: str
    start: int
    x: Tensor


def independent_chunks(
    walk: TreeWalk, request: Request, seed: int, run: Map = map, part: Part = WHOLE
) -> Iterator[Chunk]:
    """Sample every cell of a part by a path of its own; a cell depends on seed, type and place alone.

    Parameters
    ----------
    run
        Like ``map``, which does one after the other.
    """

    def sample(place: ChunkSpec) -> Chunk:
        generator = torch_generator(seed, "path", place.cell_type, place.start)
        x = walk.independent(place.cell_type, place.size, generator)
        return Chunk(place.cell_type, place.start, x[: place.n_cells])

    wanted = chunk_specs_of(request, part)
    yield from _progress(run(sample, wanted), len(wanted))


def shared_chunks(walk: TreeWalk, request: Request, seed: int, run: Map = map, part: Part = WHOLE) -> Iterator[Chunk]:
    """Sample all types of a part from the same ancestors, by type; a cell depends on seed, type and place alone.

    All its latents are sampled, and held, before the first chunk is given, as ancestors serve all types.
    """
    wanted = chunk_specs_of(request, part, shared=True)
    by_start: dict[int, list[ChunkSpec]] = {}
    for place in wanted:
        by_start.setdefault(place.start, []).append(place)

    def sample(together: list[ChunkSpec]) -> dict[str, Tensor]:
        first = together[0]
        cell_types = [place.cell_type for place in together]
        samples = walk.shared(cell_types, first.size, derive(seed, "ancestors", first.start))
        return {place.cell_type: samples[place.cell_type][: place.n_cells].clone() for place in together}

    samples = dict(zip(by_start, _progress(run(sample, by_start.values()), len(by_start)), strict=True))
    for place in wanted:
        yield Chunk(place.cell_type, place.start, samples[place.start].pop(place.cell_type))


def _progress(chunks: Iterator, n: int) -> Iterator:
    return progress(chunks, total=n, doing="generating", unit="chunk")
