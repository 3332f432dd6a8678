"""Which values a setting may have, and the sentences that reject all others.

The workflow includes this file, so that the configuration is rejected in the same words as options and arguments;
hence it imports the standard library only.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from os import PathLike
from typing import Any

# Kinds of values as JSON schema names them: in words, and as types of Python
KINDS: dict[str, tuple[str, Any]] = {
    "integer": ("a whole number", Integral),
    "number": ("a finite number", Real),
    "boolean": ("true or false", bool),
    "string": ("text", str | PathLike),
    "array": ("a list of texts", list | tuple),
    "numbers": ("a list of finite numbers", list | tuple),
    "object": ("keys with values", dict),
    "null": ("null", type(None)),
}
BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("at least {}", lambda value, bound: value >= bound),
    "exclusiveMinimum": ("above {}", lambda value, bound: value > bound),
    "maximum": ("at most {}", lambda value, bound: value <= bound),
    "exclusiveMaximum": ("below {}", lambda value, bound: value < bound),
    "minLength": ("non-empty", lambda value, bound: len(str(value)) >= bound),
}
CELL_ONTOLOGY = "cell-ontology"  # in place of the file of a tree
PREPARED_COLUMNS = ("cell_type", "batch", "split", "donor")  # of obs, which bdm prepare writes
NO_LABELS = ", or use no labels, by `label_key=None`"  # in place of another column of cell types


def rejection(name: str, value: object, schema: dict[str, Any]) -> str | None:
    """Phrase why a setting cannot have a value.

    Parameters
    ----------
    schema
        Type and bounds of the setting, in the words of JSON schema: ``{"type": "integer", "minimum": 1}``; or
        ``anyOf`` such schemas and texts, ``{"enum": ["auto"]}``.

    Returns
    -------
    One sentence, such as "n_levels is 0, but must be at least 1."; None if the value is allowed.
    """
    if isinstance(value, dict) and "type" in (of_each := schema.get("additionalProperties") or {}):
        problems = (rejection(f"{name}.{key}", item, of_each) for key, item in value.items())
        return next(filter(None, problems), None)
    shown = str(value) if isinstance(value, Real) else repr(value)
    if value is None and "null" in schema.get("type", ()):
        return None
    if "anyOf" in schema:
        if any(allows(one, value) for one in schema["anyOf"]):
            return None
        return f"{name} is {shown}, but must be {' or '.join(map(in_words, schema['anyOf']))}."
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(is_of_kind(value, kind) for kind in kinds):
        words = [KINDS[kind][0] for kind in kinds if kind != "null"]
        return f"{name} is {shown}, but must be {' or '.join(words)}."
    if value is None or is_within(value, schema):
        return None
    return f"{name} is {shown}, but must be {bounds_in_words(schema)}."


def allows(schema: dict[str, Any], value: object) -> bool:
    """Whether one of several alternatives allows a value."""
    if "enum" in schema:
        return value in schema["enum"]
    return is_of_kind(value, schema["type"]) and is_within(value, schema)


def in_words(schema: dict[str, Any]) -> str:
    """Write one of several alternatives as in "auto, none" or "a whole number that is at least 1"."""
    if "enum" in schema:
        return ", ".join(schema["enum"])
    words, limits = KINDS[schema["type"]][0], bounds_in_words(schema)
    return words if schema["type"] == "object" or not limits else f"{words} that is {limits}"


def is_of_kind(value: Any, kind: str) -> bool:
    """Whether a value is of a kind; no truth value is a number, and neither are infinity and nan."""
    if not isinstance(value, KINDS[kind][1]):
        return False
    if kind == "array":
        return all(isinstance(item, str) for item in value)
    if kind == "numbers":
        return all(is_of_kind(item, "number") for item in value)
    return kind not in ("integer", "number") or (not isinstance(value, bool) and math.isfinite(value))


def is_within(value: object, schema: dict[str, Any]) -> bool:
    """Whether a value is within all bounds."""
    return all(holds(value, schema[bound]) for bound, (_, holds) in BOUNDS.items() if bound in schema)


def bounds_in_words(schema: dict[str, Any]) -> str:
    """Write bounds as in "at least 0 and below 1"; empty if there are none."""
    return " and ".join(words.format(schema[bound]) for bound, (words, _) in BOUNDS.items() if bound in schema)


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Phrase that there is no setting of a name, and name the nearest, or all where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"There is no setting {name}; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}.")


def column_rejection(
    key: str, columns: Iterable[object], *, argument: str, alternative: str = "", table: str = "obs"
) -> str | None:
    """Phrase that a table, obs or var, has no column ``key``; None if it has.

    Parameters
    ----------
    argument, alternative
        Argument by which the user names the column, and what to do if there is none.
    """
    columns = list(columns)
    if key in columns:
        return None
    available = ", ".join(map(str, columns)) or "none"
    return f"{table} has no column {key!r}; name one by `{argument}=`{alternative} (there are: {available})."


def keys_rejection(**keys: str | None) -> str | None:
    """Phrase that two of the keys of a data set name the same column of obs; None if each names its own."""
    first: dict[str, str] = {}
    for argument, column in keys.items():
        if column is not None and (other := first.setdefault(column, argument)) != argument:
            return f"obs[{column!r}] is named by `{other}=` and by `{argument}=`; name another column by `{argument}=`."
    return None


def unknown_type(name: str, known: Iterable[str], *, of: str) -> str:
    """Phrase that there is no cell type of a name, and name the nearest, or all where none is near.

    Parameters
    ----------
    of
        Where the cell types are: ``"The model has"``, ``"cells.h5ad has"``.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"its types are {', '.join(known)}."
    return f"{of} no type {name!r}; {remedy}"


def may_be_fitted(name: str, cell_types: Iterable[str]) -> bool:
    """Whether a model of these types may have one of a name, a sub-population (``T/2``) or a clade (``node 3``)."""
    return bool({name, re.sub(r"[/]+\d+$", "", name)} & set(cell_types) or re.fullmatch(r"node \d+", name))


def alike_names(names: Iterable[str]) -> tuple[str, ...] | None:
    """Give the first names that differ by spaces or by upper and lower case alone; None if there are none."""
    alike: dict[str, tuple[str, ...]] = {}
    for name in names:
        key = "".join(name.split()).casefold()
        alike[key] = (*alike.get(key, ()), name)
    return next((found for found in alike.values() if len(found) > 1), None)


def label_candidates(fitted: str | None) -> tuple[str, ...]:
    """Name the columns that may have the cell types of further cells, if none is given.

    Parameters
    ----------
    fitted
        Column of the data that the model was fitted on; None without labels.
    """
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


def slot_rejection(source: str, slots: Iterable[str]) -> str | None:
    """Phrase that cells have no layer ``source`` to take counts from, nor ``raw`` or ``X``; None if they have."""
    slots = list(slots)
    if source == "auto" or source in slots:
        return None
    return f"there is no layer {source!r}; counts can be taken from {', '.join(slots) or 'nowhere'}."


def split_rejection(validation: float, test: float) -> str | None:
    """Phrase that fractions of validation and test cells leave none to train on; None if they leave some."""
    if validation + test < 1:
        return None
    return "validation and test sum to 1 or more, which leaves no cells to train on."


def ontology_rejection(tree: object, ontology_key: str | None) -> str | None:
    """Phrase that the Cell Ontology and the column of its terms are not given together; None if both or neither are."""
    if (str(tree) == CELL_ONTOLOGY) == (ontology_key is not None):
        return None
    if ontology_key is not None:
        return f"ontology_key is {ontology_key!r}, but is for the tree {CELL_ONTOLOGY}; give both or neither."
    return (
        f"tree is '{CELL_ONTOLOGY}', which needs `ontology_key=`, the column of obs with the terms of the cell types, "
        "such as cell_type_ontology_term_id."
    )


def donors_rejection(min_donors: int, donor_key: str | None) -> str | None:
    """Phrase that donors are to be counted that are not known; None if they are known, or not to be counted."""
    if min_donors == 1 or donor_key is not None:
        return None
    return f"min_donors is {min_donors}, but donors are not known; name their column (donor_key)."
