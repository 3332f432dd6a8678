"""Expression along a lineage: measured at nodes and times, and predictions anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import ndtr

from bdm._core.errors import InputError, counted
from bdm._core.files import write_table
from bdm.applications.relations.field import Field
from bdm.applications.relations.gaussian_process import QUANTILE, GaussianProcess, Prediction, Prior
from bdm.applications.relations.lineage_tree import LineageTree, Places, origin_of
from bdm.applications.relations.pseudobulk import PSEUDO
from bdm.data.columns import finite_column
from bdm.settings import LineageSettings

N_TIMES = 11  # grid of times for predictions; each cell uses the nearest one
N_COMPARED = 500  # genes with the most significant differences between points, for errors and changes
MAX_ERROR_RATIO = 0.95  # error relative to the best baseline's; above, predictions are called no better
EXPRESSION = (0.5, 0.8, 0.95)  # limits of bins of genes for calibration, as quantiles of expression
N_STEPS = 9  # grid of times on a branch, to find when half of a change has happened
BRANCH_COLUMNS = (  # of the table of changes on branches
    *("node", "mother", "gene", "start", "end", "change", "sd", "low", "high", "sign", "when"),
    *("from_sisters", "from_sisters_sd"),
)
ERRORS = ("predicted", "nearest", "blend", "halves")


@dataclass(frozen=True, repr=False)
class Lineage(Field):
    """Measured expression along a lineage, with a Gaussian process for the rest.

    A point is a node in a time bin with enough cells. The Gaussian process predicts expression at unsampled nodes and
    times.

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
    first, last
        Times of the first and last cell of each node; NaN without cells.
    edges
        Lower edges of the time bins; one bin without times.
    settings
        Settings of the fit, such as columns of ``obs`` in the data.
    provenance
        Version, packages, seed and settings.
    prior
        Fitted Gaussian-process prior, with the calibration of its intervals by expression of the gene.
    errors
        Table of cross-validation errors. Rows: the ``name`` of each node or time (``left_out``), with ``n_points``
        points that are ``between`` samples or not. Errors are root mean squares of log expression relative to the
        mean of all points as prediction (0: exact, 1: no better), by method: the Gaussian process (``predicted``), the
        ``nearest`` point, or interpolation between the points before and after in the lineage (``blend``). ``halves``
        is the measurement error, from two halves of the cells.
    """

    kind = "lineage"

    tree: LineageTree
    end: np.ndarray
    points: pd.DataFrame
    log_share: np.ndarray
    variance: np.ndarray
    halves: np.ndarray
    first: np.ndarray
    last: np.ndarray
    edges: np.ndarray
    settings: LineageSettings
    prior: Prior = field(default_factory=Prior)

    @property
    def time_key(self) -> str | None:
        """Column of ``obs`` with the time, if any."""
        return self.settings.time_key

    @property
    def node_key(self) -> str:
        """Column of ``obs`` with the node."""
        return self.settings.lineage_key or self.settings.label_key

    # ---- times and places

    def places_at(self, node: int | np.ndarray, time: float | Sequence[float] | np.ndarray) -> Places:
        """Return places by the index of their node, or of each node, and by time."""
        return Places(self.tree, self.end, *np.broadcast_arrays(node, np.atleast_1d(time)))

    @property
    def places(self) -> Places:
        """Node and time of each point."""
        return self.places_at(self.points["node"].map(self.tree.index).to_numpy(), self.points["time"].to_numpy(float))

    def point_of(self, node: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Return the point of each cell by its node and time; -1 if it was not measured."""
        points = pd.MultiIndex.from_arrays([self.places.node, self.points["bin"]])
        return np.asarray(points.get_indexer(pd.MultiIndex.from_arrays([node, time_bins(time, self.edges)])))

    @property
    def sampled(self) -> np.ndarray:
        """Whether each node has measured points."""
        return np.isin(self.tree.nodes, self.points["node"])

    @property
    def origin(self) -> float:
        """Time at which the lineage begins; 0, the depth of the root, without times."""
        return 0.0 if self.time_key is None else origin_of(self.tree, self.first, np.nanmax(self.last))

    def interval(self, node: int) -> tuple[float, float]:
        """Return the first and last time of a node; without cells, the divisions of its mother and of itself."""
        if self.time_key is None:
            return (float(self.tree.depth[node]),) * 2
        if self.sampled[node]:
            return float(self.first[node]), float(self.last[node])
        mother = int(self.tree.mother[node])
        start = self.origin if mother < 0 else float(self.end[mother])
        return start, max(start, float(min(self.end[node], np.nanmax(self.last))))

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

    def has_samples(self, places: Places) -> np.ndarray:
        """Return whether samples of its lineage are before and after each place, 2 x places."""
        points = self.places
        return np.stack([points.is_ancestral(places).any(axis=0), places.is_ancestral(points).any(axis=1)])

    def next_node(self) -> str:
        """Suggest a node to reconstruct: an unsampled one between samples, if any."""
        missing = np.flatnonzero(~self.sampled)
        middle = [self.middle(int(node)) for node in missing]
        between = self.has_samples(self.places_at(missing, middle)).all(axis=0)
        return self.tree.nodes[missing[between][0]] if between.any() else str(self.points["node"].iloc[0])

    # ---- cells

    def columns_in(self, cells: AnnData) -> np.ndarray:
        """Return the columns of the lineage's genes in cells; reject missing genes."""
        column = np.asarray(cells.var_names.get_indexer(self.genes.index))
        if len(missing := self.genes.index[column < 0]):
            raise InputError(
                f"The cells lack {counted(len(missing), 'gene')} of the lineage, for example {missing[0]!r}; use cells "
                "with all genes of the lineage."
            )
        return column

    # ---- predictions

    @cached_property
    def center(self) -> np.ndarray:
        """Mean log share of each gene over points."""
        return np.asarray(self.log_share.mean(axis=0))

    @property
    def expression_bin(self) -> np.ndarray:
        """Bin of each gene by its mean log share."""
        return np.searchsorted(np.quantile(self.center, EXPRESSION), self.center)

    def kernels(self, places: Places, others: Places) -> list[np.ndarray]:
        """Return candidate kernels, places x other places."""
        span = max(float(np.ptp(self.places.time)), 1e-9)  # above 0 for the division
        return places.kernels(others, self.origin, span, timed=self.time_key is not None)

    def gaussian_process(self) -> GaussianProcess:
        """Return the Gaussian process of centred log shares at the points."""
        return GaussianProcess.from_arrays(
            np.ascontiguousarray((self.log_share - self.center).T),
            np.ascontiguousarray(self.variance.T),
            self.kernels(self.places, self.places),
            prior=self.prior,
        )

    def predict(
        self, places: Places, genes: slice | np.ndarray, *, weights: np.ndarray | None = None, variances: bool = True
    ) -> Prediction:
        """Predict centred log shares, or weighted sums of places; see :meth:`GaussianProcess.predict`."""
        cross, within = (self.kernels(places, others) for others in (self.places, places))
        process = self.gaussian_process().select_genes(genes)
        return process.predict(cross, within, weights=weights, variances=variances)

    def log_shares(
        self, places: Places, genes: slice | np.ndarray = slice(None), *, variances: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict log shares and calibrated standard deviations, genes x places."""
        predicted = self.predict(places, genes, variances=variances)
        return predicted.mean + self.center[genes][:, None], self.calibrated_sd(predicted, genes)

    def calibrated_sd(self, predicted: Prediction, genes: slice | np.ndarray) -> np.ndarray:
        """Return calibrated standard deviations of predictions, in their shape."""
        factors = self.prior.sd_factors(predicted.mean, self.expression_bin[genes][:, None])
        return np.asarray(np.sqrt(predicted.variance) * factors)

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
        mean, sd = (values[:, 0] for values in self.log_shares(self.places_at(number, time)))
        table = pd.DataFrame({"gene": self.genes.index, "node": self.tree.nodes[number]})
        table["depth" if self.time_key is None else "time"] = time
        table["log_expression"], table["sd"] = mean, sd
        for name, quantile in (("share", 0.0), ("low", -QUANTILE), ("high", QUANTILE)):
            table[name] = np.maximum(np.exp(mean + quantile * sd) - PSEUDO, 0)
        return table

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
        none = pd.DataFrame(columns=[name for name in BRANCH_COLUMNS if name != "when" or self.time_key is not None])
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
        sisters = [daughter for daughter in self.tree.daughters(mother) if daughter != node]
        nodes = np.array([mother, *[node] * (len(times) - 1), *sisters])
        places = self.places_at(nodes, [*times, *[end] * len(sisters)])
        first, steps, of_sisters = np.split(np.eye(len(nodes)), [1, len(times)])
        from_sisters = steps[-1:] - of_sisters.sum(axis=0) / max(len(sisters), 1)
        predicted = self.predict(places, genes, weights=np.vstack([steps[-1:] - first, from_sisters]))
        course = self.predict(places, genes, weights=steps - first, variances=False).mean
        change, difference = predicted.mean.T / np.log(2)
        sd, difference_sd = self.calibrated_sd(predicted, genes).T / np.log(2)
        halfway = (course * np.sign(change)[:, None] >= np.abs(change * np.log(2))[:, None] / 2).argmax(axis=1)
        z = np.abs(change) / np.maximum(sd, 1e-12)
        names = {"node": self.tree.nodes[node], "mother": self.tree.nodes[mother], "gene": self.genes.index[genes]}
        table = pd.DataFrame(names | {"start": start, "end": end, "change": change, "sd": sd})
        table["low"], table["high"], table["sign"] = change - QUANTILE * sd, change + QUANTILE * sd, ndtr(z)
        if self.time_key is not None:
            table["when"] = times[1 + halfway]
        table["from_sisters"], table["from_sisters_sd"] = (difference, difference_sd) if sisters else (np.nan, np.nan)
        return table.iloc[np.argsort(-z, kind="stable")]

    @cached_property
    def changes(self) -> pd.DataFrame:
        """Changes on branches, see :meth:`branches`, of the most significant genes."""
        genes = np.sort(self.gaussian_process().most_significant()[:N_COMPARED])
        return self.names.with_symbols(self.branches(genes))

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
        place = "between samples" if between else "beyond samples (extrapolation)"
        subject = f"a {left_out} that was not sampled, {place},"
        if not error["n"]:
            return f"{subject} is predicted with an error that is not known, as no sampled {left_out} is {place}"
        return (
            f"{subject} is predicted with {error['predicted']:.0%} of the error of the mean of all samples (nearest "
            f"{error['nearest']:.0%}, blend {error['blend']:.0%}, halves of real cells {error['halves']:.0%}), by "
            f"{counted(int(error['n']), left_out)} left out"
        )

    def warnings(self, *kinds: str) -> list[str]:
        """Return reasons not to rely on predictions, of all kinds (``node``, ``time``) by default."""
        errors = {kind: self.expected_error(kind, between=True) for kind in kinds or ("node", "time")}
        return [
            f"A {kind} between samples is predicted hardly better than by the nearest one, a blend or the mean."
            for kind, error in errors.items()
            if error["n"] and error["predicted"] >= MAX_ERROR_RATIO * min(error["nearest"], error["blend"], 1.0)
        ]

    def _write_tables(self, folder: Path) -> None:
        super()._write_tables(folder)
        write_table(self.changes, folder / "branches.csv", digits=4)


def times_of(obs: pd.DataFrame, key: str) -> np.ndarray:
    """Return the times of cells from a column of ``obs``."""
    return np.asarray(finite_column(obs, key, argument="time_key", need="times are numbers"))


def time_bins(time: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin of each time by the lower edges of bins; -1 before the first."""
    return np.searchsorted(edges, time, side="right") - 1


def nearest_times(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of times, and the index of the nearest for each cell."""
    grid = np.unique(time)
    if len(grid) > N_TIMES:
        grid = np.linspace(grid[0], grid[-1], N_TIMES)
    used, nearest = np.unique(np.abs(time[:, None] - grid).argmin(axis=1), return_inverse=True)
    return grid[used], nearest
