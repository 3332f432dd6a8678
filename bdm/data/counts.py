import logging

import numpy as np
from anndata import AnnData
from scipy import sparse

from bdm.errors import InputError

logger = logging.getLogger(__name__)

LARGEST_COUNT = 2**24  # float32 holds all integers up to here


def raw_counts(adata: AnnData, *, source: str = "auto") -> AnnData:
    """Find the raw counts, and check that they are such.

    Parameters
    ----------
    adata
        Cells with counts in ``X``, ``raw`` or a layer.
    source
        ``X``, ``raw``, the name of a layer, or ``auto`` for the first of layer ``counts``, ``raw`` and ``X``
        that holds counts.

    Returns
    -------
    Cells x genes of that slot: integer counts in ``X`` (CSR, float32), its ``obs`` and ``var``, nothing else.

    Raises
    ------
    InputError
        If there is no such slot, or a value in it is negative, not finite, not whole or above 2^24.
    """
    slots = slots_of(adata)
    if source != "auto" and source not in slots:
        raise InputError(f"there is no layer {source!r}; counts can be taken from {', '.join(slots)}.")
    if not adata.n_obs or not adata.n_vars:
        raise InputError(f"there are {adata.n_obs} cells and {adata.n_vars} genes; both are needed.")

    faults = {}
    for name in [slot for slot in ("counts", "raw", "X") if slot in slots] if source == "auto" else [source]:
        faults[name] = fault(slots[name])
        if not faults[name]:
            logger.info("Counts are taken from %s.", name)
            return as_counts(slots[name])

    others = [name for name in slots if name not in faults and not fault(slots[name])]
    remedy = f"give `--counts {others[0]}`" if others else "raw counts are needed in X, raw or a layer"
    found = "; ".join(f"{name} has {fault}" for name, fault in faults.items())
    raise InputError(f"no raw counts: {found or 'X is empty'}; {remedy}.")


def slots_of(adata: AnnData) -> dict[str, AnnData]:
    """Each matrix of cells x genes by the name that ``source`` has for it."""
    layers = {name: layer for name, layer in adata.layers.items() if name is not None}  # anndata 0.13 lists X there
    slots = {name: AnnData(layer, obs=adata.obs, var=adata.var) for name, layer in layers.items()}
    if adata.raw is not None:
        slots["raw"] = AnnData(adata.raw.X, obs=adata.obs, var=adata.raw.var)
    if adata.X is not None:
        slots["X"] = AnnData(adata.X, obs=adata.obs, var=adata.var)
    return slots


def fault(cells: AnnData) -> str | None:
    """Tell of the first value that no raw count has, with its gene and cell."""
    values = sparse.coo_matrix(cells.X)
    scale = "log-normalised" if values.data.max(initial=0) < 20 else "normalised"
    wrong = {
        "which is not finite": ~np.isfinite(values.data),
        "which is negative, as in scaled data": values.data < 0,
        f"which is not whole, as in {scale} data": values.data != np.rint(values.data),
        f"which is above {LARGEST_COUNT:,}, the most that is handled exactly": values.data > LARGEST_COUNT,
    }
    for what, where in wrong.items():
        if where.any():
            i = where.argmax()
            gene, cell = cells.var_names[values.col[i]], cells.obs_names[values.row[i]]
            return f"{values.data[i]:g} for gene {gene} in cell {cell}, {what}"
    return None


def as_counts(cells: AnnData) -> AnnData:
    """Bring counts to one form: CSR, float32, only nonzeros stored, in order."""
    counts = sparse.csr_matrix(cells.X, dtype=np.float32, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return AnnData(counts, obs=cells.obs, var=cells.var)
