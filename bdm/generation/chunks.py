from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from bdm.diffusion.walk import TreeWalk
from bdm.generation.request import Request
from bdm.generation.threads import Map
from bdm.seeds import derive, torch_generator

SMALLEST, LARGEST = 64, 512  # cells that are sampled together; part of what a seed means


@dataclass(frozen=True)
class Place:
    """Where a chunk of a type's cells begins, how many it always samples, and how many of them are asked for."""

    cell_type: str
    start: int
    size: int
    n_cells: int


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


def places(cell_type: str, n_cells: int) -> Iterator[Place]:
    """Divide a type's cells into chunks, of twice as many cells each until they are large.

    Chunks are sampled whole, so that a cell is the same to the last digit however many are asked for, and a few cells
    cost little.
    """
    start = 0
    while start < n_cells:
        size = min(max(start, SMALLEST), LARGEST)
        yield Place(cell_type, start, size, min(size, n_cells - start))
        start += size


def independent_chunks(walk: TreeWalk, request: Request, seed: int, run: Map = map) -> Iterator[Chunk]:
    """Sample every cell by a path of its own; a cell depends on seed, type and place alone.

    Parameters
    ----------
    run
        Like ``map``, which does one after the other.
    """

    def sample(place: Place) -> Chunk:
        generator = torch_generator(seed, "path", place.cell_type, place.start)
        x = walk.independent(place.cell_type, place.size, generator)
        return Chunk(place.cell_type, place.start, x[: place.n_cells])

    wanted = [place for cell_type, n in request.n_cells.items() for place in places(cell_type, n)]
    yield from _progress(run(sample, wanted), len(wanted))


def shared_chunks(walk: TreeWalk, request: Request, seed: int, run: Map = map) -> Iterator[Chunk]:
    """Sample all types from the same ancestors, by type; a cell depends on seed, type and place alone.

    All latents are sampled, and held, before the first chunk is given, as ancestors serve all types.
    """
    wanted = [place for cell_type, n in request.n_cells.items() for place in places(cell_type, n)]
    by_start: dict[int, list[Place]] = {}
    for place in wanted:
        by_start.setdefault(place.start, []).append(place)

    def sample(together: list[Place]) -> dict[str, Tensor]:
        first = together[0]
        cell_types = [place.cell_type for place in together]
        samples = walk.shared(cell_types, first.size, derive(seed, "ancestors", first.start))
        return {place.cell_type: samples[place.cell_type][: place.n_cells].clone() for place in together}

    samples = dict(zip(by_start, _progress(run(sample, by_start.values()), len(by_start)), strict=True))
    for place in wanted:
        yield Chunk(place.cell_type, place.start, samples[place.start].pop(place.cell_type))


def _progress(chunks: Iterator, n: int) -> Iterator:
    return tqdm(chunks, total=n, disable=None, desc="generating", unit="chunk")
