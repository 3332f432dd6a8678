import logging

import pandas as pd
from pandas.api.types import infer_dtype, is_float_dtype, is_numeric_dtype

from bdm.errors import InputError

logger = logging.getLogger(__name__)


def canonical_columns(
    obs: pd.DataFrame, *, label_key: str, batch_key: str | None, drop_unlabelled: bool = False
) -> pd.DataFrame:
    """Give ``obs`` the columns ``cell_type`` and, with a batch key, ``batch``.

    Other content of ``cell_type``, ``batch`` or ``split``, the names that have a meaning here, is kept as
    ``NAME_input``.

    Parameters
    ----------
    drop_unlabelled
        Leave out cells without a cell type.
    """
    remedy = "leave them out by `drop_unlabelled=True`"
    labels = group_column(obs, label_key, argument="label_key", remedy=remedy, drop_missing=drop_unlabelled)
    obs = obs if len(labels) == len(obs) else obs.loc[labels.index]
    columns = {"cell_type": labels}
    if batch_key is not None:
        columns["batch"] = group_column(obs, batch_key, argument="batch_key")
    for name in ("cell_type", "batch", "split"):
        if name in obs and not (name in columns and columns[name].equals(text(obs[name]))):
            kept = f"{name}_input"
            while kept in obs:
                kept += "_input"
            level = logging.DEBUG if name == "batch" and batch_key is None else logging.WARNING
            logger.log(level, "The input's column %s of obs is kept as %s.", name, kept)
            obs = obs.rename(columns={name: kept})
    return obs.assign(**columns)


def group_column(
    obs: pd.DataFrame, key: str, *, argument: str, remedy: str = "leave these cells out", drop_missing: bool = False
) -> pd.Series:
    """Take the column that divides cells into groups, as categories of text.

    Parameters
    ----------
    argument, remedy
        By what the user chooses the column, and what to do where it lacks values, for the messages.
    drop_missing
        Leave out cells for which it lacks values, with a warning.

    Raises
    ------
    InputError
        If there is no such column, it lacks values, holds measurements, or one value only.
    """
    if key not in obs:
        available = ", ".join(map(str, obs)) or "none"
        raise InputError(f"obs has no column {key!r}; name one by `{argument}=` (there are: {available}).")
    if is_float_dtype(obs[key]) and not (obs[key].isna().any() and is_whole(obs[key])):
        raise InputError(f"obs[{key!r}] holds decimal numbers, not groups of cells; name another by `{argument}=`.")
    groups = text(obs[key])
    missing = is_missing(groups)
    if missing.all():
        raise InputError(f"obs[{key!r}] has no value for any cell; name another by `{argument}=`.")
    if missing.any() and not drop_missing:
        raise InputError(
            f"obs[{key!r}] has no value for {missing.sum()} of {len(obs)} cells, for example "
            f"{obs.index[missing.argmax()]}; complete it, or {remedy}."
        )
    if missing.any():
        logger.warning("Left out %d of %d cells, which have no value in obs[%r].", missing.sum(), len(obs), key)
        groups = groups[~missing].cat.remove_unused_categories()
    unfit = next(filter(is_unfit, groups.cat.categories), None)
    if unfit is not None:
        raise InputError(f"obs[{key!r}] has the value {unfit!r}, which files cannot hold; rename it.")
    if groups.nunique() < 2:
        raise InputError(f"obs[{key!r}] has one value for all cells; name another by `{argument}=`.")
    return groups


def is_missing(groups: pd.Series) -> pd.Series:
    """Mask of the cells without a value in a column of text: absent, empty, or ``nan``."""
    return groups.isna() | groups.isin(["", "nan"])


def is_whole(column: pd.Series) -> bool:
    """Whether a column of floating point numbers holds whole ones alone, as integers with gaps do in pandas."""
    return bool((column.dropna() % 1 == 0).all())


def is_unfit(name: str) -> bool:
    """Tell whether a name has zero bytes, carriage returns or halves of letters, which do not come out of files again.

    HDF5 does not write the first, tables (.csv) take the second for the ends of rows, and UTF-8 lacks the third.
    """
    return any(letter in "\0\r" or "\ud800" <= letter <= "\udfff" for letter in name)


def text(column: pd.Series) -> pd.Series:
    """Turn values into categories of text; missing ones stay so, and whole numbers are written as integers."""
    if is_float_dtype(column) and is_whole(column):
        column = column.astype("Int64")

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
