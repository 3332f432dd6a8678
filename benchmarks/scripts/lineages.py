"""Cells of nodes and times of a lineage that were left out, reconstructed by bdm and by simpler means.

Distances are energy distances with Euclidean distances between cells, each cell with itself included, in log1p of
counts per thousand of the 1,000 genes that vary most among all cells. So halves of the real cells are no nearer than
their number allows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist
from simulated import LINEAGE
from tidy import write_rows

from bdm._core.seeds import numpy_generator
from bdm.data.counts import raw_counts
from bdm.lineages.cells import reconstruct_cells, relatives_of
from bdm.lineages.fates import fates
from bdm.lineages.fit import fit_lineage
from bdm.lineages.results import Lineage
from bdm.lineages.tree import LineageTree, Places, read_lineage_tree
from bdm.settings import LineageRelation, LineageSettings

N_GENES = 1000
N_NEAREST = 100  # cells that stand for a sample
RELATIONS: tuple[LineageRelation, ...] = ("all", "lineage", "time")
WEIGHTS = (0.25, 0.5, 0.75)  # of the samples after, in blends


# ---- distances


def variable_genes(cells: AnnData) -> np.ndarray:
    """Columns of the genes that vary most."""
    return np.argsort(-log_normalised(cells, slice(None)).var(axis=0), kind="stable")[:N_GENES]


def log_normalised(cells: AnnData, genes: slice | np.ndarray) -> np.ndarray:
    """Log1p of counts per thousand, cells x genes."""
    size = np.maximum(np.asarray(cells.X.sum(axis=1)).ravel(), 1)
    return np.log1p(np.asarray(cells.X[:, genes].todense()) / size[:, None] * 1e3)


def energy(x: np.ndarray, y: np.ndarray) -> float:
    """Energy distance of two sets of cells, with distances of each cell to itself."""
    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


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
        return {relation: fit_lineage(self.others, of, tree=self.tree) for relation, of in settings.items()}


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
    return reconstruct_cells(lineage, task.others, task.node, at=task.times, extrapolate=True, seed=seed)


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

        def near(of: np.ndarray) -> np.ndarray:
            order = np.argsort(np.where(of, path, np.inf)[point], kind="stable")
            return order[of[point][order]][:N_NEAREST]

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


Rows = list[dict[str, object]]


def compared(task: Task, genes: np.ndarray, seed: int) -> Rows:
    """Score each method on a task, and halves of the real cells."""
    real = log_normalised(task.real, genes)
    order = numpy_generator(seed, "halves").permutation(len(real))
    rows = [{"method": "halves", "score": "edistance", "value": energy(*np.array_split(real[order], 2))}]
    for name, method in METHODS.items():
        found = log_normalised(method(task, seed), genes)
        rows.append({"method": name, "score": "edistance", "value": energy(found, real)})
    return rows


def shares_of_fates(
    cells: AnnData, fates_of: dict[str, list[str]], settings: LineageSettings, tree: LineageTree
) -> Rows:
    """Leave out progenitors together, and score the share of their cells that leads to their descendants."""
    label = cells.obs[settings.label_key].astype(str)
    others = cells[(~label.isin(list(fates_of))).to_numpy()].copy()
    lineage, rows = fit_lineage(others, settings, tree=tree), []
    for node, leaves in fates_of.items():
        shares = fates(lineage, cells[(label == node).to_numpy()].copy())
        frequency = others.obs[settings.label_key].value_counts()[list(shares)]
        found = {"bdm": shares[leaves].sum(axis=1).mean(), "frequency": frequency[leaves].sum() / frequency.sum()}
        rows += [
            {"left_out": node, "n_cells": len(shares), "method": name, "score": "fates", "value": value}
            for name, value in found.items()
        ]
    return rows


def main(
    cells: Path,
    out: Path,
    *,
    leave: Annotated[list[str], typer.Option(help="NODE, or NODE:time for the middle third of its times.")],
    tree: Annotated[str, typer.Option(help="Lineage tree in Newick.")] = LINEAGE,
    time_key: str = "minutes",
    label_key: str = "cell_type",
    progenitors: Annotated[str, typer.Option(help="Nodes and their fates, as in a=a1,a2;b=b1.")] = "",
    seed: int = 0,
) -> None:
    """Leave out each of the nodes, or times, and score what stands for them."""
    given, settings = ad.read_h5ad(cells), LineageSettings(label_key=label_key, time_key=time_key)
    found, lineage = raw_counts(given), read_lineage_tree(tree)
    genes, rows = variable_genes(found), []
    for node in leave:
        task = leave_out(found, node, settings, lineage)
        rows += [row | {"left_out": node, "n_cells": task.real.n_obs} for row in compared(task, genes, seed)]
    if progenitors:
        pairs = [pair.split("=") for pair in progenitors.split(";")]
        rows += shares_of_fates(found, {node: of.split(",") for node, of in pairs}, settings, lineage)
    write_rows(pd.DataFrame(rows)[["left_out", "n_cells", "method", "score", "value"]], out)


if __name__ == "__main__":
    typer.run(main)
