import logging

import pandas as pd
from pandas.api.types import infer_dtype, is_float_dtype, is_numeric_dtype

from bdm.errors import InputError

logger = logging.getLogger(__name__)


def canonical_columns(obs: pd.DataFrame, *, label_key: str, batch_key: str | None) -> pd.DataFrame:
    """Give ``obs`` the columns ``cell_type`` and, with a batch key, ``batch``.

    Other content of ``cell_type``, ``batch`` or ``split``, the names that have a meaning here, is kept as
    ``NAME_input``.
    """
    columns = {"cell_type": group_column(obs, label_key, argument="label_key")}
    if batch_key is not None:
        columns["batch"] = group_column(obs, batch_key, argument="batch_key")
    for name in ("cell_type", "batch", "split"):
        if name in obs and not (name in columns and columns[name].equals(text(obs[name]))):
            kept = f"{name}_input"
            while kept in obs:
                kept += "_input"
            logger.warning("The input's column %s of obs is kept as %s.", name, kept)
            obs = obs.rename(columns={name: kept})
    return obs.assign(**columns)


def group_column(obs: pd.DataFrame, key: str, *, argument: str) -> pd.Series:
    """Take the column that divides cells into groups, as categories of text.

    Parameters
    ----------
    argument
        By what the user chooses the column, for the messages.

    Raises
    ------
    InputError
        If there is no such column, it lacks values, holds measurements, or one value only.
    """
    if key not in obs:
        available = ", ".join(map(str, obs)) or "none"
        raise InputError(f"obs has no column {key!r}; name one by `{argument}=` (there are: {available}).")
    if is_float_dtype(obs[key]):
        raise InputError(f"obs[{key!r}] holds decimal numbers, not groups of cells; name another by `{argument}=`.")
    groups = text(obs[key])
    missing = groups.isna() | groups.isin(["", "nan"])
    if missing.any():
        raise InputError(
            f"obs[{key!r}] has no value for {missing.sum()} of {len(obs)} cells, for example "
            f"{obs.index[missing.argmax()]}; complete it, or leave these cells out."
        )
    unfit = next(filter(is_unfit, groups.cat.categories), None)
    if unfit is not None:
        raise InputError(f"obs[{key!r}] has the value {unfit!r}, which files cannot hold; rename it.")
    if groups.nunique() < 2:
        raise InputError(f"obs[{key!r}] has one value for all cells; name another by `{argument}=`.")
    return groups


def is_unfit(name: str) -> bool:
    """Tell whether a name has zero bytes, carriage returns or halves of letters, which do not come out of files again.

    HDF5 does not write the first, tables (.csv) take the second for the ends of rows, and UTF-8 lacks the third.
    """
    return any(letter in "\0\r" or "\ud800" <= letter <= "\udfff" for letter in name)


def text(column: pd.Series) -> pd.Series:
    """Turn values into categories of text; missing ones stay so."""

    def text_of(value: object) -> str:
        return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)

    return column.astype(object).map(text_of, na_action="ignore").astype("category")


def writable_name(name: object) -> str:
    """Name a column as an AnnData file can, where slashes part groups."""
    return str(name).replace("/", "_")


def writable(frame: pd.DataFrame) -> pd.DataFrame:
    """Turn what an AnnData file cannot hold, such as dates and mixed objects, into text."""
    frame = frame.rename(columns=writable_name).rename_axis(index=None)
    for name, column in frame.items():
        values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
        is_text = values.dtype in (object, "str") and infer_dtype(values) == "string"  # "str": text in pandas 3
        if not is_text and not is_numeric_dtype(values):
            frame[name] = text(column)
    return frame


def without_unused_categories(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out categories that no row has, in all columns."""
    categories = frame.select_dtypes("category")
    return frame.assign(**{name: column.cat.remove_unused_categories() for name, column in categories.items()})
