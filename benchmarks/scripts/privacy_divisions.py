"""Divisions of donors into members, others and reference: as in an audit, or with a number of members."""

import numpy as np
from anndata import AnnData

from bdm.audit.folds import MEMBERS, NON_MEMBERS, REFERENCE, Fold, folds_of
from bdm.audit.settings import AuditSettings

UNUSED = "unused"


def divide(prepared: AnnData, name: str, *, n_others: int, seed: int) -> Fold:
    """Divide the donors of prepared cells.

    Parameters
    ----------
    name
        ``thirds-N`` for fold N of an audit with three folds; ``M-N`` for M members and ``n_others`` donors in each of
        the other parts, of which those of a number N are the same for any M.
    """
    members, number = name.split("-")
    if members == "thirds":
        return folds_of(prepared.obs, AuditSettings(n_folds=3), seed=seed)[int(number) - 1]
    donor = prepared.obs["donor"].astype(str).to_numpy()
    order = np.random.default_rng([seed, int(number)]).permutation(np.unique(donor))
    ends = np.cumsum([n_others, n_others, int(members)])
    part = np.full(len(donor), UNUSED, dtype=object)
    for of, chosen in zip((NON_MEMBERS, REFERENCE, MEMBERS), np.split(order, ends)[:3], strict=True):
        part[np.isin(donor, chosen)] = of
    unit = {name: row for row, name in enumerate(order)}
    return Fold(int(number), part.astype(str), np.full(len(donor), -1), np.array([unit[name] for name in donor]))
