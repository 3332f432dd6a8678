"""Names of sets of cells: keys in tables, and what readers of figures, reports and messages see."""

from collections.abc import Mapping

NAMES = {"branched": "generated"}
TRANSMUTED = {"branched": "transmuted", "unmoved": "before"}  # where transmuted cells are evaluated
TAKEN = ("branched", "floor", "test", "train", "prepared", "unmoved", *NAMES.values())


def set_name(key: str, names: Mapping[str, str] = NAMES) -> str:
    """Name of a set for readers; the key itself where it has no other."""
    return names.get(key, key)
