"""Fates of cells: which of several later nodes their counts agree with, expected backwards in time."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.special import softmax

from bdm._core.parallel import using_threads
from bdm.autoencoder.observation import NegativeBinomial
from bdm.data.counts import raw_counts
from bdm.data.read import rna_in
from bdm.errors import InputError
from bdm.kriging.counts import columns_of
from bdm.lineages.cells import nearest_times, require_columns, shares_from
from bdm.lineages.measured import times_of
from bdm.lineages.results import Lineage
from bdm.lineages.tree import Places


@using_threads()
def fates(lineage: Lineage, adata: AnnData, among: Sequence[str] = (), *, counts: str = "auto") -> pd.DataFrame:
    """Compute to which of several nodes cells lead, by the likelihood of their counts.

    ::

        shares = bdm.tl.fates(lineage, progenitors)

    The expression of each node is expected backwards in time, along its lineage, at the time of each cell. Counts are
    negative binomial around it, with the dispersion within samples and the variance of what is expected. Before their
    lineages divide, nodes share one expectation, and a cell is divided evenly between them.

    Parameters
    ----------
    lineage
        Result of :func:`bdm.tl.lineage`, with times, fitted without the cells in question.
    adata
        Cells with raw counts and times, of any node, known or not.
    among
        Two or more nodes between which cells are divided; the leaves with samples, if none are named.

    Returns
    -------
    Shares, cells x nodes, each row with the sum 1.

    Raises
    ------
    InputError
        If a node is unknown or alone, there are no times, genes are missing, or counts are not raw.
    """
    if lineage.time_key is None:
        raise InputError("The lineage has no times, which fates need; fit it again with `time_key=`.")
    leaves = [node for node, end in zip(lineage.tree.nodes, lineage.end, strict=True) if np.isinf(end)]
    names = list(dict.fromkeys(among)) or [node for node in leaves if lineage.sampled[lineage.tree.find(node)]]
    if len(names) < 2:
        raise InputError(f"Cells are divided between nodes, but there is only {names[0]!r}; name others by `among=`.")
    adata = rna_in(adata)
    require_columns(adata, lineage.time_key)
    grid, time_of_cell = nearest_times(times_of(adata.obs, lineage.time_key))
    cells = raw_counts(adata, source=counts)
    size = np.asarray(cells.X.sum(axis=1), dtype=float).ravel()
    column = columns_of(cells, lineage.genes.index, whose="lineage")
    likelihood = np.empty((cells.n_obs, len(names)))
    for number, name in enumerate(names):
        mean, sd = lineage.log_shares(Places(np.full(len(grid), lineage.tree.find(name)), grid))
        for at in range(len(grid)):
            rows = np.flatnonzero(time_of_cell == at)
            log_mean = torch.from_numpy(np.log(np.maximum(size[rows, None], 1)) + np.log(shares_from(mean[:, at])))
            dispersion = (1 + lineage.dispersion) * np.exp(sd[:, at] ** 2) - 1
            observed = torch.from_numpy(cells.X[rows][:, column].toarray().astype(float))
            model = NegativeBinomial(torch.from_numpy(-np.log(dispersion)))
            likelihood[rows, number] = model.log_likelihood(observed, log_mean).numpy()
    return pd.DataFrame(softmax(likelihood, axis=1), index=cells.obs_names, columns=names)
