"""Fit expression along a lineage, and predict it at any node and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, ndtr

from bdm._core.errors import counted
from bdm._core.files import provenance
from bdm._core.parallel import using_threads
from bdm._core.schema import checked
from bdm._core.store import Result
from bdm.applications.kriging.gaussian_process import (
    QUANTILE,
    Law,
    bins_of,
    calibration,
    contrasts,
    fit_law,
    left_out,
    most_significant,
)
from bdm.applications.kriging.log_expression import PSEUDO, columns_of
from bdm.applications.lineages.measured_lineage import (
    LineageCells,
    MeasuredLineage,
    cells_on_tree,
    locate,
    measure,
    nearest_times,
)
from bdm.applications.lineages.tree import LineageTree, Places, read_lineage_tree
from bdm.autoencoder.observation import NegativeBinomial
from bdm.data.genes import GeneNames, symbol_column
from bdm.data.read import rna_in
from bdm.hierarchy.tree import Clade
from bdm.settings import LineageRelation, LineageSettings

N_COMPARED = 500  # genes with the most significant differences between points, for errors and changes
CLEARLY = 0.95  # share of the best baseline's error; above, predictions are called no better
OF_BRANCHES = (  # columns of the table of changes on branches
    *("node", "mother", "gene", "start", "end", "change", "sd", "low", "high", "sign", "when"),
    *("from_sisters", "from_sisters_sd"),
)
LEAST_SHARE = 1e-7  # minimum share of counts
MIN_CELLS, MAX_CELLS = 20, 2000  # to calibrate fates
MAX_TEMPERATURE = 1000.0
N_STEPS = 9  # grid of times on a branch, to find when half of a change has happened


@dataclass(frozen=True, repr=False)
class Lineage(MeasuredLineage, Result):
    """Measured expression along a lineage, with a Gaussian process for the rest.

    The Gaussian process predicts expression at unsampled nodes and times.

    ::

        lineage = bdm.tl.lineage(adata, bdm.tl.LineageSettings(time_key="minutes"), tree="lineage.nwk")
        ancestors = bdm.tl.reconstruct(lineage, adata, "ASG_AWA", at=350)

    Attributes
    ----------
    genes
        ``var`` of the genes that are detected in enough cells.
    tree
        Lineage tree, mothers before daughters.
    end
        Time at which each node divides, estimated from the times of cells; infinite for leaves. Without times, depth of
        each node.
    points
        Table with a row for each measured ``node`` and time ``bin``, with mean ``time`` and ``n_cells``.
    log_share, variance
        Natural log of the share of counts plus 1e-4, and its sampling variance, points x genes.
    halves
        Squared error of ``log_share``, estimated from two halves of the cells, points x genes.
    dispersion
        Squared coefficient of variation of counts in excess of Poisson noise, by gene.
    n_cells, first, last
        Number of cells of each node, and times of its first and last cell.
    edges
        Lower edges of the time bins.
    law
        Fitted Gaussian-process prior.
    calibration
        Factors of posterior standard deviations, by bin of expression. They make 90% intervals cover 90% of the genes
        of left-out nodes.
    temperature
        Divisor of log likelihoods in :func:`bdm.tl.fates`, at least 1; None without times or enough cells to fit it.
    errors
        Table of cross-validation errors. Rows: the ``name`` of each node or time (``left_out``), with ``n_points``
        points that are ``between`` samples or not. Errors are root mean squares of log expression relative to the
        mean of all points as prediction (0: exact, 1: no better), by method: the Gaussian process (``predicted``), the
        ``nearest`` point, or interpolation between the points before and after in the lineage (``blend``). ``halves``
        is the measurement error, from two halves of the cells.
    relation
        Relations along which expression may covary: ``all``, ``lineage``, ``time`` or ``none``.
    label_key, lineage_key, time_key
        Columns of ``obs`` in the data.
    provenance
        Version, packages, seed and settings.
    """

    kind = "lineage"

    law: Law
    calibration: np.ndarray
    temperature: float | None
    errors: pd.DataFrame
    relation: LineageRelation
    label_key: str
    lineage_key: str | None
    time_key: str | None
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        return "\n".join(self.sentences())

    @property
    def node_key(self) -> str:
        """Column of ``obs`` with the node."""
        return self.lineage_key or self.label_key

    @property
    def names(self) -> GeneNames:
        """Gene names, with symbols if known."""
        return GeneNames(self.genes, symbol_column(self.genes))

    @property
    def sampled(self) -> np.ndarray:
        """Whether each node has measured points."""
        return np.isin(self.tree.nodes, self.points["node"])

    # ---- predictions

    @cached_property
    def center(self) -> np.ndarray:
        """Mean log share of each gene over points."""
        return np.asarray(self.log_share.mean(axis=0))

    def log_shares(
        self, places: Places, genes: slice | np.ndarray = slice(None), *, variances: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict log shares and calibrated standard deviations, genes x places."""
        n, n_added = len(self.points), len(places.node)
        weights = np.eye(n + n_added)[n:]
        data, kernels = self.data(n_added, genes), self.kernels(self.relation, places)
        found = contrasts(self.law, data, kernels, weights, variances=variances)
        mean = found.mean + self.center[genes][:, None]
        factor = np.stack([self.calibration[bins_of(self.center)[genes]]] * mean.shape[1], axis=1)
        return mean, np.sqrt(found.variance) * factor

    def expression(self, node: str, at: float | None = None) -> pd.DataFrame:
        """Predict the expression of genes at a node.

        Parameters
        ----------
        node
            Node of the lineage tree.
        at
            Time, in units of ``time_key``; by default the middle of the node's interval.

        Returns
        -------
        Table with a row for each ``gene``: ``node``; ``time``, or ``depth`` in the tree if there are no times;
        ``log_expression``, the natural log of the share of counts plus 1e-4; its standard deviation ``sd``; and the
        ``share`` of counts with its 90% interval from ``low`` to ``high``.

        Raises
        ------
        InputError
            If the node is unknown.
        """
        number = self.tree.find(node)
        time = self.middle(number) if at is None else at
        mean, sd = (values[:, 0] for values in self.log_shares(Places(np.array([number]), np.array([time]))))
        table = pd.DataFrame({"gene": self.genes.index, "node": self.tree.nodes[number]})
        table["depth" if self.time_key is None else "time"] = time
        table["log_expression"], table["sd"] = mean, sd
        for name, quantile in (("share", 0.0), ("low", -QUANTILE), ("high", QUANTILE)):
            table[name] = np.maximum(np.exp(mean + quantile * sd) - PSEUDO, 0)
        return table

    def log_likelihood(self, cells: AnnData, time: np.ndarray, nodes: Sequence[int]) -> np.ndarray:
        """Compute log p(counts) of cells for each node, at the times of the cells.

        Returns an array, cells x nodes.
        """
        grid, time_of_cell = nearest_times(time)
        size = np.asarray(cells.X.sum(axis=1), dtype=float).ravel()
        column = columns_of(cells, self.genes.index, whose="lineage")
        likelihood = np.empty((cells.n_obs, len(nodes)))
        for number, node in enumerate(nodes):
            mean, sd = self.log_shares(Places(np.full(len(grid), node), grid))
            for at in range(len(grid)):
                rows = np.flatnonzero(time_of_cell == at)
                log_mean = torch.from_numpy(np.log(np.maximum(size[rows, None], 1)) + np.log(shares_from(mean[:, at])))
                dispersion = (1 + self.dispersion) * np.exp(sd[:, at] ** 2) - 1
                observed = torch.from_numpy(cells.X[rows][:, column].toarray().astype(float))
                model = NegativeBinomial(torch.from_numpy(-np.log(dispersion)))
                likelihood[rows, number] = model.log_likelihood(observed, log_mean).numpy()
        return likelihood

    # ---- times and places

    def interval(self, node: int) -> tuple[float, float]:
        """Return the first and last time of a node.

        Without cells, these are the divisions of its mother and of the node itself.
        """
        if self.time_key is None:
            return (float(self.tree.depth[node]),) * 2
        if self.sampled[node]:
            return float(self.first[node]), float(self.last[node])
        mother = int(self.tree.mother[node])
        start = self.origin if mother < 0 else float(self.end[mother])
        end = float(self.end[node]) if np.isfinite(self.end[node]) else float(np.nanmax(self.last))
        return start, max(start, end)

    def middle(self, node: int) -> float:
        """Return the middle of a node's interval."""
        return sum(self.interval(node)) / 2

    def sampled_interval(self, node: int) -> tuple[float, float]:
        """Return the part of a node's interval between samples; if empty, the interval."""
        places, (first, last) = self.places, self.interval(node)
        before = places.time[self.tree.is_below[node, places.node]]
        after = places.time[self.tree.is_below[places.node, node]]
        start, end = max(first, before.min(initial=np.inf)), min(last, after.max(initial=-np.inf))
        return (float(start), float(end)) if start <= end else (first, last)

    def is_between(self, places: Places) -> np.ndarray:
        """Return whether each place has samples of its lineage both before and after."""
        n, joined = len(self.points), self.places.join(places)
        ancestral = joined.ancestral(self.tree)
        return np.asarray(ancestral[:n, n:].any(axis=0) & ancestral[n:, :n].any(axis=1))

    def next_node(self) -> str:
        """Suggest a node to reconstruct: an unsampled one between samples, if any."""
        missing = np.flatnonzero(~self.sampled)
        between = self.is_between(Places(missing, np.array([self.middle(int(node)) for node in missing])))
        return self.tree.nodes[missing[between][0]] if between.any() else str(self.points["node"].iloc[0])

    # ---- branches

    def branches(self, genes: slice | np.ndarray = slice(None)) -> pd.DataFrame:
        """Tabulate the genes that change on each branch of the lineage.

        Parameters
        ----------
        genes
            Indices of genes; all by default.

        Returns
        -------
        Table with a row for each branch and ``gene``, the most significant changes of each branch first. The root has
        no branch. Columns:

        - ``node`` at the lower end of the branch, and its ``mother``
        - ``start``, ``end``: times of the branch, or depths in the tree
        - ``change``: log2 fold change of expression from start to end, with its standard deviation ``sd``, 90% interval
          from ``low`` to ``high``, and the probability ``sign`` that its sign is right
        - ``when``: time at which half of the change has happened (with times only)
        - ``from_sisters``, ``from_sisters_sd``: log2 fold change from the mean of the sisters at the end, and its
          standard deviation; NaN without sisters
        """
        tables = [self.branch(node, genes) for node in range(1, len(self.tree.nodes))]
        none = pd.DataFrame(columns=[name for name in OF_BRANCHES if name != "when" or self.time_key is not None])
        return pd.concat([table for table in tables if table is not None] or [none], ignore_index=True)

    def branch_times(self, node: int) -> tuple[float, float]:
        """Return the start and end of the branch to a node."""
        start = float(self.end[self.tree.mother[node]])
        return start, max(start, float(min(self.interval(node)[1], self.end[node])))

    def branch(self, node: int, genes: slice | np.ndarray) -> pd.DataFrame | None:
        """Tabulate one branch, see :meth:`branches`; None if it has no length."""
        start, end = self.branch_times(node)
        if end <= start:
            return None
        times = np.linspace(start, end, N_STEPS) if self.time_key else np.array([start, end])
        mother = int(self.tree.mother[node])
        sisters = [other for other in self.tree.daughters(mother) if other != node]
        nodes = np.array([mother, *[node] * (len(times) - 1), *sisters])
        places = Places(nodes, np.array([*times, *[end] * len(sisters)]))
        first, last, n_sisters = len(self.points), len(self.points) + len(times) - 1, len(sisters)
        weights = np.eye(first + len(places.node))
        from_sisters = weights[last] - weights[last + 1 :].sum(axis=0) / max(n_sisters, 1)
        data, kernels = self.data(len(places.node), genes), self.kernels(self.relation, places)
        wanted = np.stack([weights[last] - weights[first], from_sisters])
        found = contrasts(self.law, data, kernels, wanted)
        steps = contrasts(self.law, data, kernels, weights[first + 1 : last + 1] - weights[first], variances=False)
        (change, difference), (sd, difference_sd) = found.mean.T / np.log(2), np.sqrt(found.variance.T) / np.log(2)
        spread = sd * self.calibration[bins_of(self.center)[genes]]
        half = (steps.mean * np.sign(change)[:, None] >= np.abs(change * np.log(2))[:, None] / 2).argmax(axis=1)
        table = pd.DataFrame({"node": self.tree.nodes[node], "gene": self.genes.index[genes]})
        table.insert(1, "mother", self.tree.nodes[mother])
        table["start"], table["end"], table["change"], table["sd"] = start, end, change, spread
        table["low"], table["high"] = change - QUANTILE * spread, change + QUANTILE * spread
        table["sign"] = ndtr(np.abs(change) / np.maximum(spread, 1e-12))
        if self.time_key is not None:
            table["when"] = times[1 + half]
        table["from_sisters"] = difference if sisters else np.nan
        table["from_sisters_sd"] = difference_sd if sisters else np.nan
        order = np.argsort(-np.abs(change) / np.maximum(spread, 1e-12), kind="stable")
        return table.iloc[order]

    @cached_property
    def changes(self) -> pd.DataFrame:
        """Changes on branches, see :meth:`branches`, of the most significant genes."""
        return self.names.with_symbols(self.branches(np.sort(most_significant(self.data())[:N_COMPARED])))

    # ---- errors

    def expected_error(self, left_out: str, *, between: bool) -> pd.Series:
        """Average :attr:`errors` over left-out nodes or times, ``n`` in number."""
        chosen = self.errors[(self.errors["left_out"] == left_out) & (self.errors["between"] == between)]
        return pd.Series({**chosen[list(ERRORS)].mean(), "n": len(chosen)})

    def sentences(self) -> list[str]:
        """Describe the cross-validation errors of nodes and times."""
        kinds = ["node", *(["time"] if self.time_key else [])]
        return [self.sentence(kind, between=between) for kind in kinds for between in (True, False)]

    def sentence(self, left_out: str, *, between: bool) -> str:
        """Describe the cross-validation error of one kind of prediction."""
        error = self.expected_error(left_out, between=between)
        where = "between samples" if between else "beyond samples (extrapolation)"
        what = f"a {left_out} that was not sampled, {where},"
        if not error["n"]:
            return f"{what} is predicted with an error that is not known, as no sampled {left_out} is {where}"
        return (
            f"{what} is predicted with {error['predicted']:.0%} of the error of the mean of all samples (nearest "
            f"{error['nearest']:.0%}, blend {error['blend']:.0%}, halves of real cells {error['halves']:.0%}), by "
            f"{counted(int(error['n']), left_out)} left out"
        )

    def warnings(self) -> list[str]:
        """Return reasons not to rely on predictions."""
        found = []
        for kind in ("node", "time"):
            error = self.expected_error(kind, between=True)
            if error["n"] and error["predicted"] >= CLEARLY * min(error["nearest"], error["blend"], 1.0):
                found.append(
                    f"A {kind} between samples is predicted hardly better than by the nearest one, a blend or the mean."
                )
        return found

    def _write_tables(self, folder: Path) -> None:
        self.errors.to_csv(folder / "errors.csv", index=False, float_format="%.4g")
        self.changes.to_csv(folder / "branches.csv", index=False, float_format="%.4g")


def shares_from(log_share: np.ndarray) -> np.ndarray:
    """Invert the log with pseudo-count; shares are at least LEAST_SHARE."""
    return np.asarray(np.maximum(np.exp(log_share) - PSEUDO, LEAST_SHARE))


ERRORS = ("predicted", "nearest", "blend", "halves")


# ---- fit: measure, fit the Gaussian process, and cross-validate over nodes and times


@checked
@using_threads()
def lineage(
    adata: AnnData,
    settings: LineageSettings = LineageSettings(),
    *,
    tree: LineageTree | Clade | Path | str | None = None,
) -> Lineage:
    """Fit a Gaussian process of gene expression along a lineage.

    Expression is measured by node and time bin from pseudobulk counts.
    The model is in :mod:`bdm.applications.kriging.gaussian_process`.

    Parameters
    ----------
    adata
        Cells with raw counts, and the columns of ``obs`` in ``settings``.
    settings
        Columns of nodes and times, time bins, and the kernels to use.
    tree
        Lineage tree in Newick (file or text), with a node for each cell type. None to build it from the lineage names
        in ``settings.lineage_key``.

    Returns
    -------
    Lineage with the measurements, the fitted Gaussian process and its cross-validation errors.

    Raises
    ------
    InputError
        If a column is missing or invalid, a name has no node, times contradict the tree, counts are not raw, fewer than
        three points have enough cells, or both or neither of ``tree`` and ``settings.lineage_key`` are given.
    """
    given = None if tree is None else read_lineage_tree(tree)
    chosen, lineage_tree = cells_on_tree(rna_in(adata, counts=settings.counts), settings, given)
    cells, edges = locate(chosen, settings, lineage_tree)
    found = measure(cells, edges, lineage_tree, settings)
    data, kernels = found.data(), found.kernels(settings.relations)
    law = fit_law(data, kernels, levels=(0.0,))
    compared = most_significant(data)[:N_COMPARED]
    kinds = {"node": "node"} if settings.time_key is None else {"node": "node", "time": "bin"}
    groups = {kind: groups_of(found.points[column]) for kind, column in kinds.items()}
    groups = {kind: of_kind for kind, of_kind in groups.items() if len(of_kind) > 1}  # needs another group
    errors = []
    for kind, of_kind in groups.items():
        predicted = left_out(law, data.genes(compared), kernels, of_kind)[0]
        errors += [errors_of(found, kind, group, predicted, compared) for group in of_kind]
    fitted = Lineage(
        **vars(found),
        law=law,
        calibration=calibration(law, data, kernels, found.log_share, next(iter(groups.values()))),
        errors=pd.concat(errors, ignore_index=True),
        relation=settings.relations,
        label_key=settings.label_key,
        lineage_key=settings.lineage_key,
        time_key=settings.time_key,
        temperature=None,
        provenance=provenance(seed=0, settings=asdict(settings)),
    )
    return replace(fitted, temperature=temperature_of(fitted, cells))


def temperature_of(lineage: Lineage, cells: LineageCells) -> float | None:
    """Fit the temperature of fates by maximum likelihood on cells of leaves.

    The first time bin of each leaf is left out, so that expression is extrapolated backwards in time, as for
    progenitors. The temperature is at least 1 (temperature scaling, Guo et al. 2017, On Calibration of Modern Neural
    Networks). None without times, or with too few leaves or left-out cells.
    """
    if lineage.time_key is None:
        return None
    leaves, points = np.flatnonzero(np.isinf(lineage.end) & lineage.sampled), lineage.points
    time = points["time"].where(points["node"].isin(np.array(lineage.tree.nodes)[leaves])).groupby(points["node"])
    early = ((time.rank() == 1) & (time.transform("size") > 1)).to_numpy()
    kept = {name: getattr(lineage, name)[~early] for name in ("log_share", "variance", "halves")}
    index = pd.MultiIndex.from_arrays([lineage.places.node[early], points["bin"][early]])
    rows = np.flatnonzero(index.get_indexer(list(zip(cells.node, cells.bin, strict=True))) >= 0)
    if len(leaves) < 2 or len(rows) < MIN_CELLS:
        return None
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_CELLS)).astype(int)]
    before = replace(lineage, points=points[~early], **kept)
    likelihood = before.log_likelihood(cells.cells[rows], cells.time[rows], leaves.tolist())
    fate = np.searchsorted(leaves, cells.node[rows])

    def loss(log_temperature: float) -> float:
        tempered = likelihood / np.exp(log_temperature)
        return float((logsumexp(tempered, axis=1) - tempered[np.arange(len(fate)), fate]).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(0, np.log(MAX_TEMPERATURE)), method="bounded").x))


def groups_of(column: pd.Series) -> list[np.ndarray]:
    """Return the rows of each value of a column."""
    return [np.sort(np.asarray(rows)) for rows in column.groupby(column).indices.values()]


def errors_of(
    found: MeasuredLineage, kind: str, group: np.ndarray, predicted: np.ndarray, genes: np.ndarray
) -> pd.DataFrame:
    """Compute cross-validation errors of a group, by whether points are between others."""
    n, real = len(found.points), (found.log_share - found.log_share.mean(axis=0))[:, genes]
    others = np.setdiff1d(np.arange(n), group)
    path, ancestral = found.places.path(found.tree, found.end), found.places.ancestral(found.tree)
    time = found.places.time
    rows: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for point in group:
        before, after = others[ancestral[others, point]], others[ancestral[point, others]]
        between = bool(len(before) and len(after))
        nearest = others[path[point, others].argmin()]
        blend = real[nearest]
        if between:
            first, last = before[time[before].argmax()], after[time[after] == time[after].min()]
            share = (time[point] - time[first]) / max(time[last[0]] - time[first], 1e-9)
            blend = (1 - share) * real[first] + share * real[last].mean(axis=0)
        values = {"predicted": predicted[:, point], "nearest": real[nearest], "blend": blend}
        row = {name: float(np.mean((value - real[point]) ** 2)) for name, value in values.items()}
        row |= {"halves": float(found.halves[point, genes].mean()), "size": float(np.mean(real[point] ** 2))}
        rows[between].append(row | {"weight": float(found.points["n_cells"].iloc[point])})
    tables = []
    for between, of_kind in rows.items():
        if of_kind:
            table = pd.DataFrame(of_kind)
            mean = table.mul(table["weight"], axis=0).sum() / table["weight"].sum()
            of_group = found.points.iloc[group]
            name = str(of_group["node"].iloc[0]) if kind == "node" else f"{of_group['time'].mean():.6g}"
            relative = {error: float(np.sqrt(mean[error] / max(mean["size"], 1e-12))) for error in ERRORS}
            tables.append({"left_out": kind, "name": name, "between": between, "n_points": len(of_kind), **relative})
    return pd.DataFrame(tables)
