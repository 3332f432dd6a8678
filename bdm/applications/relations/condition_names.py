"""Names of conditions, from columns of ``obs``: ``"drug, 24 h"``, with a dose ``"drug, 24 h, 0.3"``.

A combination has one dose for all parts, as in ``"A+B, 0.3"``, or one for each, as in ``"A+B, 0.1+1"``.
"""

from collections.abc import Collection, Sequence
from itertools import product

import numpy as np
import pandas as pd

from bdm._core.errors import InputError, counted
from bdm._core.validation import SEPARATOR, column_rejection, control_rejection, parse_doses, usual_controls
from bdm.data.columns import as_numbers, as_text, is_missing, shown_kind, text_column
from bdm.settings import ResponseSettings


def conditions_of(obs: pd.DataFrame, keys: tuple[str, ...]) -> pd.Series:
    """Return the condition of each cell, joined if there are several columns."""
    first, *others = columns = [text_column(obs, key, argument="condition_key") for key in keys]
    if not others:
        return first
    for key, column in zip(keys, columns, strict=True):
        if (joined := column.str.contains(SEPARATOR, regex=False)).any():
            raise InputError(
                f"obs[{key!r}] has the value {column[joined.to_numpy()].iloc[0]!r}, but {SEPARATOR!r} joins the values "
                "of several columns of conditions; rename it."
            )
    return first.str.cat(others, sep=SEPARATOR)


def control_of(conditions: pd.Series, control: str | None) -> str:
    """Return the control: by default the only condition with a usual name."""
    known = sorted(conditions.unique())
    if sentence := control_rejection(control, known):
        raise InputError(sentence)
    return usual_controls(known)[0] if control is None else control


def with_doses(condition: pd.Series, obs: pd.DataFrame, settings: ResponseSettings, control: str) -> pd.Series:
    """Append the dose to the names of conditions except the control, or the dose of each part."""
    key, separator = settings.dose_key, settings.combination_separator
    if key is None:
        return condition
    if sentence := column_rejection(key, obs.columns, argument="dose_key"):
        raise InputError(sentence)
    numbers, is_control = as_numbers(obs[key]), (condition == control).to_numpy()
    code, values = pd.factorize(as_text(obs[key]) if numbers is None else numbers, use_na_sentinel=False)
    texts = [str(value) if numbers is None else dose_name(value) for value in values]
    doses = [np.array(parse_doses(text, separator)) for text in texts]
    is_text = np.array([np.isnan(each).any() for each in doses])[code] & ~is_missing(as_text(obs[key])).to_numpy()
    if is_text.any():
        kind = shown_kind(obs[key][is_text])
        raise InputError(f"obs[{key!r}] holds {kind}, but doses are numbers; name another `dose_key=`.")
    is_dose = np.array([np.isfinite(each).all() and each.min() >= 0 < each.max() for each in doses])[code]
    is_zero = np.array([not np.nan_to_num(each).any() for each in doses])[code]
    if (invalid := np.where(is_control, ~is_zero, ~is_dose)).any():
        row = int(invalid.argmax())
        raise InputError(
            f"obs[{key!r}] is {texts[code[row]]} for cells of {condition.iloc[row]!r}, but must be 0 in the control "
            f"{control!r} and above 0 in all other conditions; correct it, or leave these cells out."
        )
    names = np.array([joined_doses(each, separator) for each in doses], dtype=object)
    return condition.where(is_control, condition + SEPARATOR + names[code])


def dose_name(dose: float) -> str:
    """Return a dose with six digits, or as many as tell it from other numbers in single precision."""
    texts = (f"{dose:.{n_digits}g}" for n_digits in range(6, 10))
    return next((text for text in texts if np.float32(text) == np.float32(dose)), str(dose))


def joined_doses(doses: Sequence[float] | np.ndarray, separator: str | None) -> str:
    """Return the text of the doses of parts; only one if all parts have the same."""
    different = [doses[0]] if separator is None or len(set(doses)) == 1 else doses
    return ((separator or "").strip() or separator or "").join(map(dose_name, different))


def name_with_dose(condition: str, dose: float | None, settings: ResponseSettings) -> str:
    """Return the name of a condition with its dose, if any."""
    if dose is None:
        return condition
    if settings.dose_key is None:
        raise InputError("The responses have no doses; fit them with `dose_key=`, or leave out `dose=`.")
    return f"{condition}{SEPARATOR}{dose_name(dose)}"


def columns_of(condition: str, control: str, settings: ResponseSettings) -> dict[str, str | float]:
    """Return the values of a condition in the columns of ``obs``."""
    name, values = condition, dict[str, str | float]()
    if settings.dose_key is not None:
        name, _, dose = condition.rpartition(SEPARATOR) if condition != control else (condition, "", "0")
        is_number = len(parse_doses(dose, settings.combination_separator)) == 1
        values[settings.dose_key] = float(dose) if is_number else dose
    parts = name.split(SEPARATOR) if len(settings.condition_key) > 1 else [name]
    return dict(zip(settings.condition_key, parts, strict=True)) | values


def doses_of(name: str, separator: str | None, *, dosed: bool, control: str | None = None) -> dict[str, float]:
    """Return the dose of each part of a condition, which is 1 without doses; the control is no part."""
    combination, comma, text = name.rpartition(SEPARATOR) if dosed else (name, "", "1")
    if dosed and not comma:
        raise InputError(f"Condition {name!r} has no dose; name it by `dose=`.")
    parts = [combination] if separator is None else [*map(str.strip, combination.split(separator))]
    if "" in parts:
        raise InputError(f"The combination {combination!r} has an empty part; name it on both sides of {separator!r}.")
    doses = parse_doses(text, separator)
    if len(doses) not in (1, len(parts)):
        raise InputError(
            f"Condition {name!r} has {counted(len(parts), 'part')}, but {counted(len(doses), 'dose')}; give one dose "
            "for all parts, or one for each."
        )
    numbers = dict(zip(parts, np.broadcast_to(doses, len(parts)).tolist(), strict=True))
    numbers = {part: dose for part, dose in numbers.items() if part != control} or numbers
    if not all(0 < dose < np.inf for dose in numbers.values()):
        raise InputError(f"The dose of condition {name!r} must be a finite number above 0.")
    return numbers


def separator_in(name: str, known: Collection[str]) -> str | None:
    """Return the text without letters and digits between two known names, such as "+" in "A+B"; else None."""
    pairs = product(filter(name.startswith, known), filter(name.endswith, known))
    between = (name[len(first) : len(name) - len(last)] for first, last in pairs)
    return next((text for text in between if text and not any(map(str.isalnum, text))), None)
