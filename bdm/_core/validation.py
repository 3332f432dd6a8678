"""Sentences that reject values of settings, columns and cell types.

The workflow includes this file, so that the configuration is rejected in the same words as options and arguments;
hence it imports the standard library only.
"""

import difflib
import math
import re
from collections.abc import Iterable
from numbers import Real
from typing import Any

KINDS = {  # of values, as JSON schema names them
    "integer": "a whole number",
    "number": "a finite number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "object": "keys with values",
}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "non-empty",
}
CONTROL_NAMES = ("control", "ctrl", "untreated", "unstimulated", "vehicle", "dmso", "mock", "none", "healthy", "normal")
SEPARATOR = ", "  # between the values of several columns, whose combinations are the conditions
PREPARED_COLUMNS = ("cell_type", "batch", "split", "donor")  # of obs, which bdm prepare writes
NO_LABELS = ", or use no labels, by `label_key=None`"  # in place of another column of cell types


def rejection(name: str, value: object, schema: dict[str, Any], *, out_of_bounds: bool = False) -> str:
    """Phrase that a setting cannot have a value, as in "n_levels is 0, but must be at least 2."."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    words = bounds_in_words(kinds[0]) if out_of_bounds and len(kinds) == 1 else in_words(*kinds)
    return f"{name} is {shown(value)}, but must be {words}."


def shown(value: object) -> str:
    """Write a value: numbers of NumPy as those of Python, texts in quotes."""
    return str(value) if isinstance(value, Real) else repr(value)


def in_words(*kinds: dict[str, Any]) -> str:
    """Write which values are allowed, as in "a whole number", or "auto, none or a whole number that is at least 1"."""
    found = []
    for kind in kinds:
        limits = f" that is {bounds}" if len(kinds) > 1 and (bounds := bounds_in_words(kind)) else ""
        texts = kind.get("enum") or ([kind["const"]] if "const" in kind else [])
        found.append(", ".join(texts) or KINDS[kind["type"]] + limits)
    return " or ".join(dict.fromkeys(found))


def bounds_in_words(schema: dict[str, Any]) -> str:
    """Write bounds as in "at least 0 and below 1"; empty if there are none."""
    return " and ".join(words.format(schema[bound]) for bound, words in BOUNDS.items() if bound in schema)


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Phrase that there is no setting of a name, and name the nearest, or all where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"There is no setting {name}; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}.")


def column_rejection(
    key: str, columns: Iterable[object], *, argument: str, alternative: str = "", table: str = "obs"
) -> str | None:
    """Phrase that a table, obs or var, has no column ``key``; None if it has."""
    columns = list(columns)
    if key in columns:
        return None
    available = ", ".join(map(str, columns)) or "none"
    return f"{table} has no column {key!r}; name one by `{argument}=`{alternative} (there are: {available})."


def keys_rejection(*keys: tuple[str, str | None]) -> str | None:
    """Phrase that two of the keys of a data set name the same column of obs; None if each names its own."""
    first: dict[str, str] = {}
    for argument, column in keys:
        if column is None:
            continue
        if column in first:
            other = "twice by" if first[column] == argument else f"by `{first[column]}=` and by"
            return f"obs[{column!r}] is named {other} `{argument}=`; name another column by `{argument}=`."
        first[column] = argument
    return None


def nearest_or(name: str, known: Iterable[str], otherwise: str, *, n: int = 1) -> str:
    """Ask whether the nearest names were meant, up to ``n`` of them; ``otherwise`` where none is near."""
    near = difflib.get_close_matches(name, list(known), n=n)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def unknown_type(name: str, known: Iterable[str], *, of: str) -> str:
    """Phrase that there is no cell type of a name, and name the nearest, or all where none is near."""
    known = list(known)
    remedy = nearest_or(name, known, f"its types are {', '.join(known)}.")
    return f"{of} no type {name!r}; {remedy}"


def unknown_condition(name: str, known: Iterable[str]) -> str:
    """Phrase that there is no condition of a name, and name the nearest, or all where none is near."""
    known = list(known)
    remedy = nearest_or(name, known, f"there are {', '.join(map(repr, known))}.")
    return f"There is no condition {name!r}; {remedy}"


def unknown_node(name: str, known: Iterable[str]) -> str:
    """Phrase that a lineage has no node of a name, and name the nearest, or some where none is near."""
    known = list(known)
    remedy = nearest_or(name, known, f"it has {', '.join(known[:20])}.", n=3)
    return f"The lineage has no node {name!r}; {remedy}"


def range_in(text: str) -> tuple[()] | tuple[float] | tuple[float, float]:
    """Read a number, or the two ends of a range, ``300:400``; nothing from other text."""
    try:
        first, *last = map(float, text.split(":"))
    except ValueError:
        return ()
    if len(last) > 1 or not all(map(math.isfinite, (first, *last))):
        return ()
    return (first, last[0]) if last else (first,)


def usual_controls(conditions: Iterable[str]) -> list[str]:
    """List the conditions that have a usual name of controls."""
    return [name for name in conditions if all(part.lower() in CONTROL_NAMES for part in name.split(SEPARATOR))]


def control_rejection(control: str | None, conditions: Iterable[str]) -> str | None:
    """Phrase that the control is none of the conditions, or is not named and cannot be guessed; None if it is known."""
    known = list(conditions)
    if control is not None:
        return None if control in known else unknown_condition(control, known)
    if len(usual_controls(known)) == 1:
        return None
    shown_names = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    return f"Which condition is the control is not known; name it by `control=` (there are: {shown_names})."


def may_be_fitted(name: str, cell_types: Iterable[str]) -> bool:
    """Whether a model of these types may have one of a name, a sub-population (``T/2``) or a clade (``node 3``)."""
    return bool({name, re.sub(r"[/]+\d+$", "", name)} & set(cell_types) or re.fullmatch(r"node \d+", name))


def alike_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group the names that differ by spaces or by upper and lower case alone."""
    alike: dict[str, tuple[str, ...]] = {}
    for name in names:
        key = "".join(name.split()).casefold()
        alike[key] = (*alike.get(key, ()), name)
    return [found for found in alike.values() if len(found) > 1]


def label_candidates(fitted: str | None) -> tuple[str, ...]:
    """Name the columns that may have the cell types of further cells, if none is given."""
    return tuple(dict.fromkeys([fitted or "cell_type", "cell_type"]))


def labels_rejection(candidates: tuple[str, ...], columns: Iterable[object]) -> str | None:
    """Phrase that ``obs`` has none of the columns that may have the cell types; None if it has."""
    columns = list(columns)
    if not set(candidates).isdisjoint(columns):
        return None
    return (
        f"obs has no column {' or '.join(map(repr, candidates))} with the cell types; name it by `label_key=` "
        f"(there are: {', '.join(map(str, columns)) or 'none'})."
    )


def split_rejection(validation: float, test: float) -> str | None:
    """Phrase that fractions of validation and test cells leave none to train on; None if they leave some."""
    if validation + test < 1:
        return None
    return "validation and test sum to 1 or more, which leaves no cells to train on."


def donors_rejection(min_donors: int, donor_key: str | None) -> str | None:
    """Phrase that donors are to be counted that are not known; None if they are known, or not to be counted."""
    if min_donors == 1 or donor_key is not None:
        return None
    return f"min_donors is {min_donors}, but donors are not known; name their column (donor_key)."
