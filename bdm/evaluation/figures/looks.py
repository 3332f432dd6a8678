from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle

from bdm.evaluation.evaluate import FLOOR
from bdm.evaluation.scores import SCORE_NAMES
from bdm.text import printable, without_formulas

IDEALS = {
    "energy": 0,
    "mmd": 0,
    "forest_auc": 0.5,
    "gene_auc": 0.5,
    "slope": 1,
    "fold_change_correlation": 1,
    "f1": 1,
    "copying": 0.5,
    "pair_correlation": 1,
    "library_size_ks": 0,
}
LABELS = {score: SCORE_NAMES[score] for score in IDEALS}

# Okabe and Ito, told apart with any colour vision: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours, so that pairs repeat late
GREY = "#8C8C8C"


@dataclass(frozen=True)
class Look:
    """Colour and marker of a set of cells."""

    colour: str
    marker: str


def looks(sets: Iterable[str]) -> dict[str, Look]:
    """Give each set a colour and a marker of its own; the floor is grey."""
    generated = [name for name in sets if name != FLOOR]
    styles = map(Look, cycle(COLOURS), cycle(MARKERS))
    return {FLOOR: Look(GREY, "d"), **dict(zip(generated, styles, strict=False))}


def shortened(name: str, *, width: int = 40) -> str:
    """Cut a long name."""
    name = printable(name)
    return without_formulas(name if len(name) <= width else name[: width - 1] + "…")
