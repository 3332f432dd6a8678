"""Messages for invalid settings, columns and cell types.

The workflow includes this file, so that it rejects a configuration in the same words as commands and functions.
It imports the standard library only.
"""

import difflib
import math
import re
from collections.abc import Iterable
from numbers import Real
from typing import Any

KINDS = {  # words for JSON schema types
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
SEPARATOR = ", "  # joins the values of several columns into a condition
PREPARED_COLUMNS = ("cell_type", "batch", "split", "donor", "section")  # obs columns that bdm prepare writes
NO_LABELS = ", or use no labels, by `label_key=None`"  # alternative remedy for a missing column of labels


def rejection(name: str, value: object, schema: dict[str, Any], *, out_of_bounds: bool = False) -> str:
    """Message for an invalid value: what ``schema`` allows, or only its bounds."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    words = bounds_in_words(kinds[0]) if out_of_bounds and len(kinds) == 1 else in_words(*kinds)
    return f"{name} is {shown(value)}, but must be {words}."


def shown(value: object) -> str:
    """Format a value: NumPy numbers like Python numbers, strings in quotes."""
    return str(value) if isinstance(value, Real) else repr(value)


def in_words(*kinds: dict[str, Any]) -> str:
    """Describe allowed values, such as "auto or a whole number"."""
    words = []
    for kind in kinds:
        limits = f" that is {bounds}" if len(kinds) > 1 and (bounds := bounds_in_words(kind)) else ""
        texts = kind.get("enum") or ([kind["const"]] if "const" in kind else [])
        words.append(", ".join(texts) or KINDS[kind["type"]] + limits)
    return " or ".join(dict.fromkeys(words))


def bounds_in_words(schema: dict[str, Any]) -> str:
    """Describe bounds, such as "at least 0 and below 1"; empty without bounds."""
    return " and ".join(words.format(schema[bound]) for bound, words in BOUNDS.items() if bound in schema)


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Message for an unknown setting: suggest the closest name, or list all."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"There is no setting {name}; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}.")


def column_rejection(
    key: str, columns: Iterable[object], *, argument: str, alternative: str = "", table: str = "obs"
) -> str | None:
    """Message for a missing column of obs or var, else None."""
    columns = list(columns)
    if key in columns:
        return None
    available = ", ".join(map(str, columns)) or "none"
    return f"{table} has no column {key!r}; name one by `{argument}=`{alternative} (there are: {available})."


def keys_rejection(*keys: tuple[str, str | None]) -> str | None:
    """Message for two keys that name the same obs column, else None."""
    first: dict[str, str] = {}
    for argument, column in keys:
        if column is None:
            continue
        if column in first:
            repetition = "twice by" if first[column] == argument else f"by `{first[column]}=` and by"
            return f"obs[{column!r}] is named {repetition} `{argument}=`; name another column by `{argument}=`."
        first[column] = argument
    return None


def nearest_or(name: str, known: Iterable[str], otherwise: str, *, n: int = 1) -> str:
    """Suggest up to ``n`` close names, or return ``otherwise``."""
    near = difflib.get_close_matches(name, list(known), n=n)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def unknown_type(name: str, known: Iterable[str], *, of: str) -> str:
    """Message for an unknown cell type: suggest the closest, or list all."""
    known = list(known)
    remedy = nearest_or(name, known, f"its types are {', '.join(known)}.")
    return f"{of} no type {name!r}; {remedy}"


def unknown_condition(name: str, known: Iterable[str]) -> str:
    """Message for an unknown condition: suggest the closest, or list all."""
    known = list(known)
    remedy = nearest_or(name, known, f"there are {', '.join(map(repr, known))}.")
    return f"There is no condition {name!r}; {remedy}"


def unknown_node(name: str, known: Iterable[str]) -> str:
    """Message for an unknown lineage node: suggest close ones, or list some."""
    known = list(known)
    remedy = nearest_or(name, known, f"it has {', '.join(known[:20])}.", n=3)
    return f"The lineage has no node {name!r}; {remedy}"


def parse_range(text: str) -> tuple[()] | tuple[float] | tuple[float, float]:
    """Parse a number, or a range such as ``300:400``; else return ()."""
    try:
        first, *last = map(float, text.split(":"))
    except ValueError:
        return ()
    if len(last) > 1 or not all(map(math.isfinite, (first, *last))):
        return ()
    return (first, last[0]) if last else (first,)


def parse_doses(text: str, separator: str | None = None) -> list[float]:
    """Parse a dose, or the doses of the parts of a combination, such as ``0.1+1e+02``; NaN where it is no number."""
    dose = as_float(text)
    if separator is None or not math.isnan(dose):
        return [dose]
    between = rf"(?<![0-9.][eE]){re.escape(separator.strip() or separator)}"  # but not in exponents
    return [*map(as_float, re.split(between, text))]


def as_float(text: str) -> float:
    """Convert text to a number; NaN for other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def usual_controls(conditions: Iterable[str]) -> list[str]:
    """List conditions with a usual name of controls, such as ``dmso``."""
    return [name for name in conditions if all(part.lower() in CONTROL_NAMES for part in name.split(SEPARATOR))]


def control_rejection(control: str | None, conditions: Iterable[str]) -> str | None:
    """Message for an unknown control, or one that cannot be guessed, else None."""
    known = list(conditions)
    if control is not None:
        return None if control in known else unknown_condition(control, known)
    if len(usual_controls(known)) == 1:
        return None
    shown_names = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    return f"Which condition is the control is not known; name it by `control=` (there are: {shown_names})."


def may_be_fitted(name: str, cell_types: Iterable[str]) -> bool:
    """Return whether a model of ``cell_types`` may have ``name``: ``T``, ``T/2`` or ``node 3``."""
    return bool({name, re.sub(r"[/]+\d+$", "", name)} & set(cell_types) or re.fullmatch(r"node \d+", name))


def alike_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group names that differ only in spaces or case."""
    alike: dict[str, tuple[str, ...]] = {}
    for name in names:
        key = "".join(name.split()).casefold()
        alike[key] = (*alike.get(key, ()), name)
    return [group for group in alike.values() if len(group) > 1]


def label_candidates(fitted: str | None) -> tuple[str, ...]:
    """Return the default columns for cell types: the fitted one, then ``cell_type``."""
    return tuple(dict.fromkeys([fitted or "cell_type", "cell_type"]))


def labels_rejection(candidates: tuple[str, ...], columns: Iterable[object]) -> str | None:
    """Message if ``obs`` has no candidate column of cell types, else None."""
    columns = list(columns)
    if not set(candidates).isdisjoint(columns):
        return None
    return (
        f"obs has no column {' or '.join(map(repr, candidates))} with the cell types; name it by `label_key=` "
        f"(there are: {', '.join(map(str, columns)) or 'none'})."
    )


def split_rejection(validation: float, test: float) -> str | None:
    """Message if the split leaves no training cells, else None."""
    if validation + test < 1:
        return None
    return "validation and test sum to 1 or more, which leaves no cells to train on."


def section_rejection(section_key: str | None, spatial_key: str | None) -> str | None:
    """Message if sections are named without positions, else None."""
    if section_key is None or spatial_key is not None:
        return None
    return "section_key needs positions; name their key of obsm (spatial_key), or leave out section_key."


def donors_rejection(min_donors: int, donor_key: str | None) -> str | None:
    """Message if ``min_donors`` needs a donor column that is missing, else None."""
    if min_donors == 1 or donor_key is not None:
        return None
    return f"min_donors is {min_donors}, but donors are not known; name their column (donor_key)."
