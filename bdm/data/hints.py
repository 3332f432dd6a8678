"""Hints on what may have been missed in a user's data: names of types that are none, columns of batches, markers."""

import logging
import re

import pandas as pd
from pandas.api.types import is_float_dtype

from bdm.data.columns import text

logger = logging.getLogger(__name__)

NO_TYPES = re.compile(
    r"\b(unknowns?|unassigned|unlabell?ed|unclassified|unannotated|undetermined|undefined|unidentified"
    r"|doublets?|multiplets?|low qual(ity)?|ambiguous|debris)\b|^(na|n a|none|null)$"
)
BATCHES = re.compile(r"\b(batch|donor|sample|library|channel|patient|individual|subject|lane|orig ident)(id)?\b")
MEASURED = re.compile(r"\b(n|total|size|counts?|score|quality|pct|percent|age|sex)\b")  # of a sample, as library_size


def hint_at_types(cell_type: pd.Series) -> None:
    """Warn of types whose names are those of cells that are of no type, such as ``Unknown`` or ``Doublets``."""
    doubtful = [name for name in cell_type.unique() if NO_TYPES.search(words_in(name))]
    if doubtful:
        names = ", ".join(map(repr, sorted(doubtful)))
        logger.warning("By their names, these may be no cell types: %s; to leave them out, use `leave_out=`.", names)


def hint_at_batches(obs: pd.DataFrame, cell_type: pd.Series, *, label_key: str) -> None:
    """Log which columns of ``obs`` look like batches, where no batches were named."""
    found = batch_columns(obs, cell_type, label_key=label_key)
    if found:
        names = ", ".join(map(str, found))
        logger.info("Columns of obs that look like batches: %s; to model one of them, use `batch_key=`.", names)


def hint_at_markers(lacking: pd.Series) -> None:
    """Log the markers of common cell types, by symbol, that are not among the most variable genes."""
    if len(lacking):
        logger.info(
            "Not among the most variable genes: %d markers of common cell types, such as %s; to add them, use "
            "`keep_genes='markers'`.",
            len(lacking),
            ", ".join(lacking[:3]),
        )


def batch_columns(obs: pd.DataFrame, cell_type: pd.Series, *, label_key: str) -> list[str]:
    """Find columns that look like batches: by their names, with several values, not of single cells or of types."""
    return [
        name
        for name in obs.columns.drop([label_key, "cell_type", "split"], errors="ignore")
        if BATCHES.search(words_in(name)) and not MEASURED.search(words_in(name)) and is_grouping(obs[name], cell_type)
    ]


def is_grouping(column: pd.Series, cell_type: pd.Series) -> bool:
    """Whether a column divides the cells into groups of several, and also the cells of a type."""
    if is_float_dtype(column):
        return False
    groups = text(column)
    of_types = groups.groupby(cell_type, observed=True).nunique()
    return 1 < groups.nunique() <= len(column) / 2 and bool((of_types > 1).any())


def words_in(name: object) -> str:
    """Bring a name to words in lower case, with one space between them."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(name))
    return re.sub(r"[\W_]+", " ", words).strip().lower()
