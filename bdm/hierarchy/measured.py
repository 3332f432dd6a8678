from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bdm.hierarchy.levels import MIN_LEVEL, branch_level
from bdm.hierarchy.topology import Clade


@dataclass(frozen=True)
class MeasuredClade:
    """Clade with the noise level at which its children part, and the moments of the type means below it.

    Attributes
    ----------
    members
        Indices of its types.
    mean, mean_square
        Over its types' means m: the average of m (dimensions) and of ``|m|**2``.
    """

    members: tuple[int, ...]
    children: tuple["MeasuredClade", ...]
    level: float
    mean: np.ndarray
    mean_square: float


def measure(clade: Clade, means: np.ndarray, index: dict[str, int], *, threshold: float) -> MeasuredClade:
    """Give every node of a tree its level, which comes from its merge height and never falls below its children's.

    Parameters
    ----------
    means
        Type means in whitened space, types x dimensions.
    index
        Row of ``means`` of each cell type.
    """
    if not clade.children:
        mean = means[index[clade.name]]
        return MeasuredClade((index[clade.name],), (), 0.0, mean, float(mean @ mean))
    children = tuple(measure(child, means, index, threshold=threshold) for child in clade.children)
    weight = np.array([len(child.members) for child in children], dtype=float)
    level = float(branch_level(np.sqrt(merge_height(children)), threshold=threshold))
    return MeasuredClade(
        tuple(member for child in children for member in child.members),
        children,
        max(level, MIN_LEVEL, *(child.level for child in children)),
        np.average([child.mean for child in children], axis=0, weights=weight),
        float(np.average([child.mean_square for child in children], weights=weight)),
    )


def merge_height(children: tuple[MeasuredClade, ...]) -> float:
    """Mean squared distance between types of different children, as average linkage has it."""
    pairs = list(combinations(children, 2))
    squares = [a.mean_square + b.mean_square - 2 * float(a.mean @ b.mean) for a, b in pairs]
    return max(float(np.average(squares, weights=[len(a.members) * len(b.members) for a, b in pairs])), 0.0)
