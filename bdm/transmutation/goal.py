from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from bdm.errors import InputError
from bdm.model.model import BranchedModel

BANDWIDTH = 0.25  # of the median distance between the types that are moved and those of the pairs


class Pair(NamedTuple):
    """Two cell types that a model knows, the second of which the first became."""

    old: str
    new: str


@dataclass(frozen=True)
class Goal:
    """Where cells are to go.

    Attributes
    ----------
    to
        Cell type to move to.
    like
        If given, the model need not know ``to``: cells go from their type as the types of these pairs went, and most as
        those that are nearest to it.
    """

    to: str
    like: tuple[Pair, ...] = ()

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Types that the model has to know."""
        return tuple(name for pair in self.like for name in pair) if self.like else (self.to,)


def read_pair(text: str, cell_types: tuple[str, ...]) -> Pair:
    """Read ``OLD=NEW``, where either name may have the sign in it.

    Raises
    ------
    InputError
        If no division gives two of the cell types.
    """
    parts = text.split("=")
    divided = [Pair("=".join(parts[:i]), "=".join(parts[i:])) for i in range(1, len(parts))]
    for pair in divided:
        if set(pair) <= set(cell_types):
            return pair
    raise InputError(f"--like {text} is not of the form OLD=NEW with two types of the model: {', '.join(cell_types)}.")


def weights(model: BranchedModel, cell_type: str, like: tuple[Pair, ...]) -> pd.Series:
    """Weigh pairs for a cell type by a Gaussian kernel of the distance of their old type's mean to its own.

    Distances are in whitened space; the kernel's width is ``BANDWIDTH`` times their median.
    """
    distance = torch.stack([(mean(model, pair.old) - mean(model, cell_type)).norm() for pair in like]).double()
    width = BANDWIDTH * float(distance.quantile(0.5))
    log_weight = -((distance / width) ** 2) / 2 if width > 0 else -distance
    return pd.Series(torch.softmax(log_weight, dim=0).numpy(), index=pd.MultiIndex.from_tuples(like))


def shift(model: BranchedModel, cell_type: str, like: tuple[Pair, ...]) -> Tensor:
    """Mean difference between the types of pairs, weighted for a cell type, in whitened space."""
    differences = torch.stack([mean(model, pair.new) - mean(model, pair.old) for pair in like])
    return torch.from_numpy(weights(model, cell_type, like).to_numpy(dtype="float32")) @ differences


def mean(model: BranchedModel, cell_type: str) -> Tensor:
    """Mean of a type in whitened space."""
    return model.moments.mixture((cell_type,)).mean
