"""Measure expression along a lineage from pseudobulk counts, and fit its Gaussian process."""

import logging
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.files import provenance
from bdm._core.parallel import using_threads
from bdm._core.schema import checked
from bdm._core.validation import column_rejection, unknown_node
from bdm.applications.relations.field import log_warnings
from bdm.applications.relations.gaussian_process import CONSTANTS, WEAK_CONSTANTS, GaussianProcess, Prior
from bdm.applications.relations.lineage import ERRORS, EXPRESSION, N_COMPARED, Lineage, time_bins, times_of
from bdm.applications.relations.lineage_tree import LineageTree, check_order, divisions, read_lineage_tree
from bdm.applications.relations.pseudobulk import Counts
from bdm.data.columns import as_text, is_missing, text_column
from bdm.data.counts import raw_counts
from bdm.data.genes import hint_at_symbols
from bdm.data.read import rna_in
from bdm.hierarchy.tree import Clade
from bdm.settings import LineageSettings

logger = logging.getLogger(__name__)

POINTS = ["node", "time", "bin", "n_cells"]  # columns of the table of points
MIN_POINTS = 3  # minimum number of measured points for predictions


@checked
@using_threads()
def lineage(
    adata: AnnData,
    settings: LineageSettings = LineageSettings(),
    *,
    tree: LineageTree | Clade | Path | str | None = None,
) -> Lineage:
    """Fit a Gaussian process of gene expression along a lineage.

    Expression is measured by node and time bin from pseudobulk counts. The model is in
    :mod:`bdm.applications.relations.gaussian_process`.

    Parameters
    ----------
    adata
        Cells with raw counts, and the columns of ``obs`` in ``settings``.
    tree
        Lineage tree in Newick (file or text), with a node for each cell type. None to build it from the lineage names
        in ``settings.lineage_key``.

    Returns
    -------
    Lineage with the measurements, the fitted Gaussian process and its cross-validation errors.

    Raises
    ------
    InputError
        If a column is missing or invalid, a name has no node, times contradict the tree, or counts are not raw. Also if
        fewer than three points have enough cells, or not exactly one of ``tree`` and ``settings.lineage_key`` is given.
    """
    own_tree = None if tree is None else read_lineage_tree(tree)
    measured = measure(rna_in(adata, counts=settings.counts), settings, own_tree)
    hint_at_symbols(measured.names)
    process = measured.gaussian_process().fit(levels=(0.0,), constants=(*WEAK_CONSTANTS, *CONSTANTS))
    folds = {"node": rows_by_value(measured.points["node"]), "time": rows_by_value(measured.points["bin"])}
    folds = {kind: groups for kind, groups in folds.items() if len(groups) > 1}  # without times, there is one bin
    errors = pd.concat([leave_out(measured, process, *fold) for fold in folds.items()], ignore_index=True)
    prior = calibrate(measured, process, next(iter(folds.values())))  # on nodes if there are several
    fitted = replace(measured, prior=prior, errors=errors)
    log_warnings(logger, fitted.warnings())
    return fitted


def locate(
    adata: AnnData, settings: LineageSettings, tree: LineageTree | None
) -> tuple[AnnData, LineageTree, np.ndarray, np.ndarray]:
    """Return cells with raw counts, their tree, and the node and time of each; without times, depth of the node."""
    if tree is None and settings.lineage_key is None:
        raise InputError("There is no lineage; give a tree by `tree=`, or lineage names by `lineage_key=`.")
    if tree is not None and settings.lineage_key is not None:
        raise InputError("`tree=` and `lineage_key=` are both given; give one of them.")
    if settings.lineage_key is not None:
        adata = cells_with_name(adata, settings.lineage_key)
    key = settings.lineage_key or settings.label_key
    names = text_column(adata.obs, key, argument="label_key")
    tree = tree or LineageTree.from_names(names)
    index = {name: tree.index_of(name) for name in sorted(set(names))}
    if unknown := [name for name, number in index.items() if number < 0]:
        remedy = "add it to the tree, or leave its cells out"
        raise InputError(f"{unknown_node(unknown[0], tree.nodes)} obs[{key!r}] has cells of it; {remedy}.")
    cells, node = raw_counts(adata, source=settings.counts), names.map(index).to_numpy(int)
    time = tree.depth[node] if settings.time_key is None else times_of(adata.obs, settings.time_key)
    return cells, tree, node, time


def cells_with_name(adata: AnnData, key: str) -> AnnData:
    """Select the cells that have a lineage name."""
    if sentence := column_rejection(key, adata.obs.columns, argument="lineage_key"):
        raise InputError(sentence)
    missing = is_missing(as_text(adata.obs[key])).to_numpy()
    if missing.all():
        raise InputError(f"obs[{key!r}] has no lineage name for any cell; name another column.")
    if missing.any():
        logger.warning("Left out %s without a lineage name.", counted(int(missing.sum()), "cell"))
        return adata[~missing]
    return adata


def measure(adata: AnnData, settings: LineageSettings, tree: LineageTree | None) -> Lineage:
    """Measure log shares of genes by node and time bin, without a fit."""
    cells, tree, node, time = locate(adata, settings, tree)
    timed, times = settings.time_key is not None, np.unique(time)
    if timed and len(times) == 1:
        constant = f"obs[{settings.time_key!r}] is {times[0]:g} in all cells"
        raise InputError(f"{constant}; name another column by `time_key=`, or none.")
    if not timed and not tree.length[1:].any():
        raise InputError(
            "No branch of the lineage tree has a length above 0; give lengths or none, or times by `time_key=`."
        )
    if timed:
        check_order(tree, node, time)
    n_bins = settings.n_times if timed else 1
    edges = times if len(times) <= n_bins else np.linspace(times[0], times[-1], n_bins + 1)[:-1]
    table = pd.DataFrame({"node": node, "bin": time_bins(time, edges), "time": time})
    rows = np.flatnonzero(table.groupby(["node", "bin"]).transform("size") >= settings.min_cells)
    by_point = table.iloc[rows].groupby(["node", "bin"])
    points = by_point["time"].agg(time="mean", n_cells="size").reset_index()
    if len(points) < MIN_POINTS:
        units = f"{counted(len(points), 'node')}{' or times of nodes' if timed else ''}"
        remedy = "give more cells" + (", or fewer time bins by `n_times=`" if timed else "")
        raise InputError(
            f"Only {units} have {settings.min_cells} cells (`min_cells=`), but {MIN_POINTS} are needed; {remedy}."
        )
    if lacking := [tree.nodes[number] for number in sorted(set(node) - set(points["node"]))]:
        logger.warning("Too few cells (min_cells) to measure %s.", abbreviated(lacking, n_shown=10))
    counts = Counts.from_matrix(cells.X)
    by_half = counts.sums(rows, (2 * by_point.ngroup() + by_point.cumcount() % 2).to_numpy(), 2 * len(points))
    sums, log_share = by_half.pooled(2), by_half.log_share
    by_node = table.groupby("node")["time"].agg(["min", "max"]).reindex(range(len(tree.nodes)))
    names = np.array(tree.nodes, dtype=object)[points["node"]]
    return Lineage(
        genes=cells.var.loc[counts.detected],
        tree=tree,
        end=divisions(tree, node, time) if timed else tree.depth,
        points=points.assign(node=names)[POINTS],
        log_share=sums.log_share,
        variance=sums.variance,
        halves=(log_share[::2] - log_share[1::2]) ** 2 / 4,
        dispersion=sums.dispersion(np.arange(len(points))),
        first=by_node["min"].to_numpy(float),
        last=by_node["max"].to_numpy(float),
        edges=edges,
        settings=settings,
        provenance=provenance(seed=0, settings=asdict(settings)),
    )


# ---- cross-validation


def rows_by_value(column: pd.Series) -> list[np.ndarray]:
    """Return the rows of each value of a column."""
    return [np.sort(np.asarray(rows)) for rows in column.groupby(column).indices.values()]


def leave_out(lineage: Lineage, process: GaussianProcess, kind: str, groups: list[np.ndarray]) -> pd.DataFrame:
    """Tabulate cross-validation errors of groups of points, by whether they are between others."""
    genes = process.most_significant()[:N_COMPARED]
    predicted = process.select_genes(genes).leave_out(groups)[0]
    real, points, time = (lineage.log_share - lineage.center)[:, genes], lineage.points, lineage.places.time
    path, is_ancestral = (of(lineage.places) for of in (lineage.places.path, lineage.places.is_ancestral))
    rows = []
    for group in groups:
        others, squares = np.setdiff1d(np.arange(len(real)), group), []
        for point in group:
            before, after = others[is_ancestral[others, point]], others[is_ancestral[point, others]]
            nearest = blend = real[others[path[point, others].argmin()]]
            if between := bool(len(before) and len(after)):
                first, last = before[time[before].argmax()], after[time[after] == time[after].min()]
                share = (time[point] - time[first]) / max(time[last[0]] - time[first], 1e-9)
                blend = (1 - share) * real[first] + share * real[last].mean(axis=0)
            values = {"predicted": predicted[:, point], "nearest": nearest, "blend": blend, "size": 0.0}
            square = {name: float(np.mean((value - real[point]) ** 2)) for name, value in values.items()}
            square["halves"] = float(lineage.halves[point, genes].mean())
            squares.append(square | {"between": between, "weight": float(points["n_cells"].iloc[point])})
        name = str(points["node"].iloc[group[0]]) if kind == "node" else f"{points['time'].iloc[group].mean():.6g}"
        for between, table in sorted(pd.DataFrame(squares).groupby("between"), reverse=True):
            mean = table.mul(table["weight"], axis=0).sum() / table["weight"].sum()
            relative = {error: float(np.sqrt(mean[error] / max(mean["size"], 1e-12))) for error in ERRORS}
            rows.append({"left_out": kind, "name": name, "between": between, "n_points": len(table), **relative})
    return pd.DataFrame(rows)


def calibrate(lineage: Lineage, process: GaussianProcess, groups: list[np.ndarray]) -> Prior:
    """Calibrate standard deviations on left-out groups of points, by expression and size of the prediction."""
    genes = process.genes_to_calibrate()
    intervals, expression_bin = process.select_genes(genes).intervals(groups), lineage.expression_bin[genes]
    return process.prior.calibrated(
        *([intervals.select(expression_bin == number)] for number in range(len(EXPRESSION) + 1))
    )
