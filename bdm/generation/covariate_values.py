"""Values of covariates: read, limited to training cells, spread over cells, and drawn."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.schema import to_python
from bdm._core.validation import nearest_or, parse_range
from bdm.effects.covariates import CovariateEffects
from bdm.model.model import BranchedModel

logger = logging.getLogger(__name__)

CovariateValues = Mapping[str, float | tuple[float, float]]  # by covariate: a number, or the ends of a range
NO_COVARIATES: CovariateValues = {}


def parse_at(texts: Sequence[str]) -> CovariateValues:
    """Parse the option ``--at``: ``NAME=NUMBER`` or ``NAME=LOW:HIGH``."""
    values: dict[str, float | tuple[float, float]] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        numbers = parse_range(value)
        if not name or not numbers:
            raise InputError(f"--at {text} is not of the form NAME=NUMBER or NAME=LOW:HIGH, such as time=350.")
        if name in values:
            raise InputError(f"--at gives {name!r} twice; give it once.")
        values[name] = numbers if len(numbers) == 2 else numbers[0]
    return values


def format_at(at: CovariateValues) -> list[str] | None:
    """Format values as :func:`parse_at` reads them; None if there are none."""
    ranges = [(name, range_of(name, value)) for name, value in at.items()]
    return [f"{name}={low:.15g}" + (f":{high:.15g}" if high > low else "") for name, (low, high) in ranges] or None


def range_of(name: str, value: Any) -> tuple[float, float]:
    """Return the ends of a range; both are the same for a number."""
    try:
        low, high = map(float, value) if isinstance(value, list | tuple) else (float(value), float(value))
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        value = to_python(value)
        raise InputError(f"{name} is to be {value!r}; give a number, or a range by its lower and its upper end.")
    return low, high


def require_covariates(model: BranchedModel, names: Sequence[str] = ()) -> CovariateEffects:
    """Return the covariate effects of a model; reject unknown ``names``."""
    if model.covariates is None:
        raise InputError(
            "The model has no covariates; fit it with `covariate_key=`, the column of obs with the time, dose or age."
        )
    known = model.covariates.names
    for name in names:
        if name not in known:
            remedy = nearest_or(name, known, f"its covariates are {', '.join(known)}.")
            raise InputError(f"The model has no covariate {name!r}; {remedy}")
    return model.covariates


def limit_range(
    effects: CovariateEffects,
    cell_types: Sequence[str],
    name: str,
    value: Any,
    *,
    named: bool = True,
    extrapolate: bool,
    permit: str = "`extrapolate=True`",
) -> dict[str, tuple[float, float]]:
    """Limit a number or range to the training range of each type.

    Types without training cells in it are left out, or rejected if the user ``named`` them. With ``extrapolate``,
    nothing is limited; beyond the training cells, effects are the same as at the nearest training value. ``permit`` is
    the option that allows other values, for errors.
    """
    low, high = range_of(name, value)
    trained = {cell_type: effects.training_range(cell_type, name) or (low, high) for cell_type in cell_types}
    limited = {
        cell_type: (low, high) if extrapolate else (max(low, first), min(high, last))
        for cell_type, (first, last) in trained.items()
        if extrapolate or max(low, first) <= min(high, last)
    }
    beyond = [cell_type for cell_type in limited if low < trained[cell_type][0] or trained[cell_type][1] < high]
    outside = [cell_type for cell_type in cell_types if cell_type not in limited]

    def in_words(types: Sequence[str]) -> str:
        return abbreviated([f"{cell_type} ({shown(*trained[cell_type])})" for cell_type in types], n_shown=5)

    if outside and (named or not limited):
        raise InputError(
            f"No training cell has {name} {shown(low, high)} in {in_words(outside)}; choose another value, leave "
            f"out these types, or use {permit}."
        )
    change = "Generated as at the nearest value of training cells" if extrapolate else "Limited to training cells"
    for types, action in ((outside, "Left out"), (beyond, change)):
        if types:
            logger.warning("%s, as %s is %s: %s.", action, name, shown(low, high), in_words(types))
    return limited


def shown(low: float, high: float) -> str:
    """Format a number or a range."""
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def spread_evenly(low: float, high: float, n: int, name: str, effects: CovariateEffects) -> np.ndarray:
    """Return evenly spaced values, in a different order for each covariate."""
    if low == high:
        return np.full(n, low)
    number = effects.names.index(name)
    order = np.arange(n) if number == 0 else np.argsort((np.arange(n) * math.sqrt((2, 3, 5, 7, 11)[number % 5])) % 1)
    return np.asarray(low + (high - low) * (order + 0.5) / n)


def set_covariates(
    model: BranchedModel, inputs: pd.DataFrame, cell_type: str, at: CovariateValues, *, extrapolate: bool = False
) -> pd.DataFrame:
    """Set covariates of cells of a type to ``at``; other inputs keep their values.

    A range is spread evenly over the cells.
    """
    effects, inputs = require_covariates(model, list(at)), inputs.copy()
    cell_type = model.cell_type_of.get(cell_type, cell_type)
    beyond = np.zeros(len(inputs), dtype=bool)
    for name in effects.names:
        if name in at:
            ends = limit_range(effects, [cell_type], name, at[name], extrapolate=extrapolate)[cell_type]
            inputs[name] = spread_evenly(*ends, len(inputs), name, effects)
        elif (trained := effects.training_range(cell_type, name)) is not None:
            beyond |= ~inputs[name].between(*trained).to_numpy()
    if beyond.any():
        logger.warning(
            "%s have covariates beyond the training cells of %r; they become cells as at the nearest training value.",
            counted(int(beyond.sum()), "cell"),
            cell_type,
        )
    return inputs
