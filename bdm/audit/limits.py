"""How many donors an audit needs.

The workflow includes this file, so that the configuration is answered in the same words as options and arguments; hence
it imports the standard library only.
"""

from collections.abc import Sequence
from itertools import count
from math import comb, prod

MIN_DONORS = 6  # two in each part; with fewer, attacks are right by chance in a third of folds or more
LEVEL = 0.05  # share of audits in which chance makes one attack or more find something
Sides = Sequence[tuple[int, int]]


def audit_rejection(n_donors: int, key: str, *, remedy: str) -> str | None:
    """Phrase that the donors in a column of obs are too few for an audit, and what to do; None if they suffice."""
    if n_donors >= MIN_DONORS:
        return None
    return (
        f"obs[{key!r}] has {n_donors} donor{'' if n_donors == 1 else 's'}; an audit needs {MIN_DONORS} or more, as "
        f"chance alone distinguishes fewer; {remedy}."
    )


def smallest_p(sides: Sides) -> float:
    """Smallest p-value that permutations of membership within each fold can reach: all but one do less."""
    return 1 / prod(comb(n_members + n_others, n_members) for n_members, n_others in sides)


def inconclusive(sides: Sides, unit: str, *, p_value: float = 0.0) -> str | None:
    """Phrase that no attack on so few donors, or cells, can differ from chance; None if one can.

    ``p_value`` is of an AUC of 1, if the scores are known: with several attacks, chance may find all members by any.
    """
    least = smallest_p(sides)
    p_value = max(p_value, least)
    if p_value < LEVEL:
        return None
    n_patterns = p_value / least  # that attacks find without error
    n_folds = len(sides)
    n_members, n_others = (round(sum(side) / n_folds) for side in zip(*sides, strict=True))
    enough = next(n for n in count(3) if n_patterns * smallest_p(sides_of(n, n_folds)) < LEVEL)
    more_folds = next(n for n in count(n_folds) if n_patterns * smallest_p([(n_members, n_others)] * n) < LEVEL)
    return (
        f"{n_members} {unit}s in the training data and {n_others} others in {n_folds} fold{'s' * (n_folds > 1)} are "
        f"too few, as chance alone finds all of them in {p_value:.0%} of audits, so that no attack can show anything; "
        f"give {enough} {unit}s, or {more_folds} folds"
    )


def sides_of(n_units: int, n_folds: int) -> list[tuple[int, int]]:
    """Count the members and non-members of three parts of equal size, of which a larger one is the reference."""
    third, rest = divmod(n_units, 3)
    return [(third + (rest == 2), third)] * n_folds
