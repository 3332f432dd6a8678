"""Reconstruct cells of a node of a lineage."""

import logging
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError
from bdm._core.schema import checked
from bdm._core.seeds import numpy_generator
from bdm.applications.relations.field import log_warnings
from bdm.applications.relations.lineage import Lineage, nearest_times, times_of
from bdm.applications.relations.lineage_tree import Places
from bdm.applications.relations.pseudobulk import assemble_cells, shares_from, with_shares
from bdm.data.counts import raw_counts
from bdm.data.read import rna_in

logger = logging.getLogger(__name__)

Time = float | tuple[float, float] | np.ndarray | None  # time, range, times of cells, or the node's interval

N_RELATIVES = 100  # nearest cells; their counts are changed
N_VARIABLE = 100  # most variable genes, for the expected error
ABOUT = "Reconstructed cells: cells of relatives, changed by bdm to an ancestral state or a time; no measurements."


@checked
def reconstruct(
    lineage: Lineage,
    adata: AnnData,
    node: str,
    *,
    at: Time = None,
    n_cells: int = 100,
    extrapolate: bool = False,
    counts: str = "auto",
    seed: int = 0,
) -> AnnData:
    """Reconstruct cells of a node of a lineage, sampled or not.

    ::

        ancestors = bdm.tl.reconstruct(lineage, adata, "ASG_AWA", at=(350, 410))

    Each new cell starts from a relative: one of the 100 measured cells with the shortest path through the lineage. The
    Gaussian process predicts the share of counts of each gene: p for the relative, and q for the new cell. If q < p,
    counts of the gene are thinned to the fraction q / p. If q > p, counts with mean N (q - p) are added, where N is the
    library size. Library sizes and variation between cells are thus taken from the relatives.

    Parameters
    ----------
    lineage
        Result of :func:`bdm.tl.lineage`.
    adata
        Cells with raw counts at measured nodes and times, such as the cells that the lineage was fitted on.
    node
        Node of the lineage tree.
    at
        Time, range of times, or array with the time of each cell (``n_cells`` is then ignored), in units of
        ``time_key``. Times are uniform in a range. The default range is the node's interval; without ``extrapolate``,
        only its part between samples of the lineage.
    n_cells
        Number of cells.
    extrapolate
        Allow times without samples of the same lineage both before and after.

    Returns
    -------
    AnnData with raw counts (CSR, float32). ``obs`` has the node and time in the columns of the data, ``relative``, the
    name of the cell that each cell started from, and ``synthetic`` (True).
    """
    number = lineage.tree.find(node)
    generator = numpy_generator(seed, "lineage", node)
    time = times_to_reconstruct(lineage, number, at, n_cells, generator, extrapolate=extrapolate)
    grid, place_of_cell = nearest_times(time)
    places = lineage.places_at(number, grid)
    reject_extrapolation(lineage, places, extrapolate=extrapolate)
    relatives, point = relatives_of(lineage, adata, counts)
    column = lineage.columns_in(relatives)
    of_points, of_places = (
        shares_from(lineage.log_shares(each, variances=False)[0]) for each in (lineage.places, places)
    )
    path = places.path(lineage.places)
    pieces, source, dispersions = [], np.empty(len(time), dtype=int), [lineage.dispersion] * 2
    for place in range(len(grid)):
        rows = np.flatnonzero(place_of_cell == place)
        nearest = np.argsort(path[place, point], kind="stable")[:N_RELATIVES]
        source[rows] = nearest[sample_evenly(len(nearest), len(rows), generator)]
    for (place, start), rows in pd.Series(np.arange(len(time))).groupby([place_of_cell, point[source]]):
        share, new_share = of_points[:, start], of_places[:, place]
        before = relatives.X[source[rows]]
        pieces.append((rows.to_numpy(), with_shares(before, column, share, new_share, dispersions, generator)))
    obs = pd.DataFrame(index=[f"{node} {i + 1}" for i in range(len(time))])
    obs[lineage.node_key] = pd.Categorical([lineage.tree.nodes[number]] * len(time))
    if lineage.time_key is not None:
        obs[lineage.time_key] = time
    obs["relative"] = pd.Categorical(relatives.obs_names.to_numpy()[source])
    warnings = lineage.warnings("time" if lineage.sampled[number] else "node")
    log_warnings(logger, warnings)
    record = {"seed": seed, "about": ABOUT, "node": node, "warnings": warnings}
    record["expected_error"] = describe_error(lineage, places)
    return assemble_cells(pieces, obs, relatives.var, **record)


# ---- nodes and times


def times_to_reconstruct(
    lineage: Lineage, node: int, at: Time, n_cells: int, generator: np.random.Generator, *, extrapolate: bool
) -> np.ndarray:
    """Return the times of cells, drawn from a range unless given."""
    if at is not None and lineage.time_key is None:
        raise InputError("The lineage has no times, so `at=` has no meaning; fit it again with `settings.time_key=`.")
    if isinstance(at, np.ndarray) and at.ndim == 1 and len(at) and np.isfinite(at).all():
        return at
    if not (isinstance(n_cells, Integral) and n_cells >= 1):
        raise InputError(f"n_cells is {n_cells!r}, but must be a whole number that is at least 1.")
    interval = lineage.interval if extrapolate else lineage.sampled_interval
    ends: Any = interval(node) if at is None else at
    try:
        first, last = map(float, ends if isinstance(ends, tuple | list) else (ends, ends))
    except (TypeError, ValueError):
        first = last = np.nan
    if not (np.isfinite(first) and np.isfinite(last)) or last < first:
        raise InputError(
            f"at is {at}, but must be a time, the beginning and the end of a range, or an array of the times of cells."
        )
    return generator.uniform(first, last, n_cells) if last > first else np.full(n_cells, first)


def reject_extrapolation(lineage: Lineage, places: Places, *, extrapolate: bool) -> None:
    """Reject places that are not between samples; only warn if ``extrapolate``."""
    before, after = lineage.has_samples(places)
    between = before & after
    if between.all():
        return
    outside = lineage.places_at(places.node[~between], places.time[~between])
    expected = describe_error(lineage, outside)
    if extrapolate:
        logger.warning("Extrapolated: %s.", expected)
        return
    node, timed = int(outside.node[0]), lineage.time_key is not None
    name = lineage.tree.nodes[node]
    when = f" at {outside.time[0]:g}" if timed else ""
    side = "after it" if before[~between][0] else "before it"
    first, last = lineage.interval(node)
    known = f"; its own samples are from {first:g} to {last:g}" if lineage.sampled[node] and timed else ""
    raise InputError(
        f"{name!r}{when} is extrapolation: no samples of its lineage are {side}{known}; {expected}. "
        "Use `extrapolate=True` to generate it all the same."
    )


def describe_error(lineage: Lineage, places: Places) -> str:
    """Describe the error to expect at places of one node, by cross-validation and by the posterior."""
    is_sampled, between = bool(lineage.sampled[places.node[0]]), bool(lineage.has_samples(places).all())
    trust = lineage.sentence("time" if is_sampled else "node", between=between)
    if is_sampled and lineage.time_key is None:
        trust = "the node was sampled"
    compared = np.argsort(-lineage.log_share.var(axis=0), kind="stable")[:N_VARIABLE]
    sd = float(np.sqrt(np.mean(lineage.log_shares(places, compared)[1] ** 2)))
    points = float(lineage.log_share[:, compared].std(axis=0).mean())
    return (
        f"{trust}; here, the {len(compared)} most variable genes have an expected "
        f"error of {sd:.2f} in log expression (they vary by {points:.2f} between samples)"
    )


# ---- relatives


def relatives_of(lineage: Lineage, adata: AnnData, counts: str) -> tuple[AnnData, np.ndarray]:
    """Select the cells at measured points, with raw counts, and return the point of each."""
    adata = rna_in(adata, counts=counts)
    for key in (lineage.node_key, lineage.time_key):
        if key not in (None, *adata.obs):
            raise InputError(f"obs of the cells has no column {key!r}, which the lineage was fitted with.")
    node = np.array([lineage.tree.index_of(str(name)) for name in adata.obs[lineage.node_key]], dtype=int)
    adata, node = adata[node >= 0], node[node >= 0]
    if not len(node):
        raise InputError(f"None of the cells has a node of the lineage in obs[{lineage.node_key!r}].")
    time = lineage.tree.depth[node] if lineage.time_key is None else times_of(adata.obs, lineage.time_key)
    point = lineage.point_of(node, time)
    if not (point >= 0).any():
        raise InputError("None of the cells is at a node and time that the lineage was measured at; give its cells.")
    return raw_counts(adata[point >= 0], source=counts), point[point >= 0]


def sample_evenly(n: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Sample indices below ``n`` as evenly as possible."""
    rounds = [generator.permutation(n) for _ in range(-(-size // n))]
    return np.concatenate(rounds)[:size]
