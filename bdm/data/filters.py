"""Filters of cells and cell types; training, validation and test split."""

import logging

import numpy as np
import pandas as pd

from bdm._core.errors import InputError, counted
from bdm.data.columns import is_unwritable
from bdm.settings import PrepareSettings

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


def check_names(names: pd.Index, *, kind: str) -> None:
    """Reject repeated or unwritable names of cells or genes (``kind``)."""
    if not names.is_unique:
        repeated = names[names.duplicated()][0]
        raise InputError(f"{kind} name {repeated} occurs more than once; make {kind} names unique.")
    unwritable = next(filter(is_unwritable, names), None)
    if unwritable is not None:
        raise InputError(f"{kind} name {unwritable!r} has characters that files cannot hold; rename it.")


def without_empty_cells(obs: pd.DataFrame, n_genes: pd.Series, *, min_genes: int) -> pd.DataFrame:
    """Remove cells with fewer than ``min_genes`` detected genes.

    With ``min_genes=0``, cells without counts are an error.
    """
    few = n_genes[obs.index].to_numpy() < max(min_genes, 1)
    if not few.any():
        return obs
    if min_genes == 0:
        raise InputError(
            f"{counted(few.sum(), 'cell')} without any counts, for example {obs.index[few][0]}; leave such cells out "
            "by `min_genes_per_cell=1`."
        )
    logger.warning("Left out %s with counts of fewer genes than %d.", counted(few.sum(), "cell"), min_genes)
    return obs[~few]


def without_types(obs: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Remove cell types by name."""
    known = obs["cell_type"].astype(str)
    for name in names:
        if not (known == name).any():
            raise InputError(f"there is no cell type {name!r} to leave out; check `leave_out=`.")
    return obs[~known.isin(names)]


def without_small_types(obs: pd.DataFrame, settings: PrepareSettings) -> pd.DataFrame:
    """Remove cell types with too few cells; at least two must remain."""
    min_cells, labelled = settings.min_cells_per_type, settings.label_key is not None
    if obs.empty:
        raise InputError("no cells are left; leave out fewer types, or lower `min_genes_per_cell=`.")
    n_cells = obs["cell_type"].cat.remove_unused_categories().value_counts()
    small = n_cells[n_cells < min_cells]
    if not labelled and len(small):
        raise InputError(
            f"there are fewer than {min_cells} cells ({len(obs)}); give more, or lower `min_cells_per_type=`."
        )
    if labelled and len(n_cells) - len(small) < 2:
        raise InputError(
            f"fewer than two of {len(n_cells)} cell types have {min_cells} cells or more (the largest has "
            f"{n_cells.max()}); name another column, lower `min_cells_per_type=`, or use no labels, by "
            "`label_key=None`."
        )
    for name, number in small.items():
        logger.warning("Left out type %s: it has %s, fewer than %d.", name, counted(number, "cell"), min_cells)
    return obs[~obs["cell_type"].isin(small.index)]


def effective_donors(group: pd.Series, donor: pd.Series) -> pd.Series:
    """Return the effective number of donors of each group.

    This is the inverse Simpson index of donor shares (Hill 1973, https://doi.org/10.2307/1934352). Donors with few
    cells hardly count: if one donor contributes 90% of a group's cells, the group has about 1.2 effective donors.
    """
    n_cells = cells_of_donors(group, donor)
    n_effective: pd.Series = n_cells.sum(axis=1) ** 2 / (n_cells**2).sum(axis=1)
    return n_effective


def is_fitted(obs: pd.DataFrame) -> np.ndarray:
    """Mask the cells that models are fitted to: training and validation cells."""
    return np.asarray(obs["split"] != "test")


def donors_of_types(obs: pd.DataFrame) -> pd.Series:
    """Return the effective number of donors per cell type, excluding test cells."""
    fitted = obs[is_fitted(obs)]
    return effective_donors(fitted["cell_type"], fitted["donor"])


def largest_shares(group: pd.Series, donor: pd.Series) -> pd.Series:
    """Return the largest share of one donor in each group."""
    n_cells = cells_of_donors(group, donor)
    share: pd.Series = n_cells.max(axis=1) / n_cells.sum(axis=1)
    return share


def cells_of_donors(group: pd.Series, donor: pd.Series) -> pd.DataFrame:
    """Count the cells of each donor (columns) in each group (rows)."""
    return pd.crosstab(group.to_numpy(), donor.astype(str).to_numpy())


def without_types_of_few_donors(obs: pd.DataFrame, settings: PrepareSettings) -> pd.DataFrame:
    """Remove cell types with too few effective donors, excluding test cells."""
    min_donors, labelled = settings.min_donors, settings.label_key is not None
    if min_donors == 1:
        return obs
    n_donors = donors_of_types(obs)
    few = n_donors[n_donors < min_donors]
    remedy = "give cells of more donors, or lower `min_donors=`"
    if not labelled and len(few):
        raise InputError(f"the cells are of {few.iloc[0]:.1f} effective donors, fewer than {min_donors}; {remedy}.")
    if labelled and len(n_donors) - len(few) < 2:
        raise InputError(
            f"fewer than two of {len(n_donors)} cell types have cells of {min_donors} effective donors or more (the "
            f"most are {n_donors.max():.1f}); {remedy}."
        )
    fitted = obs[is_fitted(obs)]
    share = largest_shares(fitted["cell_type"], fitted["donor"])
    for name, number in few.items():
        logger.warning(
            "Left out type %s: its cells are of %.1f effective donors (one has %.0f%% of them), fewer than %d.",
            name,
            number,
            100 * share[name],
            min_donors,
        )
    return obs[~obs["cell_type"].isin(few.index)]


def without_uncounted_cells(obs: pd.DataFrame, rows: np.ndarray, *, n_genes: int) -> pd.DataFrame:
    """Keep the cells with counts of the chosen genes (``rows``)."""
    if len(rows) == len(obs):
        return obs
    logger.warning("Left out %s with no counts of the %d chosen genes.", counted(len(obs) - len(rows), "cell"), n_genes)
    n_cells = obs.iloc[rows].groupby(["cell_type", "split"], observed=False).size()
    if n_cells.min() == 0:
        name, split = n_cells.idxmin()
        raise InputError(f"no {split} cell of type {name} has counts of the chosen genes; choose more genes.")
    return obs.iloc[rows]


def check_min_donors(obs: pd.DataFrame, min_donors: int) -> None:
    """Reject cell types with too few effective donors, excluding test cells."""
    if min_donors == 1:
        return
    n_donors = donors_of_types(obs)
    if n_donors.min() < min_donors:
        raise InputError(
            f"the cells of type {n_donors.idxmin()!r} to fit to are of {n_donors.min():.2f} effective donors, fewer "
            f"than {min_donors}; leave the type out, or lower `min_donors=`."
        )


def check_trained_batches(obs: pd.DataFrame) -> None:
    """Reject batches without training cells."""
    if "batch" in obs:
        untrained = set(obs["batch"]) - set(obs["batch"][obs["split"] == "train"])
        if untrained:
            raise InputError(f"batch {min(untrained)} has no training cells; leave it out, or merge it with another.")


def capped(n_by_type: pd.Series, *, most: int, fewest: int) -> pd.Series:
    """Limit the cells per type, so that the total is at most ``most``.

    The limit is as large as possible, but at least ``fewest``.
    """
    enough, too_many = fewest, int(n_by_type.max()) + 1
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if n_by_type.clip(upper=middle).sum() <= most else (enough, middle)
    return n_by_type.clip(upper=enough)


def split_by_type(cell_type: pd.Series, *, validation: float, test: float, seed: int) -> pd.Series:
    """Split the cells of each type at random, independently of other types."""
    fractions = np.array([1 - validation - test, validation, test])
    split = pd.Series(pd.Categorical(["train"] * len(cell_type), categories=SPLITS), index=cell_type.index)
    for name, rows in cell_type.groupby(cell_type, observed=True).indices.items():
        rng = np.random.default_rng([seed, *name.encode()])
        split.iloc[rng.permutation(rows)] = np.repeat(SPLITS, split_sizes(len(rows), fractions))
    return split.cat.remove_unused_categories()


def split_sizes(n_cells: int, fractions: np.ndarray) -> np.ndarray:
    """Divide cells by fractions, with at least one for each positive fraction."""
    sizes = rounded_shares(n_cells * fractions)
    for empty in np.flatnonzero((sizes == 0) & (fractions > 0)):
        sizes[sizes.argmax()] -= 1
        sizes[empty] = 1
    return sizes


def rounded_shares(expected: np.ndarray) -> np.ndarray:
    """Round numbers by largest remainder, preserving their integer sum."""
    numbers: np.ndarray = np.floor(expected).astype(int)
    numbers[np.argsort(numbers - expected, kind="stable")[: round(expected.sum()) - numbers.sum()]] += 1
    return numbers
