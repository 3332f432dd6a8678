"""Cells in another condition: counts of real or generated cells, thinned or added to as their type responds."""

import difflib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError, counted
from bdm._core.files import provenance, storable
from bdm._core.schema import checked
from bdm._core.seeds import numpy_generator
from bdm._core.validation import SEPARATOR, unknown_condition, unknown_type
from bdm.data.columns import as_names, name_in, text_column, writable
from bdm.data.counts import raw_counts
from bdm.data.read import rna_in
from bdm.kriging.counts import PSEUDO, columns_of, with_shares
from bdm.responses.measured import conditions_of
from bdm.responses.results import Responses

logger = logging.getLogger(__name__)

BLOCK = 512  # cells that are changed together; the random numbers of a seed depend on it
ABOUT = "Predicted cells: measured or generated cells, changed by bdm to another condition; they are no measurements."


@checked
def predict_cells(
    responses: Responses,
    adata: AnnData,
    condition: str,
    *,
    cell_types: str | Sequence[str] = (),
    counts: str = "auto",
    seed: int = 0,
) -> AnnData:
    """Change cells to another condition, one for one.

    ::

        stimulated = bdm.tl.predict_cells(responses, adata[adata.obs["condition"] == "ctrl"], "stim")

    The log fold changes of the type, from the condition of the cells to the new one, change the share p of a gene in
    the counts of all its cells to q. Where q < p, counts are thinned by q / p; where q > p, counts with the mean
    N (q - p) are added to a cell with library size N, so dispersed that the counts have the dispersion of the new
    condition. A type that the responses lack is predicted from its profile in these cells, which then have to be of the
    control.

    Parameters
    ----------
    responses
        Result of :func:`bdm.tl.respond`.
    adata
        Cells with raw counts, and the type of each; without the columns of conditions, all are of the control.
    condition
        The new condition, or the control.
    cell_types
        Types whose cells are changed and returned; all, if none are named. Cells that are in the condition already are
        left out.
    counts
        Where the raw counts are, see :func:`bdm.data.counts.find_counts`.

    Returns
    -------
    Raw counts of all genes of the input (CSR, float32), and its ``obs`` with the new condition, ``original_condition``,
    ``response`` (``measured`` or ``predicted``), and ``synthetic`` (True).

    Raises
    ------
    InputError
        If a condition or cell type is unknown, genes are missing, counts are not raw, or a type without a known profile
        has no control cells.
    """
    condition = str(condition)
    cells, before, n_left = cells_to_change(responses, adata, condition, as_names(cell_types), counts)
    if n_left:
        logger.info("Left out %s in %s already.", counted(n_left, "cell"), condition)
    labels = text_column(cells.obs, responses.label_key, argument="label_key")
    column = columns_of(cells, responses.genes.index, whose="responses")
    measured = pd.Series("", index=labels.index)
    pieces, order = [], []
    for sentence in new_types(responses, cells, labels.where(before == responses.control), column):
        logger.warning("%s", sentence)
    for (name, old), rows in pd.Series(np.arange(len(labels))).groupby([labels.to_numpy(), before.to_numpy()]):
        of_group = cells.X[rows.to_numpy()]
        share = share_of(of_group, column)
        change, is_measured = change_of(responses, str(name), str(old), condition, share)
        measured.iloc[rows.to_numpy()] = "measured" if is_measured else "predicted"
        spread = [responses.dispersion[number_of(responses, which)] for which in (str(old), condition)]
        for block, start in enumerate(range(0, len(rows), BLOCK)):
            taken = slice(start, start + BLOCK)
            generator = numpy_generator(seed, "response", str(name), str(old), condition, block)
            pieces.append(with_changes(of_group[taken], column, change, share, spread, generator))
        order.append(rows.to_numpy())
    stacked = sparse.vstack(pieces, format="csr")[np.argsort(np.concatenate(order))]
    obs = cells.obs.copy()
    values = condition.split(SEPARATOR) if len(responses.condition_key) > 1 else [condition]
    for key, value in zip(responses.condition_key, values, strict=True):
        obs[name_in(obs, key)] = pd.Categorical([value] * len(obs))
    obs["original_condition"], obs["response"] = pd.Categorical(before), pd.Categorical(measured)
    obs["synthetic"] = True
    record = provenance(seed=seed, about=ABOUT, condition=condition, expected_error=expectation(responses, condition))
    return AnnData(stacked, obs=writable(obs), var=writable(cells.var), uns={"bdm": storable(record)})


def cells_to_change(
    responses: Responses, adata: AnnData, condition: str, cell_types: tuple[str, ...], counts: str
) -> tuple[AnnData, pd.Series, int]:
    """Select the raw counts of cells to change to a condition, and where each is; and count those that are in it."""
    if condition not in (responses.control, *responses.conditions):
        raise InputError(unknown_condition(condition, (responses.control, *responses.conditions)))
    adata = rna_in(adata, counts=counts)
    labels = text_column(adata.obs, responses.label_key, argument="label_key")
    before = conditions_before(responses, adata.obs)
    for name in cell_types:
        if name not in set(labels):
            raise InputError(unknown_type(name, sorted(set(labels)), of="The cells have"))
    of_types = labels.isin(cell_types or set(labels))
    chosen = (of_types & (before != condition)).to_numpy()
    if adata.n_obs and not chosen.any():
        raise InputError(f"All of these cells are in {condition!r} already; give cells of another condition.")
    cells = raw_counts(adata if chosen.all() else adata[chosen], source=counts)
    return cells, before[chosen], int(of_types.sum() - chosen.sum())


def share_of(counts: sparse.csr_matrix, column: np.ndarray) -> np.ndarray:
    """Share of some genes in the counts of all cells."""
    return np.asarray(counts[:, column].sum(axis=0), dtype=float).ravel() / float(max(counts.sum(dtype=float), 1))


def profile_of(counts: sparse.csr_matrix, column: np.ndarray) -> np.ndarray:
    """Log shares of some genes in the counts of all cells, as :attr:`MeasuredResponses.profile` has them."""
    return np.asarray(np.log(share_of(counts, column) + PSEUDO))


def new_types(responses: Responses, cells: AnnData, labels: pd.Series, column: np.ndarray) -> Iterator[str]:
    """Phrase of each type of control cells, which have labels, what its prediction rests on if responses lack it."""
    for name in sorted(set(labels.dropna()) - set(responses.related_types)):
        near = difflib.get_close_matches(name, set(responses.related_types), n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        profile = profile_of(cells.X[(labels == name).to_numpy()], column)
        distance = responses.relations({name: profile}).distance[-1, :-1]
        nearest = responses.related_types[int(distance.argmin())]
        yield (
            f"The responses have too few control cells of the type {name!r}, or none{meant}; its response is predicted "
            f"from the profile of its cells here, which is nearest to that of {nearest!r}."
        )


def conditions_before(responses: Responses, obs: pd.DataFrame) -> pd.Series:
    """Condition of each cell; that of the control, where ``obs`` has no such columns, as generated cells may not."""
    if not any(name_in(obs, key) in obs for key in responses.condition_key):
        return pd.Series(responses.control, index=obs.index)
    found = conditions_of(obs, responses.condition_key)
    known = (responses.control, *responses.conditions)
    if not found.isin(known).all():
        raise InputError(unknown_condition(str(found[~found.isin(known)].iloc[0]), known))
    return found


def number_of(responses: Responses, condition: str) -> int:
    """Row of the dispersion of a condition, or of the control."""
    return 0 if condition == responses.control else 1 + responses.condition_number(condition)


def change_of(responses: Responses, cell_type: str, old: str, new: str, share: np.ndarray) -> tuple[np.ndarray, bool]:
    """Log fold changes of a type between two conditions, and whether both of its responses were measured."""
    known = cell_type in responses.related_types
    if not known and old != responses.control:
        raise InputError(
            f"The responses have no control cells of {cell_type!r}, and the given cells are of {old!r}; give cells of "
            f"the control {responses.control!r}."
        )
    added = {} if known else {cell_type: np.log(share + PSEUDO)}
    change, is_measured = np.zeros(len(share)), True
    for condition, sign in ((new, 1), (old, -1)):
        if condition != responses.control:
            change += sign * responses.predictions(condition, [cell_type], added).mean[:, 0]
            is_measured &= responses.is_measured(condition, cell_type)
    return change, is_measured


def with_changes(
    counts: sparse.csr_matrix,
    column: np.ndarray,
    change: np.ndarray,
    share: np.ndarray,
    spread: list[np.ndarray],
    generator: np.random.Generator,
) -> sparse.csr_matrix:
    """Change the counts of some genes (``column``) of cells, whose type has the ``share``, by log fold changes."""
    return with_shares(counts, column, share, (share + PSEUDO) * np.exp(change) - PSEUDO, spread, generator)


def expectation(responses: Responses, condition: str) -> str:
    """State the error to expect in a condition; in all, where cells go back to the control."""
    if condition != responses.control:
        return responses.sentence(condition)
    return "; ".join(responses.sentence(name) for name in responses.conditions)


def effects_of_cells(
    responses: Responses, adata: AnnData, condition: str, *, cell_types: str | Sequence[str] = (), counts: str = "auto"
) -> pd.DataFrame:
    """Tabulate the log fold changes by which :func:`predict_cells` changes these cells, from and to the control.

    Returns: tables of :meth:`bdm.responses.results.Responses.effects`, with the ``condition`` first: the new one, or
    where cells go back to the control, those that they are in.
    """
    cells, before, _ = cells_to_change(responses, adata, condition, as_names(cell_types), counts)
    labels = text_column(cells.obs, responses.label_key, argument="label_key")
    names, column = tuple(sorted(labels.unique())), columns_of(cells, responses.genes.index, whose="responses")
    profiles = {
        name: profile_of(cells.X[(labels == name).to_numpy()], column)
        for name in names
        if name not in responses.related_types
    }
    conditions = sorted(set(before)) if condition == responses.control else [condition]
    tables = {name: responses.effects(name, names, profiles=profiles) for name in conditions}
    return pd.concat(tables, names=["condition"]).reset_index("condition").reset_index(drop=True)
