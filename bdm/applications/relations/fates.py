"""Predict the fates of cells in a lineage."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.special import softmax

from bdm._core.errors import InputError
from bdm._core.parallel import using_threads
from bdm._core.schema import checked
from bdm.applications.relations.lineage import Lineage, nearest_times, times_of
from bdm.applications.relations.pseudobulk import shares_from
from bdm.autoencoder.observation import NegativeBinomial
from bdm.data.columns import as_names
from bdm.data.counts import raw_counts
from bdm.data.read import rna_in

logger = logging.getLogger(__name__)


@checked
@using_threads()
def fates(lineage: Lineage, adata: AnnData, among: str | Sequence[str] = (), *, counts: str = "auto") -> pd.DataFrame:
    """Predict the fates of cells: the probability of each descendant node.

    ::

        shares = bdm.tl.fates(lineage, progenitors)

    For each node, the Gaussian process predicts expression in its lineage at the time of the cell. The counts of the
    cell are negative binomial around this prediction, with the dispersion within samples and the posterior variance.
    Probabilities are softmax(log likelihood / temperature) over nodes. The ``temperature`` of the lineage corrects for
    correlated genes, which would make the probabilities overconfident. Before their lineages divide, nodes have the
    same prediction, hence equal probabilities.

    Parameters
    ----------
    lineage
        Result of :func:`bdm.tl.lineage` with times, fitted without the cells of ``adata``.
    adata
        Cells with raw counts and times. Their nodes are not used.
    among
        Two or more candidate nodes; by default all leaves with samples.
    counts
        Slot of the raw counts, see :func:`bdm.data.counts.find_counts`.

    Returns
    -------
    Probabilities, cells x nodes; rows sum to 1.

    Raises
    ------
    InputError
        If a node is unknown, there are fewer than two, times or genes are missing, or counts are not raw.
    """
    if lineage.time_key is None:
        raise InputError("The lineage has no times, which fates need; fit it again with `settings.time_key=`.")
    leaves = np.array(lineage.tree.nodes)[sampled_leaves(lineage)].tolist()
    names = list(dict.fromkeys(as_names(among))) or leaves
    if len(names) < 2:
        raise InputError(f"Cells are divided between nodes, but there is only {names[0]!r}; name others by `among=`.")
    adata = rna_in(adata, counts=counts)
    lineage.require_columns(adata.obs, lineage.time_key)
    cells, nodes = raw_counts(adata, source=counts), [lineage.tree.find(name) for name in names]
    likelihood = log_likelihood(lineage, cells, times_of(cells.obs, lineage.time_key), nodes)
    if lineage.temperature is None:
        logger.warning(
            "The shares are not calibrated, as leaves have too few cells or times; expect them too near 0 and 1."
        )
    shares = softmax(likelihood / (lineage.temperature or 1.0), axis=1)
    return pd.DataFrame(shares, index=cells.obs_names, columns=names)


def sampled_leaves(lineage: Lineage) -> np.ndarray:
    """Return the leaves with measured points."""
    return np.flatnonzero(np.isinf(lineage.end) & lineage.sampled)


def log_likelihood(lineage: Lineage, cells: AnnData, time: np.ndarray, nodes: Sequence[int]) -> np.ndarray:
    """Compute log p(counts) of cells for each node at their times, cells x nodes.

    All standard deviations are scaled like small predictions. Larger factors would down-weight the genes that tell
    nodes apart.
    """
    lineage = replace(lineage, calibration=np.broadcast_to(lineage.calibration[:, :1], lineage.calibration.shape))
    grid, time_of_cell = nearest_times(time)
    size = np.asarray(cells.X.sum(axis=1), dtype=float).ravel()
    column = lineage.columns_in(cells)
    likelihood = np.empty((cells.n_obs, len(nodes)))
    for number, node in enumerate(nodes):
        mean, sd = lineage.log_shares(lineage.places_at(node, grid))
        for place in range(len(grid)):
            rows = np.flatnonzero(time_of_cell == place)
            log_mean = torch.from_numpy(np.log(np.maximum(size[rows, None], 1)) + np.log(shares_from(mean[:, place])))
            dispersion = (1 + lineage.dispersion) * np.exp(sd[:, place] ** 2) - 1
            observed = torch.from_numpy(cells.X[rows][:, column].toarray().astype(float))
            model = NegativeBinomial(torch.from_numpy(-np.log(dispersion)))
            likelihood[rows, number] = model.log_likelihood(observed, log_mean).numpy()
    return likelihood
