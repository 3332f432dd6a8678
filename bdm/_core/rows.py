"""Rows of what has the same first axis throughout: dataclasses and dictionaries of tensors and tuples."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


def concat(parts: Sequence[Value]) -> Value:
    """Concatenate tensors, tuples, or dataclasses or dictionaries of these along the first axis."""
    of: Any = parts
    if isinstance(of[0], Tensor):
        joined: Any = torch.cat(of)
    elif isinstance(of[0], tuple):
        joined = tuple(chain.from_iterable(of))
    else:
        joined = _by_field(lambda *values: concat(values), of)
    found: Value = joined
    return found


def take(value: Value, rows: Sequence[int]) -> Value:
    """Take rows of a tensor or a tuple, or of all in a dataclass or a dictionary of these."""
    of: Any = value
    if isinstance(of, Tensor):
        taken: Any = of[list(rows)]
    elif isinstance(of, tuple):
        taken = tuple(of[row] for row in rows)
    else:
        taken = _by_field(lambda values: take(values, rows), [of])
    found: Value = taken
    return found


def updated(parts: Sequence[Value], *, by: str) -> Value:
    """Concatenate dataclasses, whose rows take the place of earlier ones with the same name in the tuple ``by``."""
    together = concat(parts)
    last = {name: row for row, name in enumerate(getattr(together, by))}
    return together if len(last) == len(getattr(together, by)) else take(together, list(last.values()))


def _by_field(function: Callable[..., Any], values: Sequence[Any]) -> Any:
    """Apply a function to the values of each field of dataclasses, or of each key of dictionaries."""
    if isinstance(values[0], dict):
        return {key: function(*(value[key] for value in values)) for key in values[0]}
    of_fields = {of.name: function(*(getattr(value, of.name) for value in values)) for of in fields(values[0])}
    return replace(values[0], **of_fields)
