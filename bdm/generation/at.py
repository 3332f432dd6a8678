"""Covariates of cells to generate: given as numbers or ranges, or sampled."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.seeds import numpy_generator
from bdm._core.validation import nearest_or, range_in
from bdm.model.covariates import CovariateEffects
from bdm.model.model import BranchedModel

logger = logging.getLogger(__name__)

At = Mapping[str, float | tuple[float, float]]  # by covariate: a number, or the ends of a range
NOWHERE: At = {}
# Steps of sequences in [0, 1) that are evenly spread at any length (fractional parts of square roots)
OF_POPULATIONS, OF_BATCHES = math.sqrt(5) / 2 - 0.5, math.sqrt(2) - 1


def parse_at(texts: Sequence[str]) -> At:
    """Parse the option ``--at``: ``NAME=NUMBER`` or ``NAME=LOW:HIGH``."""
    found: dict[str, float | tuple[float, float]] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        numbers = range_in(value)
        if not name or not numbers:
            raise InputError(f"--at {text} is not of the form NAME=NUMBER or NAME=LOW:HIGH, such as time=350.")
        if name in found:
            raise InputError(f"--at gives {name!r} twice; give it once.")
        found[name] = numbers if len(numbers) == 2 else numbers[0]
    return found


def at_in_words(at: At) -> list[str] | None:
    """Format values as :func:`parse_at` reads them; None if there are none."""
    written = [(name, ends_of(name, value)) for name, value in at.items()]
    return [f"{name}={low:.15g}" + (f":{high:.15g}" if high > low else "") for name, (low, high) in written] or None


def covariate_names(model: BranchedModel) -> tuple[str, ...]:
    """Return the names of a model's covariates, if any."""
    return () if model.covariates is None else model.covariates.names


def known_covariates(model: BranchedModel, names: Sequence[str]) -> CovariateEffects:
    """Return the covariate effects of a model; reject unknown ``names``."""
    if model.covariates is None:
        raise InputError(
            "The model has no covariates; fit it with `covariate_key=`, the column of obs with the time, dose or age."
        )
    for name in names:
        if name not in model.covariates.names:
            known = model.covariates.names
            remedy = nearest_or(name, known, f"its covariates are {', '.join(known)}.")
            raise InputError(f"The model has no covariate {name!r}; {remedy}")
    return model.covariates


def ends_of(name: str, value: Any) -> tuple[float, float]:
    """Return the ends of a range; both are the same for a number."""
    try:
        low, high = map(float, value) if isinstance(value, list | tuple) else (float(value), float(value))
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(f"{name} is to be {value!r}; give a number, or a range by its lower and its upper end.")
    return low, high


def with_values(
    model: BranchedModel, table: pd.DataFrame, at: At, *, named: bool, extrapolate: bool = False
) -> pd.DataFrame:
    """Add covariates to a table of cells to generate, and return a row per cell.

    Ranges are limited to the training cells of each type, and the cells of a row are spread evenly over each range.
    Types without training cells in a range are left out, or rejected if ``named``. With ``extrapolate``, values are not
    limited; beyond the training cells, effects are the same as at the nearest training value.
    """
    effects = known_covariates(model, list(at))
    keys = [name for name in table if name not in (*at, "n_cells")]
    table = table.groupby(keys, sort=False, as_index=False, dropna=False)["n_cells"].sum()
    table = table.loc[table.index.repeat(table["n_cells"])].assign(n_cells=1)  # cells of a row share its index
    for name, value in at.items():
        cell_type = table["cell_type"].map(lambda name: model.cell_type_of.get(name, name))
        ranges = within(
            effects, list(cell_type.unique()), name, ends_of(name, value), named=named, extrapolate=extrapolate
        )
        table, cell_type = table[cell_type.isin(ranges)], cell_type[cell_type.isin(ranges)]
        spread = [
            spread_evenly(*ranges[cells.iloc[0]], len(cells), name, effects)
            for _, cells in cell_type.groupby(level=0, sort=False)
        ]
        table = table.assign(**{name: np.concatenate(spread)})
    return table.reset_index(drop=True)


def within(
    effects: CovariateEffects,
    cell_types: Sequence[str],
    name: str,
    ends: tuple[float, float],
    *,
    named: bool,
    extrapolate: bool,
    permit: str = "`extrapolate=True`",
) -> dict[str, tuple[float, float]]:
    """Limit a range to the training range of each type, omitting types outside it.

    ``permit`` is the option that allows other values, for errors.
    """
    limits = {cell_type: effects.range(cell_type, name) or ends for cell_type in cell_types}
    found = {
        cell_type: ends if extrapolate else (max(ends[0], low), min(ends[1], high))
        for cell_type, (low, high) in limits.items()
        if extrapolate or max(ends[0], low) <= min(ends[1], high)
    }
    beyond = [name for name, (low, high) in limits.items() if (ends[0] < low or high < ends[1]) and name in found]
    outside = [name for name in cell_types if name not in found]

    def listed_with_limits(types: Sequence[str]) -> str:
        return abbreviated([f"{name} ({shown(limits[name])})" for name in types], n_shown=5)

    if outside and (named or not found):
        raise InputError(
            f"No training cell has {name} {shown(ends)} in {listed_with_limits(outside)}; choose another value, leave "
            f"out these types, or use {permit}."
        )
    for types, what in (
        (outside, "Left out"),
        (beyond, "Generated as at the nearest value of training cells" if extrapolate else "Limited to training cells"),
    ):
        if types:
            logger.warning("%s, as %s is %s: %s.", what, name, shown(ends), listed_with_limits(types))
    return found


def shown(ends: tuple[float, float]) -> str:
    """Format a number or a range."""
    return f"{ends[0]:.6g}" if ends[0] == ends[1] else f"{ends[0]:.6g} to {ends[1]:.6g}"


def spread_evenly(low: float, high: float, n: int, name: str, effects: CovariateEffects) -> np.ndarray:
    """Return evenly spaced values, in a different order for each covariate."""
    if low == high:
        return np.full(n, low)
    number = effects.names.index(name)
    order = np.arange(n) if number == 0 else np.argsort((np.arange(n) * math.sqrt((2, 3, 5, 7, 11)[number % 5])) % 1)
    return np.asarray(low + (high - low) * (order + 0.5) / n)


def placed_cells(model: BranchedModel, table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Assign populations and batches to cells with given covariates.

    Populations have their shares at these covariates; batches have their shares in training cells.
    """
    assert model.covariates is not None
    cells = table.sort_values(list(names), kind="stable")
    cells = cells.loc[cells.index.repeat(cells["n_cells"])].assign(n_cells=1).reset_index(drop=True)
    at = cells.reindex(columns=list(model.covariates.names)).to_numpy(dtype=float)
    with_batch = ["batch"] if "batch" in cells else []
    population = cells["cell_type"].to_numpy(dtype=object, copy=True)
    for (name, *batch), part in cells.groupby(["cell_type", *with_batch], sort=False):
        if name in model.cell_types:
            weight = weight_of_populations(model, name, *batch)
            share = model.covariates.shares(name, weight.to_dict(), at[part.index])
            population[part.index] = weight.index.to_numpy(dtype=object)[evenly_chosen(share, OF_POPULATIONS)]
    cells["sub_population"] = population
    if model.autoencoder.batches and not with_batch:
        chosen = np.empty(len(cells), dtype=object)
        for name, part in cells.groupby("sub_population", sort=False):
            share = model.composition.loc[name].to_numpy(dtype=float)[None].repeat(len(part), axis=0)
            chosen[part.index] = model.composition.columns.to_numpy(dtype=object)[evenly_chosen(share, OF_BATCHES)]
        cells["batch"] = chosen
    return cells


def weight_of_populations(model: BranchedModel, cell_type: str, batch: str | None = None) -> pd.Series:
    """Count the training cells of each population of a type.

    Only those in ``batch`` are counted, unless the type has none there.
    """
    numbers = model.composition.loc[list(model.autoencoder.populations_of(cell_type))]
    in_batch = batch is not None and numbers[batch].any()
    return numbers[batch] if in_batch else numbers.sum(axis=1)


def evenly_chosen(share: np.ndarray, step: float) -> np.ndarray:
    """Choose a column for each row of shares.

    Columns alternate, so that any run of rows has about the expected number of each.
    """
    position = (0.5 + np.arange(len(share)) * step) % 1
    cumulative = share.cumsum(axis=1)
    chosen = (cumulative <= position[:, None] * cumulative[:, -1:]).sum(axis=1)
    return np.asarray(np.minimum(chosen, share.shape[1] - 1))


def moved(model: BranchedModel, values: np.ndarray, cell_type: str, at: At, *, extrapolate: bool = False) -> np.ndarray:
    """Set covariates of cells of a type to ``at``; others keep their values.

    ``values`` and the result are cells x covariates. A range is spread evenly over the cells.
    """
    found, effects = values.copy(), known_covariates(model, list(at))
    cell_type = model.cell_type_of.get(cell_type, cell_type)
    for name, value in at.items():
        low, high = within(effects, [cell_type], name, ends_of(name, value), named=True, extrapolate=extrapolate)[
            cell_type
        ]
        found[:, effects.names.index(name)] = spread_evenly(low, high, len(found), name, effects)
    outside = np.zeros(len(found), dtype=bool)
    for number, name in enumerate(effects.names):
        if name not in at and (known := effects.range(cell_type, name)) is not None:
            outside |= (found[:, number] < known[0]) | (found[:, number] > known[1])
    if outside.any():
        logger.warning(
            "%s have values that no training cell of %r has, and become cells as at the nearest of these.",
            counted(int(outside.sum()), "cell"),
            cell_type,
        )
    return found


def drawn_values(model: BranchedModel, table: pd.DataFrame, seed: int) -> dict[str, np.ndarray]:
    """Return the covariates of requested cells by population, cells x covariates.

    Missing values are sampled given the other covariates. They depend on the seed, the population and the cell's number
    in it, but not on the other cells. Returns an empty dict if the model has no covariates.
    """
    if model.covariates is None:
        return {}
    found = {}
    for population, rows in table.groupby("sub_population", sort=False):
        given = rows.reindex(columns=list(model.covariates.names)).to_numpy(dtype=float)
        given = given.repeat(rows["n_cells"].to_numpy(), axis=0)
        generator = numpy_generator(seed, "covariates", str(population))
        found[str(population)] = model.covariates.complete(str(population), given, generator)
    return found


def check_values(model: BranchedModel, table: pd.DataFrame) -> None:
    """Convert covariates in a table of cells to floats, in place.

    Empty values become NaN; other text is rejected.
    """
    for name in set(covariate_names(model)) & set(table):
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = table[name][numbers.isna() & table[name].notna() & (table[name].astype(str) != "")]
        if len(wrong):
            raise InputError(f"The table of cells has {wrong.iloc[0]!r} for the covariate {name!r}; give a number.")
        table[name] = numbers.astype(float)
