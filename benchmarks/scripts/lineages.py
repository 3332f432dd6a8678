"""Cells of nodes and times of a lineage that were left out, reconstructed by bdm and by simpler means."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import pandas as pd
from anndata import AnnData
from distances import N_NEAREST, Rows, scored, variable_genes
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from bdm import tl
from bdm._core.seeds import numpy_generator
from bdm.applications.relations.fates import fates
from bdm.applications.relations.lineage import Lineage
from bdm.applications.relations.lineage_tree import LineageTree, Places
from bdm.applications.relations.reconstruct import relatives_of
from bdm.settings import LineageRelation, LineageSettings

RELATIONS: tuple[LineageRelation, ...] = ("all", "lineage", "time")
WEIGHTS = (0.25, 0.5, 0.75)  # of the samples after, in blends
LEAST_SHARE = 1e-12  # in log losses


# ---- what is left out, and what stands for it


@dataclass(frozen=True)
class Task:
    """Cells of a node that were left out, at their times, and all others."""

    node: str
    real: AnnData
    others: AnnData
    settings: LineageSettings
    tree: LineageTree

    @property
    def times(self) -> np.ndarray:
        """Times of the real cells."""
        return self.real.obs[self.settings.time_key].to_numpy(float)

    @cached_property
    def lineages(self) -> dict[LineageRelation, Lineage]:
        """Lineages without the cells that were left out, by what expression may covary along."""
        settings = {relation: replace(self.settings, relations=relation) for relation in RELATIONS}
        return {name: tl.lineage(self.others, chosen, tree=self.tree) for name, chosen in settings.items()}


def leave_out(cells: AnnData, node: str, settings: LineageSettings, tree: LineageTree) -> Task:
    """Leave out the cells of a node, or with ``:time`` after it, the third of them in the middle of their times."""
    name, _, part = node.partition(":")
    chosen = (cells.obs[settings.label_key] == name).to_numpy()
    if part:
        time = cells.obs[settings.time_key].to_numpy(float)
        low, high = np.quantile(time[chosen], [1 / 3, 2 / 3])
        chosen &= (time >= low) & (time <= high)
    return Task(name, cells[chosen].copy(), cells[~chosen].copy(), settings, tree)


def reconstructed(task: Task, seed: int, relation: LineageRelation) -> AnnData:
    """Reconstruct the cells by bdm, at their times."""
    lineage = task.lineages[relation]
    return tl.reconstruct(lineage, task.others, task.node, at=task.times, extrapolate=True, seed=seed)


@dataclass(frozen=True)
class Neighbours:
    """Cells of others that are near a place in the lineage: of any, of the samples before, and of those after."""

    cells: AnnData
    nearest: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @classmethod
    def of(cls, task: Task) -> "Neighbours":
        """Find the neighbours of the middle of the times that were left out."""
        lineage = task.lineages["all"]
        relatives, point = relatives_of(lineage, task.others, "auto")
        place = Places(np.array([lineage.tree.find(task.node)]), np.array([np.median(task.times)]))
        joined, n = lineage.places.join(place), len(lineage.points)
        path, ancestral = joined.path(lineage.tree, lineage.end)[n, :n], joined.ancestral(lineage.tree)
        sides = np.ones(n, dtype=bool), ancestral[:n, n], ancestral[n, :n]

        def near(values: np.ndarray) -> np.ndarray:
            order = np.argsort(np.where(values, path, np.inf)[point], kind="stable")
            return order[values[point][order]][:N_NEAREST]

        return cls(relatives.cells, *map(near, sides))


def nearest_cells(task: Task, seed: int) -> AnnData:
    """Take real cells of the nearest samples."""
    found, generator = Neighbours.of(task), numpy_generator(seed, "nearest")
    return found.cells[generator.choice(found.nearest, task.real.n_obs)]


def mixture(task: Task, seed: int) -> AnnData:
    """Take real cells, half from the samples before, half from the samples after."""
    found, generator = Neighbours.of(task), numpy_generator(seed, "mixture")
    n = task.real.n_obs // 2
    before, after = generator.choice(found.before, n), generator.choice(found.after, task.real.n_obs - n)
    return found.cells[np.concatenate([before, after])]


def blend(task: Task, seed: int, weight: float) -> AnnData:
    """Sample counts around a weighted mean of the samples before and after, as dispersed as within samples."""
    found, generator = Neighbours.of(task), numpy_generator(seed, "blend")

    def share(rows: np.ndarray) -> np.ndarray:
        total = np.asarray(found.cells.X[rows].sum(axis=0)).ravel()
        return total / total.sum()

    lineage = task.lineages["all"]
    mean = (1 - weight) * share(found.before) + weight * share(found.after)
    size = np.asarray(found.cells.X[generator.choice(found.nearest, task.real.n_obs)].sum(axis=1)).ravel()
    dispersion = np.full(found.cells.n_vars, 1e-3)
    dispersion[found.cells.var_names.get_indexer(lineage.genes.index)] = lineage.dispersion
    rate = generator.standard_gamma(1 / dispersion, (len(size), len(mean))) * dispersion * mean * size[:, None]
    return AnnData(csr_matrix(generator.poisson(rate).astype(np.float32)), var=found.cells.var)


METHODS: dict[str, Callable[[Task, int], AnnData]] = {
    "bdm": partial(reconstructed, relation="all"),
    "bdm-lineage": partial(reconstructed, relation="lineage"),
    "bdm-time": partial(reconstructed, relation="time"),
    "nearest": nearest_cells,
    "mixture": mixture,
    **{f"blend-{weight:g}": partial(blend, weight=weight) for weight in WEIGHTS},
}


def without_nodes(cells: AnnData, nodes: list[str], settings: LineageSettings, tree: LineageTree, seed: int) -> Rows:
    """Leave out each of the nodes, or times, and score what stands for their cells."""
    genes, rows = variable_genes(cells), []
    for node in nodes:
        task = leave_out(cells, node, settings, tree)
        found = {name: method(task, seed) for name, method in METHODS.items()}
        rows += [{"left_out": node, "score": "nodes"} | row for row in scored(found, task.real, seed, genes)]
    return rows


def shares_of_fates(
    cells: AnnData, fates_of: dict[str, list[str]], settings: LineageSettings, tree: LineageTree
) -> Rows:
    """Leave out progenitors together, and score the shares of their descendants by bdm and a classifier of leaves.

    The scores are the mean share of the descendants of a progenitor, the share of cells to which no other clade is
    more probable, and the mean negative log share of the descendants.
    """
    label = cells.obs[settings.label_key].astype(str)
    others = cells[(~label.isin(list(fates_of))).to_numpy()].copy()
    lineage, rows = tl.lineage(others, settings, tree=tree), []
    clade = {leaf: leaves[0] for leaves in fates_of.values() for leaf in leaves}
    for node, leaves in fates_of.items():
        progenitors = cells[(label == node).to_numpy()].copy()
        shares = {
            "bdm": fates(lineage, progenitors),
            "bdm-uncalibrated": fates(replace(lineage, temperature=1.0), progenitors),
        }
        shares["classifier"] = classified(
            others[label[others.obs_names].isin(list(shares["bdm"])).to_numpy()], progenitors, settings.label_key
        )
        frequency = others.obs[settings.label_key].value_counts()[list(shares["bdm"])]
        found = {("frequency", "fates"): frequency[leaves].sum() / frequency.sum()}
        for method, of_cells in shares.items():
            by_clade = of_cells.T.groupby(lambda leaf: clade.get(leaf, leaf)).sum().T
            right = by_clade[clade[leaves[0]]]
            found[method, "fates"] = right.mean()
            found[method, "fates, right"] = (right == by_clade.max(axis=1)).mean()
            found[method, "fates, log loss"] = -np.log(np.maximum(right, LEAST_SHARE)).mean()
        rows += [
            {"left_out": node, "n_cells": progenitors.n_obs, "method": method, "score": score, "value": value}
            for (method, score), value in found.items()
        ]
    return rows


def classified(leaves: AnnData, cells: AnnData, label_key: str) -> pd.DataFrame:
    """Classify cells by a logistic regression of log1p(CP10k) in the cells of leaves, without times or a lineage."""

    def log_expression(adata: AnnData) -> np.ndarray:
        counts = adata.X.toarray()
        return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))

    model = LogisticRegression(max_iter=1000).fit(log_expression(leaves), leaves.obs[label_key].astype(str))
    return pd.DataFrame(model.predict_proba(log_expression(cells)), index=cells.obs_names, columns=model.classes_)
