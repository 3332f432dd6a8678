"""Limits of settings."""

import math
from typing import Any

from bdm.errors import InputError


def check_at_least(settings: Any, **least: float) -> None:
    """Raise an InputError if a setting is below its least value, or no finite number."""
    for name, value in least.items():
        if not value <= getattr(settings, name) < math.inf:
            raise InputError(f"{name} is {getattr(settings, name)}, but must be {value} or more.")


def check_above_zero(settings: Any, *names: str) -> None:
    """Raise an InputError if a setting is not a finite number above 0."""
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise InputError(f"{name} is {getattr(settings, name)}, but must be above 0.")
