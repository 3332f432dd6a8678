"""Predict cells in another condition by changing counts of real or generated cells."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.files import provenance, storable
from bdm._core.schema import checked
from bdm._core.seeds import numpy_generator
from bdm._core.validation import SEPARATOR, label_candidates, nearest_or, unknown_condition, unknown_type
from bdm.applications.kriging.log_expression import PSEUDO, with_shares
from bdm.applications.responses.measured_responses import conditions_of
from bdm.applications.responses.responses import Responses
from bdm.data.columns import as_names, name_in, text_column, writable
from bdm.data.counts import raw_counts
from bdm.data.read import rna_in

logger = logging.getLogger(__name__)

BLOCK = 512  # cells per block; changing it changes the random numbers of a seed
ABOUT = "Predicted cells: measured or generated cells, changed by bdm to another condition; they are no measurements."


@checked
def predict(
    responses: Responses,
    adata: AnnData,
    condition: str,
    *,
    cell_types: str | Sequence[str] = (),
    counts: str = "auto",
    seed: int = 0,
) -> AnnData:
    """Predict cells in another condition, one for each input cell.

    ::

        stimulated = bdm.tl.predict(responses, adata[adata.obs["condition"] == "ctrl"], "stim")

    The input cells of a type in a condition have the share p of counts of a gene in total. The log fold change of the
    type to the new condition changes p to q. If q < p, counts are thinned to the fraction q / p. If q > p, counts with
    mean N (q - p) are added, where N is the library size, with the dispersion of the new condition.

    A type that the responses lack is predicted from its profile in the input, which must be control cells. If the input
    lacks genes of the responses, as generated cells do, only the genes in common are changed. Their share of the full
    library is known from the control cells.

    Parameters
    ----------
    responses
        Result of :func:`bdm.tl.respond`.
    adata
        Cells with raw counts, and cell types in the column of the fit or ``cell_type``. Without a column of
        conditions, all are control cells.
    condition
        New condition. Control cells are changed to a condition, and cells of any condition back to the control; all
        other cells are left out.
    cell_types
        Types to change and return; all by default.
    counts
        Slot of the raw counts, see :func:`bdm.data.counts.find_counts`.
    seed
        Seed of all random numbers.

    Returns
    -------
    AnnData with raw counts of all input genes (CSR, float32). ``obs`` of the input gets the new condition,
    ``original_condition``, ``response`` (``measured`` or ``predicted``) and ``synthetic`` (True).

    Raises
    ------
    InputError
        If a condition or type is unknown, no cells or genes can be changed, or counts are not raw. Also if the
        responses lack a type, and its cells are not control cells.
    """
    condition = str(condition)
    cells, before, left_out = cells_to_change(responses, adata, condition, as_names(cell_types), counts)
    for name, number in left_out.items():
        why = " already" if name == condition else f"; cells of the control {responses.control} are changed"
        logger.info("Left out %s in %s%s.", counted(number, "cell"), name, why)
    labels = labels_of(responses, cells.obs)
    genes, column = shared_genes(responses, cells)
    if lacking := len(responses.genes) - len(genes):
        logger.warning(
            "The cells lack %s of the responses; %s are changed.", counted(lacking, "gene"), f"{len(genes):,}"
        )
    profiles, n_cells = new_profiles(responses, cells, before, genes, column), labels.value_counts()
    for name, profile in profiles.items():
        logger.warning("%s", new_type(responses, name, profile, genes, int(n_cells[name])))
    measured = pd.Series("", index=labels.index)
    pieces, order, predicted = [], [], []
    for (name, old), rows in pd.Series(np.arange(len(labels))).groupby([labels.to_numpy(), before.to_numpy()]):
        of_group, other = cells.X[rows.to_numpy()], str(old if condition == responses.control else condition)
        change = change_of(responses, str(name), other, genes, profiles) * (-1 if condition == responses.control else 1)
        predicted.append((other, str(name), not responses.is_measured(other, name)))
        measured.iloc[rows.to_numpy()] = "predicted" if predicted[-1][-1] else "measured"
        share, pseudo = share_of(of_group, column), PSEUDO / part_of(responses, str(name), genes)
        spread = [responses.dispersion[number_of(responses, which), genes] for which in (str(old), condition)]
        for block, start in enumerate(range(0, len(rows), BLOCK)):
            taken = slice(start, start + BLOCK)
            generator = numpy_generator(seed, "response", str(name), str(old), condition, block)
            pieces.append(with_changes(of_group[taken], column, change, share, spread, generator, pseudo=pseudo))
        order.append(rows.to_numpy())
    stacked = sparse.vstack(pieces, format="csr")[np.argsort(np.concatenate(order))]
    obs = cells.obs.copy()
    values = condition.split(SEPARATOR) if len(responses.condition_key) > 1 else [condition]
    for key, value in zip(responses.condition_key, values, strict=True):
        obs[name_in(obs, key)] = pd.Categorical([value] * len(obs))
    obs["original_condition"], obs["response"] = pd.Categorical(before), pd.Categorical(measured)
    obs["synthetic"] = True
    types = pd.DataFrame(predicted, columns=["condition", "type", "predicted"])
    error = "; ".join(expectations(responses, types, n_cells[[*profiles]]))
    record = provenance(seed=seed, about=ABOUT, condition=condition, expected_error=error)
    return AnnData(stacked, obs=writable(obs), var=writable(cells.var), uns={"bdm": storable(record)})


def cells_to_change(
    responses: Responses, adata: AnnData, condition: str, cell_types: tuple[str, ...], counts: str
) -> tuple[AnnData, pd.Series, pd.Series]:
    """Select the cells to change.

    Returns their raw counts, their conditions, and the number of left-out cells by condition. Control cells are changed
    to a condition, and cells of any condition to the control.
    """
    if condition not in (responses.control, *responses.conditions):
        raise InputError(unknown_condition(condition, (responses.control, *responses.conditions)))
    adata = rna_in(adata, counts=counts)
    labels = labels_of(responses, adata.obs)
    before = conditions_before(responses, adata.obs)
    for name in cell_types:
        if name not in set(labels):
            raise InputError(unknown_type(name, sorted(set(labels)), of="The cells have"))
    of_types = labels.isin(cell_types or set(labels)).to_numpy()
    in_control = (before == responses.control).to_numpy()
    chosen = of_types & (in_control != (condition == responses.control))
    left_out = before[of_types & ~chosen].value_counts()
    if adata.n_obs and not chosen.any():
        raise InputError(
            f"All of these cells are in {' or '.join(map(repr, left_out.index))}, but cells of the control "
            f"{responses.control!r} are changed to a condition, and others to the control alone; give such cells."
        )
    cells = raw_counts(adata if chosen.all() else adata[chosen], source=counts)
    return cells, before[chosen], left_out


def labels_of(responses: Responses, obs: pd.DataFrame) -> pd.Series:
    """Return cell types, from the column of the fit or ``cell_type``."""
    key = next((key for key in label_candidates(responses.label_key) if name_in(obs, key) in obs), None)
    if key is None:
        raise InputError(f"obs of the cells has no column {responses.label_key!r}, which the responses were made with.")
    return text_column(obs, key, argument="label_key")


def shared_genes(responses: Responses, cells: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of common genes in the responses, and columns in the cells."""
    column = np.asarray(cells.var_names.get_indexer(responses.genes.index))
    if (column < 0).all():
        raise InputError(
            f"The cells have none of the genes of the responses: {cells.var_names[0]!r} and others, but not "
            f"{responses.genes.index[0]!r} and others; give genes the same names."
        )
    return np.flatnonzero(column >= 0), column[column >= 0]


def part_of(responses: Responses, cell_type: str, genes: np.ndarray) -> float:
    """Return the share of some genes in control counts of a type.

    For types without a profile, the mean over types.
    """
    share = np.exp(responses.profile[responses.has_profile].astype(float)) - PSEUDO
    part = 1 - np.delete(share, genes, axis=1).sum(axis=1) / share.sum(axis=1)
    known = responses.related_types
    return float(part[known.index(cell_type)] if cell_type in known else part.mean())


def share_of(counts: sparse.csr_matrix, column: np.ndarray) -> np.ndarray:
    """Return the share of each of some genes in the summed counts."""
    return np.asarray(counts[:, column].sum(axis=0), dtype=float).ravel() / float(max(counts.sum(dtype=float), 1))


def new_profiles(
    responses: Responses, cells: AnnData, before: pd.Series, genes: np.ndarray, column: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute profiles of types that the responses lack, from their control cells."""
    labels, found = labels_of(responses, cells.obs), {}
    for name in sorted(set(labels) - set(responses.related_types)):
        is_type = (labels == name).to_numpy()
        others = before[is_type & (before != responses.control).to_numpy()]
        if len(others):
            raise InputError(
                f"The responses have too few control cells of {name!r}, or none, and the given cells are of "
                f"{others.iloc[0]!r}; give cells of the control {responses.control!r}, or leave the type out."
            )
        share = part_of(responses, name, genes) * share_of(cells.X[is_type], column)
        found[name] = np.log(share + PSEUDO)
    return found


def new_type(responses: Responses, name: str, profile: np.ndarray, genes: np.ndarray, n_cells: int) -> str:
    """Message for a type that the responses lack: how it is predicted."""
    n_known = int(responses.n_cells[responses.control].get(name, 0))
    known = f"too few control cells ({n_known})" if n_known else "no control cells"
    meant = "" if n_known else nearest_or(name, responses.related_types, "")
    distance = responses.of_genes(genes).relations({name: profile}).distance[-1, :-1]
    nearest = responses.related_types[int(distance.argmin())]
    return (
        f"The responses have {known} of {name!r}{meant and f' ({meant})'}; its response is predicted from the profile "
        f"of its {counted(n_cells, 'cell')} here, which is nearest to that of {nearest!r}."
    )


def conditions_before(responses: Responses, obs: pd.DataFrame) -> pd.Series:
    """Return the condition of each cell; the control if ``obs`` has no such column."""
    if not any(name_in(obs, key) in obs for key in responses.condition_key):
        return pd.Series(responses.control, index=obs.index)
    found = conditions_of(obs, responses.condition_key)
    known = (responses.control, *responses.conditions)
    if not found.isin(known).all():
        raise InputError(unknown_condition(str(found[~found.isin(known)].iloc[0]), known))
    return found


def number_of(responses: Responses, condition: str) -> int:
    """Return the row of a condition or the control in ``dispersion``."""
    return 0 if condition == responses.control else 1 + responses.condition_number(condition)


def change_of(
    responses: Responses, cell_type: str, condition: str, genes: np.ndarray, profiles: dict[str, np.ndarray]
) -> np.ndarray:
    """Predict log fold changes of genes from the control to a condition."""
    if cell_type not in profiles:
        return responses.predictions(condition, [cell_type], {}, genes).mean[:, 0]
    added = {cell_type: profiles[cell_type]}
    return responses.of_genes(genes).predictions(condition, [cell_type], added).mean[:, 0]


def with_changes(
    counts: sparse.csr_matrix,
    column: np.ndarray,
    change: np.ndarray,
    share: np.ndarray,
    spread: list[np.ndarray],
    generator: np.random.Generator,
    *,
    pseudo: float = PSEUDO,
) -> sparse.csr_matrix:
    """Change counts of the genes in ``column`` from their ``share`` by log fold changes.

    If the cells have only part of the genes, shares refer to this part, and the pseudo-count is PSEUDO / part.
    """
    return with_shares(counts, column, share, (share + pseudo) * np.exp(change) - pseudo, spread, generator)


def expectations(responses: Responses, types: pd.DataFrame, n_new: pd.Series) -> Iterator[str]:
    """Describe the error to expect for each type and condition.

    ``n_new`` is the number of control cells of each type that the responses lack.
    """
    least = responses.provenance["settings"]["min_cells"]
    few = n_new.index[n_new < least]
    for condition, of_condition in types.groupby("condition"):
        known = of_condition[~of_condition["type"].isin(few)]
        if known["predicted"].any():
            yield responses.sentence(str(condition))
        if names := known.loc[~known["predicted"], "type"].tolist():
            rows = (responses.errors["condition"] == condition) & responses.errors["cell_type"].isin(names)
            error = responses.errors.loc[rows, "sampling"].mean()
            yield f"{condition}: measured in {abbreviated(names)}, with {error:.0%} of the error of unchanged cells"
        if names := sorted(set(of_condition["type"]) & set(few)):
            yield f"{condition}: the error of {abbreviated(names)} is not known, with fewer than {least} control cells"


def effects_of_cells(
    responses: Responses, adata: AnnData, condition: str, *, cell_types: str | Sequence[str] = (), counts: str = "auto"
) -> pd.DataFrame:
    """Tabulate the log fold changes behind :func:`predict`.

    Returns the table of :meth:`bdm.applications.responses.responses.Responses.effects` with the first column
    ``condition``: the new condition, or the original one of cells that are changed back to the control.
    """
    cells, before, _ = cells_to_change(responses, adata, condition, as_names(cell_types), counts)
    genes, column = shared_genes(responses, cells)
    profiles, tables = new_profiles(responses, cells, before, genes, column), {}
    known = sorted(set(labels_of(responses, cells.obs)) - {*profiles})
    for name in sorted(set(before)) if condition == responses.control else [condition]:
        found = [responses.effects(name, known)] if known else []
        found += [responses.of_genes(genes).effects(name, each, profiles={each: of}) for each, of in profiles.items()]
        tables[name] = pd.concat(found).sort_values("cell_type", kind="stable")
    table = pd.concat(tables, names=["condition"]).reset_index("condition").reset_index(drop=True)
    return table[table["gene"].isin(responses.genes.index[genes])].reset_index(drop=True)
