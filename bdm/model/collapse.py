import math

import torch

from bdm.diffusion.walk import TreeWalk
from bdm.errors import TrainingError
from bdm.latent.cells import LatentCells
from bdm.latent.whitening import Whitening
from bdm.seeds import derive, torch_generator

N_CELLS = 100  # that are generated of each type, to look at
LEAST_SPREAD = 0.1  # of generated cells, in that of those learnt from; it is about 1 where all is well
FARTHEST = 3  # that the mean of generated cells is off, in the radius of those learnt from; about 0.1 where all is well


def check_types(walk: TreeWalk, cells: LatentCells, whitening: Whitening, *, seed: int) -> None:
    """Generate a few cells of each type, and refuse a model whose cells of a type are all alike, or elsewhere.

    Parameters
    ----------
    cells
        That were learnt from.

    Raises
    ------
    TrainingError
        If there is such a type.
    """
    generated = walk.shared(cells.cell_types, N_CELLS, derive(seed, "look"))
    for code, cell_type in enumerate(cells.cell_types):
        chosen = torch.nonzero(cells.cell_type == code).squeeze(1)
        x = whitening(cells.draw(chosen.repeat(math.ceil(N_CELLS / len(chosen))), torch_generator(seed, "look", code)))
        spread, off = spread_and_distance(generated[cell_type], x)
        if not (spread >= LEAST_SPREAD and off <= FARTHEST):
            found = (
                f"have {spread:.2g} times the spread of those learnt from"
                if spread < LEAST_SPREAD
                else f"are {off:.2g} times their radius away from those learnt from"
            )
            raise TrainingError(
                f"Training went wrong: generated cells of type {cell_type!r} {found}; "
                "look at these cells, or try another seed or more steps."
            )


def spread_and_distance(generated: torch.Tensor, learnt: torch.Tensor) -> tuple[float, float]:
    """Compare two sets of cells of a type in whitened space, each cells x dimensions.

    Returns
    -------
    Variance of the first in that of the second, and distance of their means in the radius of the second, which is taken
    to be no smaller than that of cell types on average.
    """
    variance, expected = (x.double().var(dim=0, correction=0).sum() for x in (generated, learnt))
    radius = expected.clamp(min=learnt.shape[1]).sqrt()
    off = (generated.mean(dim=0) - learnt.mean(dim=0)).norm() / radius
    return float(variance / expected), float(off)
