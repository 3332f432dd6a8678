"""Measure log shares of genes by node and time, with sampling variances."""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.validation import column_rejection, unknown_node
from bdm.applications.kriging.gaussian_process import Measurements
from bdm.applications.kriging.log_expression import Sums, sizes_and_detected
from bdm.applications.lineages.tree import LineageTree, Places, check_order, divisions, origin_of
from bdm.data.columns import as_numbers, as_text, is_missing, shown_kind, text_column
from bdm.data.counts import raw_counts
from bdm.settings import LineageRelation, LineageSettings

logger = logging.getLogger(__name__)

MIN_POINTS = 3  # minimum number of measured points for predictions
N_TIMES = 11  # grid of times for predictions; each cell uses the nearest one


@dataclass(frozen=True)
class MeasuredLineage:
    """Measured expression along a lineage, points x genes.

    A point is a node in a time bin, with at least ``min_cells`` cells.
    """

    genes: pd.DataFrame
    tree: LineageTree
    end: np.ndarray  # time at which each node divides, infinite for leaves; depth without times
    points: pd.DataFrame  # node, mean time, bin and n_cells of each point
    log_share: np.ndarray  # natural log of shares of counts, with a pseudo-count
    variance: np.ndarray  # sampling variance of log_share
    halves: np.ndarray  # squared error of log_share, estimated from two halves of the cells
    dispersion: np.ndarray  # squared coefficient of variation in excess of Poisson noise, by gene
    n_cells: np.ndarray  # number of cells of each node
    first: np.ndarray  # time of the first cell of each node; NaN without cells
    last: np.ndarray  # time of the last cell, likewise
    edges: np.ndarray  # lower edges of time bins; empty without times

    @property
    def places(self) -> Places:
        """Node and time of each point."""
        return Places(self.points["node"].map(self.tree.index).to_numpy(), self.points["time"].to_numpy(float))

    @property
    def origin(self) -> float:
        """Time at which the lineage begins; 0, the depth of the root, without times."""
        return origin_of(self.tree, self.first, np.nanmax(self.last)) if len(self.edges) else 0.0

    def data(self, n_added: int = 0, genes: slice | np.ndarray = slice(None)) -> Measurements:
        """Return measurements minus their mean, with ``n_added`` unmeasured places appended."""
        n = len(self.points)
        effect = (self.log_share - self.log_share.mean(axis=0)).T
        found = Measurements(
            effect=torch.from_numpy(np.ascontiguousarray(effect, dtype=float)),
            variance=torch.from_numpy(np.ascontiguousarray(self.variance.T, dtype=float)),
            level=torch.zeros((effect.shape[0], n + n_added), dtype=torch.double),
            measured=np.arange(n),
        )
        return found.genes(genes)

    def kernels(self, relation: LineageRelation, added: Places | None = None) -> list[np.ndarray]:
        """Return candidate kernels over points and added places."""
        places = self.places if added is None else self.places.join(added)
        span = max(float(np.ptp(self.places.time)), 1e-9)  # above 0 for the division
        return places.kernels(self.tree, self.end, self.origin, span, relation, timed=len(self.edges) > 0)


@dataclass(frozen=True)
class LineageCells:
    """Cells with raw counts, and the node, time and time bin of each."""

    cells: AnnData
    node: np.ndarray
    time: np.ndarray
    bin: np.ndarray


def times_of(obs: pd.DataFrame, key: str) -> np.ndarray:
    """Return the times of cells from a column of ``obs``."""
    if sentence := column_rejection(key, obs.columns, argument="time_key"):
        raise InputError(sentence)
    numbers = as_numbers(obs[key])
    if numbers is None:
        another = "give numbers, or another column by `time_key=`"
        raise InputError(f"obs[{key!r}] holds {shown_kind(obs[key])}, but times are numbers; {another}.")
    time = numbers.to_numpy()
    if (n_missing := int((~np.isfinite(time)).sum())) > 0:
        where = obs.index[int((~np.isfinite(time)).argmax())]
        raise InputError(
            f"obs[{key!r}] has no time for {n_missing} of {len(time)} cells, for example {where}; complete it, or "
            "leave these cells out."
        )
    return np.asarray(time)


def nearest_times(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of times, and the index of the nearest for each cell."""
    grid = np.unique(time)
    if len(grid) > N_TIMES:
        grid = np.linspace(grid[0], grid[-1], N_TIMES)
    used, nearest = np.unique(np.abs(time[:, None] - grid).argmin(axis=1), return_inverse=True)
    return grid[used], nearest


def cells_on_tree(adata: AnnData, settings: LineageSettings, tree: LineageTree | None) -> tuple[AnnData, LineageTree]:
    """Select cells with a lineage name, and return the tree."""
    if settings.lineage_key is None:
        if tree is None:
            raise InputError("There is no lineage; give a tree by `tree=`, or lineage names by `lineage_key=`.")
        return adata, tree
    if tree is not None:
        raise InputError("`tree=` and `lineage_key=` are both given; give one of them.")
    if sentence := column_rejection(settings.lineage_key, adata.obs.columns, argument="lineage_key"):
        raise InputError(sentence)
    names = as_text(adata.obs[settings.lineage_key])
    missing = is_missing(names).to_numpy()
    if missing.all():
        raise InputError(f"obs[{settings.lineage_key!r}] has no lineage name for any cell; name another column.")
    if missing.any():
        logger.warning("Left out %s without a lineage name.", counted(int(missing.sum()), "cell"))
    return adata[~missing] if missing.any() else adata, LineageTree.from_names(names[~missing].astype(str))


def nodes_of(obs: pd.DataFrame, settings: LineageSettings, tree: LineageTree) -> np.ndarray:
    """Return the node of each cell."""
    key = settings.lineage_key or settings.label_key
    names = text_column(obs, key, argument="lineage_key" if settings.lineage_key else "label_key")
    index = {name: tree.find(name) for name in sorted(set(names)) if tree.has(name)}
    if unknown := sorted(set(names) - set(index)):
        remedy = "add it to the tree, or leave its cells out"
        raise InputError(f"{unknown_node(unknown[0], tree.nodes)} obs[{key!r}] has cells of it; {remedy}.")
    return np.asarray(names.map(index).to_numpy(int))


def edges_of(time: np.ndarray, n_times: int) -> np.ndarray:
    """Return lower edges of time bins: one bin per time, or equal widths."""
    found = np.unique(time)
    return found if len(found) <= n_times else np.linspace(time.min(), time.max(), n_times + 1)[:-1]


def locate(
    adata: AnnData, settings: LineageSettings, tree: LineageTree, edges: np.ndarray | None = None
) -> tuple[LineageCells, np.ndarray]:
    """Locate cells in a lineage; return them and the edges of time bins.

    Without times, the time of a cell is the depth of its node.
    """
    node = nodes_of(adata.obs, settings, tree)
    cells = raw_counts(adata, source=settings.counts)
    if settings.time_key is None:
        return LineageCells(cells, node, tree.depth[node], np.zeros(len(node), dtype=int)), np.array([])
    time = times_of(adata.obs, settings.time_key)
    edges = edges_of(time, settings.n_times) if edges is None else edges
    return LineageCells(cells, node, time, np.searchsorted(edges, time, side="right") - 1), edges


def measure(found: LineageCells, edges: np.ndarray, tree: LineageTree, settings: LineageSettings) -> MeasuredLineage:
    """Measure log shares of genes by node and time bin from pseudobulk counts of cells that :func:`locate` found.

    Raises
    ------
    InputError
        If times contradict the tree, or fewer than three points have enough cells.
    """
    timed = settings.time_key is not None
    if not (timed or tree.length[1:].any()):
        raise InputError(
            "No branch of the lineage tree has a length above 0; give lengths or none, or times by `time_key=`."
        )
    if timed:
        if not np.ptp(found.time):
            when = f"obs[{settings.time_key!r}] is {found.time[0]:g} in all cells"
            raise InputError(f"{when}; name another column by `time_key=`, or none.")
        check_order(tree, found.node, found.time)
    end = divisions(tree, found.node, found.time) if timed else tree.depth
    table = pd.DataFrame({"node": found.node, "bin": found.bin, "time": found.time})
    grouped = table.groupby(["node", "bin"])["time"].agg(["mean", "size"]).reset_index()
    points = grouped[grouped["size"] >= settings.min_cells].reset_index(drop=True)
    if len(points) < MIN_POINTS:
        what = f"{counted(len(points), 'node')}{' or times of nodes' if timed else ''} have {settings.min_cells} cells"
        remedy = "give more cells" + (", or fewer time bins by `n_times=`" if timed else "")
        raise InputError(f"Only {what} (`min_cells=`), but {MIN_POINTS} are needed; {remedy}.")
    measured = set(points["node"])
    if lacking := [tree.nodes[node] for node in sorted(set(found.node) - measured)]:
        logger.warning("Too few cells (min_cells) to measure %s.", abbreviated(lacking, n_shown=10))
    size, detected = sizes_and_detected(found.cells.X)
    group = pd.MultiIndex.from_frame(points[["node", "bin"]]).get_indexer(list(zip(found.node, found.bin, strict=True)))
    rows = np.flatnonzero(group >= 0)
    counts = sparse.csr_matrix(found.cells.X[rows][:, detected], dtype=float)
    sums = Sums.of(counts, size[rows], group[rows], len(points))
    alternate = 2 * group[rows] + pd.Series(group[rows]).groupby(group[rows]).cumcount().to_numpy() % 2
    half = Sums.of(counts, size[rows], alternate, 2 * len(points)).log_share
    by_node = table.groupby("node")["time"].agg(["min", "max", "size"]).reindex(range(len(tree.nodes)))
    names = np.array(tree.nodes, dtype=object)[points["node"]]
    return MeasuredLineage(
        genes=found.cells.var.loc[detected],
        tree=tree,
        end=end,
        points=pd.DataFrame(
            {"node": names, "time": points["mean"], "bin": points["bin"], "n_cells": points["size"]},
        ),
        log_share=sums.log_share,
        variance=sums.relative_variance,
        halves=(half[::2] - half[1::2]) ** 2 / 4,
        dispersion=sums.dispersion(np.arange(len(points))),
        n_cells=by_node["size"].fillna(0).to_numpy(int),
        first=by_node["min"].to_numpy(float),
        last=by_node["max"].to_numpy(float),
        edges=edges,
    )
