import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bdm.data.counts import CellCounts
from bdm.data.hints import hint_at_markers
from bdm.data.markers import MARKERS
from bdm.data.symbols import GeneNames
from bdm.data.variability import Sums, most_variable
from bdm.errors import InputError

logger = logging.getLogger(__name__)

GeneList = str | Path | Sequence[str]  # a file with one name a line, or names


def as_names(genes: GeneList | None) -> str | Path | tuple[str, ...] | None:
    """Bring names to a tuple; text, which names a file or a way to choose genes, stays as it is."""
    return genes if genes is None or isinstance(genes, str | Path) else tuple(dict.fromkeys(map(str, genes)))


def read_gene_list(genes: GeneList, *, option: str, words: str) -> pd.Index:
    """Read gene names from a file with one a line, or take them as they are given.

    Parameters
    ----------
    option, words
        How genes are chosen, such as ``genes=``, and by which words they may be instead, for the messages.

    Raises
    ------
    InputError
        If there is no such text file, or there are no names.
    """
    if not isinstance(genes, str | Path):
        if not genes:
            raise InputError(f"`{option}` lists no genes; name some, or give {words}.")
        return pd.Index(genes)
    try:
        lines = Path(genes).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`{option}` takes {words} or a text file of names; {genes} is none.") from error
    names = pd.Index([line.strip() for line in lines if line.strip()]).unique()
    if names.empty:
        raise InputError(f"{genes} names no genes; write one a line.")
    return names


def listed_genes(listed: pd.Index, names: GeneNames) -> pd.Index:
    """Find the genes of a list, in which they have their names or symbols.

    Raises
    ------
    InputError
        If the data lack any of them.
    """
    found = names.find(listed)
    absent = [name for name, genes in found.items() if not genes]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(listed)} listed genes are not in the data, for example "
            f"{', '.join(absent[:3])}; its genes are named like {names.example()}."
        )
    return pd.Index([gene for genes in found.values() for gene in genes])


def marker_genes(names: GeneNames) -> pd.Index:
    """Find the built-in markers among the genes, without regard to case, as symbols of mice differ by that."""
    found = names.find((marker for markers in MARKERS.values() for marker in markers), ignore_case=True)
    return pd.Index([gene for genes in found.values() for gene in genes]).unique()


def choose_genes(
    train: CellCounts,
    names: GeneNames,
    batch: pd.Series | None = None,
    *,
    listed: pd.Index | None = None,
    kept: pd.Index | None = None,
    built_in: bool = False,
    n_most_variable: int | None = None,
    min_cells: int,
) -> np.ndarray:
    """Choose genes by the training cells alone, so that none of the others bears on the choice.

    Parameters
    ----------
    names
        Of all genes.
    batch
        Of each training cell, if genes are ranked within batches.
    listed
        Choose among these only.
    kept
        Add these to the chosen ones.
    built_in
        Whether ``kept`` are the built-in markers, of which rare ones are left out without a warning.
    n_most_variable
        Choose so many by :func:`bdm.data.variability.most_variable`.
    min_cells
        Choose among genes with counts in so many cells.

    Returns
    -------
    Mask over genes.
    """
    genes = names.index
    batch = pd.Categorical(["all"] * len(train.rows)) if batch is None else pd.Categorical(batch.astype(str))
    sums = Sums.over(train, batch, n_genes=len(genes))
    seen = sums.n_seen.sum(axis=0) >= min_cells
    if not seen.all():
        logger.info("%d genes are seen in fewer than %d training cells.", (~seen).sum(), min_cells)
    is_listed, is_kept = (np.zeros(len(genes), bool) if of is None else genes.isin(of) for of in (listed, kept))
    rare = names.labels[(is_listed if built_in else is_listed | is_kept) & ~seen]
    if len(rare):
        logger.warning("Left out listed genes seen in fewer than %d training cells: %s.", min_cells, ", ".join(rare))
    chosen = seen if listed is None else seen & is_listed
    if not chosen.any():
        raise InputError(f"no gene is seen in {min_cells} training cells; lower `min_cells_per_gene=`.")
    if n_most_variable is not None and n_most_variable < chosen.sum():
        available, chosen = chosen, most_variable(train, batch, sums, among=chosen, n_genes=n_most_variable)
        if kept is None:
            markers = marker_genes(names)
            hint_at_markers(names.labels[markers[(available & ~chosen)[genes.get_indexer(markers)]]])
    added = is_kept & seen & ~chosen
    if added.any():
        logger.info("Kept %d genes beside the %d that are chosen otherwise.", added.sum(), chosen.sum())
    return chosen | added
