from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bdm.diffusion.walk import TreeWalk
from bdm.generation.places import WHOLE, Part, Place, places_of
from bdm.generation.request import Request
from bdm.progress import progress
from bdm.seeds import derive, torch_generator
from bdm.threads import Map


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

    def sample(place: Place) -> Chunk:
        generator = torch_generator(seed, "path", place.cell_type, place.start)
        x = walk.independent(place.cell_type, place.size, generator)
        return Chunk(place.cell_type, place.start, x[: place.n_cells])

    wanted = places_of(request, part)
    yield from _progress(run(sample, wanted), len(wanted))


def shared_chunks(walk: TreeWalk, request: Request, seed: int, run: Map = map, part: Part = WHOLE) -> Iterator[Chunk]:
    """Sample all types of a part from the same ancestors, by type; a cell depends on seed, type and place alone.

    All its latents are sampled, and held, before the first chunk is given, as ancestors serve all types.
    """
    wanted = places_of(request, part, shared=True)
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
    return progress(chunks, total=n, doing="generating", unit="chunk")
