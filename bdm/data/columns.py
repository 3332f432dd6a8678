"""Columns of ``obs`` and ``var``: groups, covariates, and names that files allow."""

import logging
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype, is_bool_dtype, is_float_dtype, is_numeric_dtype

from bdm._core.errors import InputError, abbreviated
from bdm._core.validation import NO_LABELS, PREPARED_COLUMNS, alike_names, column_rejection, shown
from bdm.data.header import MISSING_LABELS
from bdm.settings import WITHOUT_LABELS, PrepareSettings

logger = logging.getLogger(__name__)

INDEX = "_index"  # name of the index in AnnData files
# Columns that bdm writes for generated and transmuted cells, and the index of AnnData files
RESERVED_COLUMNS = (
    "cell_type",
    "sub_population",
    "original_type",
    "synthetic",
    "ancestor",
    "common_ancestor",
    "common_ancestor_level",
    INDEX,
)
RESERVED_FOR_GROUPS = {*RESERVED_COLUMNS} - {"cell_type", INDEX}
RESERVED_FOR_COVARIATES = {*RESERVED_COLUMNS, *PREPARED_COLUMNS, "n_cells"}  # n_cells: in tables of cells to generate


def canonical_columns(obs: pd.DataFrame, settings: PrepareSettings) -> pd.DataFrame:
    """Add ``cell_type`` and, with their keys, ``batch``, ``donor`` and ``section`` to ``obs``.

    Removes unlabelled cells if the settings say so. Existing columns that would be overwritten become ``NAME_input``.
    """
    check_keys(obs, settings)
    if settings.label_key is None:
        labels = one_label(obs.index)
    else:
        labels = group_column(
            obs,
            settings.label_key,
            argument="label_key",
            alternative=NO_LABELS,
            remedy="leave them out by `drop_unlabelled=True`",
            drop_missing=settings.drop_unlabelled,
        )
    obs = obs if len(labels) == len(obs) else obs.loc[labels.index]
    columns = {"cell_type": labels}
    for name, key in {"batch": settings.batch_key, "donor": settings.donor_key}.items():
        if key is not None:
            columns[name] = group_column(obs, key, argument=f"{name}_key")
    if settings.section_key is not None:
        columns["section"] = text_column(obs, settings.section_key, argument="section_key").astype("category")
    unused = {"donor": settings.donor_key, "section": settings.section_key}
    for name in PREPARED_COLUMNS:
        if name not in obs or (name in unused and unused[name] is None):
            continue
        if name in columns and columns[name].equals(as_text(obs[name])):
            continue
        kept = f"{name}_input"
        while kept in obs:
            kept += "_input"
        level = logging.DEBUG if name == "batch" and settings.batch_key is None else logging.WARNING
        logger.log(level, "The input's column %s of obs is kept as %s.", name, kept)
        obs = obs.rename(columns={name: kept})
    return obs.assign(**columns)


def check_keys(obs: pd.DataFrame, settings: PrepareSettings) -> None:
    """Reject reserved names and names that coincide in files; warn of names that files cannot hold."""
    groups = {"label_key": settings.label_key, "batch_key": settings.batch_key, "donor_key": settings.donor_key}
    for argument, key in (*groups.items(), *(("covariate_key", key) for key in settings.covariate_key)):
        if key in (RESERVED_FOR_GROUPS if argument in groups else RESERVED_FOR_COVARIATES):
            raise InputError(
                f"obs[{key!r}] is named by `{argument}=`, but bdm writes a column of this name; rename the column."
            )
    for key in settings.covariate_key:
        if alike := [name for name in obs if name != key and writable_name(name) == writable_name(key)]:
            raise InputError(
                f"obs has the columns {key!r} and {alike[0]!r}, which have the same name in files; rename one of them."
            )
    for key in filter(None, (*groups.values(), *settings.covariate_key, settings.section_key)):
        if key in obs and (written := writable_name(key)) != key:
            logger.warning(
                "obs[%r] is named %r in files and in generated cells, because AnnData files cannot hold the name.",
                key,
                written,
            )


def check_crossed(obs: pd.DataFrame, key: str) -> None:
    """Reject donors that are confounded with cell types or batches."""
    name, remedy = f"obs[{key!r}]", "name another column by `donor_key=`, or none"
    donor, n_types = obs["donor"], obs["cell_type"].nunique()
    if n_types > 1 and (obs.groupby("donor", observed=True)["cell_type"].nunique() == 1).all():
        raise InputError(
            f"Each donor in {name} has cells of one cell type only, so that differences between donors cannot be "
            f"separated from differences between cell types; {remedy}."
        )
    if (obs.groupby("cell_type", observed=True)["donor"].nunique() == 1).all():
        raise InputError(f"No cell type has cells of several donors in {name}, after the choice of cells; {remedy}.")
    if "batch" in obs and len(set(zip(donor, obs["batch"], strict=True))) == donor.nunique() == obs["batch"].nunique():
        raise InputError(
            f"Each donor in {name} is a batch, so that differences between donors cannot be separated from differences "
            "between batches; use `donor_key=` or `batch_key=`, not both."
        )


ANOTHER_COVARIATE = "name another by `covariate_key=`"  # remedy in messages


def covariate_columns(obs: pd.DataFrame, keys: tuple[str, ...]) -> dict[str, pd.Series]:
    """Return covariates as floats, named as in files; reject constant ones."""
    columns = finite_columns(obs, keys)
    for key, numbers in columns.items():
        if numbers.nunique() < 2:
            raise InputError(f"obs[{key!r}] has one value for all cells; {ANOTHER_COVARIATE}.")
    return {writable_name(key): numbers for key, numbers in columns.items()}


def finite_columns(obs: pd.DataFrame, keys: tuple[str, ...]) -> dict[str, pd.Series]:
    """Return covariates as floats; reject missing and infinite values."""
    need = "cells depend on a covariate as a number"
    return {key: finite_column(obs, key, argument="covariate_key", need=need) for key in keys}


def finite_column(obs: pd.DataFrame, key: str, *, argument: str, need: str) -> pd.Series:
    """Return a column of ``obs`` as floats; reject missing and infinite values, and say what ``need`` for numbers."""
    if sentence := column_rejection(key, obs, argument=argument):
        raise InputError(sentence)
    numbers = as_numbers(obs[key])
    if numbers is None:
        raise InputError(f"obs[{key!r}] holds {shown_kind(obs[key])}, but {need}; name another by `{argument}=`.")
    missing = ~np.isfinite(numbers)
    if missing.any():
        raise InputError(
            f"obs[{key!r}] has no finite number for {missing.sum()} of {len(obs)} cells, for example "
            f"{obs.index[missing.argmax()]}; complete it, or leave these cells out."
        )
    return numbers


def as_numbers(column: pd.Series) -> pd.Series | None:
    """Convert numbers, also as text, to floats; None for other values."""
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    if is_numeric_dtype(values) and not is_bool_dtype(values):
        return pd.Series(column.to_numpy(dtype=float, na_value=np.nan), index=column.index)
    text = as_text(column)
    numbers = pd.to_numeric(text.astype(object), errors="coerce").astype(float)
    return numbers if (numbers.notna() | is_missing(text)).all() else None


def shown_kind(column: pd.Series) -> str:
    """Describe the values of a column that is not numeric, for errors."""
    if is_bool_dtype(column):
        return "true and false"
    values = column.dropna()
    text = values[pd.to_numeric(values.astype(str), errors="coerce").isna().to_numpy()]
    return f"values such as {[*text, *values][0]!r}" if len(values) else "no values"


def one_label(cells: pd.Index) -> pd.Series:
    """Return the column of cell types for unlabelled cells."""
    return pd.Series(pd.Categorical([WITHOUT_LABELS] * len(cells)), index=cells)


def group_column(
    obs: pd.DataFrame,
    key: str,
    *,
    argument: str,
    alternative: str = "",
    remedy: str = "leave these cells out",
    drop_missing: bool = False,
) -> pd.Series:
    """Return a column that divides cells into groups, as text categories.

    Cells without a value are removed with ``drop_missing``, otherwise rejected.
    """
    if sentence := column_rejection(key, obs, argument=argument, alternative=alternative):
        raise InputError(sentence)
    another = f"name another by `{argument}=`{alternative}"
    if is_float_dtype(obs[key]) and not (obs[key].isna().any() and is_whole(obs[key])):
        raise InputError(f"obs[{key!r}] holds decimal numbers, not groups of cells; {another}.")
    groups = distinct_text(obs, key)
    missing = is_missing(groups)
    if missing.all():
        raise InputError(f"obs[{key!r}] has no value for any cell; {another}.")
    if not drop_missing:
        check_complete(groups, key, remedy=remedy)
    if missing.any():
        logger.warning("Left out %d of %d cells, which have no value in obs[%r].", missing.sum(), len(obs), key)
        groups = groups[~missing].cat.remove_unused_categories()
    unwritable = next(filter(is_unwritable, groups.cat.categories), None)
    if unwritable is not None:
        raise InputError(f"obs[{key!r}] has the value {unwritable!r}, which files cannot hold; rename it.")
    if groups.nunique() < 2:
        raise InputError(f"obs[{key!r}] has one value for all cells; {another}.")
    if alike := alike_names(groups.cat.categories):
        logger.warning(
            "obs[%r] has %s, which differ by spaces or case alone; give them one name, if they are the same.",
            key,
            abbreviated([" and ".join(map(repr, names)) for names in alike], n_shown=5),
        )
    return groups


def complete_column(obs: pd.DataFrame, key: str) -> pd.Series:
    """Return a column of ``obs`` as text categories; reject missing values."""
    column = distinct_text(obs, key)
    check_complete(column, key)
    return column


def as_names(names: object) -> tuple[str, ...]:
    """Convert one or several names, which may be numbers, to text."""
    return (str(names),) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(map(str, names))


def text_column(obs: pd.DataFrame, key: str, *, argument: str) -> pd.Series:
    """Return a column of ``obs`` as text; it may be constant."""
    key = name_in(obs, key)
    if sentence := column_rejection(key, obs.columns, argument=argument):
        raise InputError(sentence)
    return complete_column(obs, key).astype(str)


def check_complete(column: pd.Series, key: str, *, remedy: str = "leave these cells out") -> None:
    """Reject missing values in a text column, ``obs[key]``."""
    missing = is_missing(column)
    if missing.any():
        raise InputError(
            f"obs[{key!r}] has no value for {missing.sum()} of {len(column)} cells, for example "
            f"{column.index[missing.argmax()]}; complete it, or {remedy}."
        )


def is_missing(labels: pd.Series) -> pd.Series:
    """Return a mask of missing labels, including the text in ``MISSING_LABELS``."""
    return labels.isna() | labels.isin(MISSING_LABELS)


def is_whole(column: pd.Series) -> bool:
    """Return whether a float column has only integers and missing values."""
    return bool((column.dropna() % 1 == 0).all())


def as_strings(column: pd.Series) -> pd.Series:
    """Convert all values to strings, including missing ones, which ``astype(str)`` of pandas 3 keeps."""
    return column.astype(object).map(str)


def is_text(column: pd.Series) -> bool:
    """Return whether all values or categories are text, ignoring missing ones."""
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    return bool(infer_dtype(values, skipna=True) == "string")


def is_unwritable(name: str) -> bool:
    """Return whether a name has characters that files do not preserve.

    HDF5 does not write zero bytes, CSV rows end at carriage returns, and UTF-8 has no lone surrogates.
    """
    return any(letter in "\0\r" or "\ud800" <= letter <= "\udfff" for letter in name)


def as_text(column: pd.Series) -> pd.Series:
    """Convert to text categories; whole floats become integers, missing values stay."""
    if is_float_dtype(column) and is_whole(column):
        column = column.astype("Int64")

    def text_of(value: object) -> str:
        return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)

    return column.astype(object).map(text_of, na_action="ignore").astype("category")


def distinct_text(obs: pd.DataFrame, key: str) -> pd.Series:
    """Convert a column of ``obs`` to text categories; reject values that would become one, such as 1 and ``"1"``."""
    values = pd.Series(obs[key].unique())
    text = as_text(values)
    if (merged := text.notna() & text.duplicated(keep=False)).any():
        same = " and ".join(map(shown, values[text == text[merged].iloc[0]]))
        raise InputError(f"obs[{key!r}] has the values {same}, which are one name as text; rename one of them.")
    return as_text(obs[key])


def writable_name(name: object) -> str:
    """Return a column's name in AnnData files, which reserve slashes and ``_index``."""
    text = str(name).replace("/", "_")
    return f"{text}_" if text == INDEX else text


def name_in(obs: pd.DataFrame, key: str) -> str:
    """Return the name of column ``key`` in ``obs``, which may be its :func:`writable_name`."""
    written = writable_name(key)
    return written if key not in obs and written in obs else key


def with_written_names(obs: pd.DataFrame) -> pd.DataFrame:
    """Rename columns as in files; models store the names of covariates in this form."""
    return obs.set_axis(writable_names(obs.columns), axis=1)


def writable_names(names: Iterable[object]) -> list[str]:
    """Return unique column names for AnnData files; writable ones stay the same."""
    written: list[str] = []
    originals = list(map(str, names))
    for text in originals:
        name = writable_name(text)
        while name in written or (name != text and name in originals):
            name += "_"
        written.append(name)
    return written


def writable(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert columns that AnnData files do not support, such as dates, to text."""
    frame = frame.set_axis(pd.Index(writable_names(frame.columns), dtype=str), axis=1).rename_axis(index=None)
    for name, column in frame.items():
        values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
        is_plain_text = values.dtype in (object, "str") and infer_dtype(values) == "string"  # "str": text in pandas 3
        if not is_plain_text and not is_numeric_dtype(values):
            frame[name] = as_text(column)
    return frame


def without_unused_categories(frame: pd.DataFrame) -> pd.DataFrame:
    """Remove unused categories from all columns."""
    categories = frame.select_dtypes("category")
    return frame.assign(**{name: column.cat.remove_unused_categories() for name, column in categories.items()})


# ---- hints by names of columns and labels, as words (words_in)

NO_TYPES = re.compile(  # labels that are hardly cell types
    r"\b(unknowns?|unassigned|unlabell?ed|unclassified|unannotated|undetermined|undefined|unidentified"
    r"|doublets?|multiplets?|low qual(ity)?|ambiguous|debris)\b|^(na|n a|none|null)$"
)
# Columns that may be batches, and columns that are measurements in spite of such a word, as library_size
BATCHES = re.compile(
    r"\b(batch|donor|sample|library|channel|patient|individual|subject|lane|orig ident"
    r"|run|plate|pool|chip|flow ?cell)(id)?\b"
)
MEASURED = re.compile(r"\b(n|total|size|counts?|score|quality|pct|percent|age|sex)\b")


def hint_at_types(cell_type: pd.Series) -> None:
    """Warn of labels that may not be cell types, such as ``Doublets``."""
    if names := ", ".join(repr(name) for name in sorted(cell_type.unique()) if NO_TYPES.search(words_in(name))):
        logger.warning(
            "By their names, these may be no cell types: %s; to leave them out, use `settings.prepare.leave_out=`.",
            names,
        )


def hint_at_batches(obs: pd.DataFrame, cell_type: pd.Series, settings: PrepareSettings) -> None:
    """Log columns that are named like batches and divide a cell type."""

    def divides(column: pd.Series) -> bool:
        if is_float_dtype(column):
            return False
        groups = as_text(column)
        by_type = groups.groupby(cell_type, observed=True).nunique()
        return 1 < groups.nunique() <= len(column) / 2 and bool((by_type > 1).any())

    others = (settings.label_key, settings.donor_key, "cell_type", "split")
    words = {name: words_in(name) for name in obs.columns if name not in others}
    like_batches = [name for name, text in words.items() if BATCHES.search(text) and not MEASURED.search(text)]
    if candidates := ", ".join(str(name) for name in like_batches if divides(obs[name])):
        logger.info("Columns of obs that look like batches: %s; to model one of them, use `batch_key=`.", candidates)


def words_in(name: object) -> str:
    """Convert a name to lower-case words, separated by single spaces."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(name))
    return re.sub(r"[\W_]+", " ", words).strip().lower()
