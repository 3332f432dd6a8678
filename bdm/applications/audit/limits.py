"""Minimum number of donors of an audit.

The workflow includes this file, so its warnings read like warnings of commands. It imports the standard library only.
"""

from collections.abc import Sequence
from itertools import count
from math import comb, prod

MIN_DONORS = 6  # two in each part; with fewer, attacks succeed by chance in at least a third of folds
LEVEL = 0.05  # family-wise error rate: share of audits with a finding by chance alone
Sides = Sequence[tuple[int, int]]  # numbers of members and of non-members in each fold


def cells_for_donors(n_donors: int) -> str:
    """Say that cells are audited in place of too few donors."""
    return (
        f"Cells are audited in place of donors, because an audit of donors needs {MIN_DONORS} or more (here "
        f"{n_donors}); it shows nothing about donors."
    )


def smallest_p(sides: Sides) -> float:
    """Return the smallest p-value that permutations within folds can reach."""
    return 1 / prod(comb(n_members + n_others, n_members) for n_members, n_others in sides)


def explain_inconclusive(sides: Sides, unit: str, *, p_value: float = 0.0) -> str | None:
    """Explain why too few units make an audit inconclusive, or return None.

    ``p_value`` belongs to an AUC of 1, if scores are known; any of several attacks may reach it by chance.
    """
    lowest_p = smallest_p(sides)
    p_value = max(p_value, lowest_p)
    if p_value < LEVEL:
        return None
    n_patterns = p_value / lowest_p  # memberships for which an attack reaches an AUC of 1
    n_folds = len(sides)
    n_members, n_others = (round(sum(side) / n_folds) for side in zip(*sides, strict=True))
    enough = next(n for n in count(3) if n_patterns * smallest_p(equal_sides(n, n_folds)) < LEVEL)
    more_folds = next(n for n in count(n_folds) if n_patterns * smallest_p([(n_members, n_others)] * n) < LEVEL)
    return (
        f"{n_members} {unit}s in the training data and {n_others} others in {n_folds} fold{'s' * (n_folds > 1)} are "
        f"too few, as chance alone finds all of them in {p_value:.0%} of audits, so that no attack can show anything; "
        f"give {enough} {unit}s, or {more_folds} folds"
    )


def equal_sides(n_units: int, n_folds: int) -> list[tuple[int, int]]:
    """Return numbers of members and non-members for parts of equal size."""
    third, rest = divmod(n_units, 3)  # spare units go to the reference, then to the members
    return [(third + (rest == 2), third)] * n_folds
