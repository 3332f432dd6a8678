"""Reconstruct left-out nodes and times of a lineage, by bdm and baselines."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from anndata import AnnData
from distances import N_NEAREST, Rows, sample_rows, scored, variable_genes
from scipy.sparse import csr_matrix

from bdm import tl
from bdm._core.seeds import numpy_generator
from bdm.applications.relations.lineage import Lineage
from bdm.applications.relations.lineage_tree import LineageTree
from bdm.applications.relations.reconstruct import relatives_of
from bdm.settings import LineageSettings

WEIGHTS = (0.25, 0.5, 0.75)  # of later samples in blends


# ---- left-out cells, and methods that generate them


@dataclass(frozen=True)
class Task:
    """Left-out cells of a node, and all remaining cells."""

    node: str
    real: AnnData
    remaining: AnnData
    settings: LineageSettings
    tree: LineageTree

    @property
    def times(self) -> np.ndarray:
        """Times of the real cells."""
        return self.real.obs[self.settings.time_key].to_numpy(float)

    @cached_property
    def lineage(self) -> Lineage:
        """Lineage without the left-out cells."""
        return tl.lineage(self.remaining, self.settings, tree=self.tree)


def leave_out(cells: AnnData, node: str, settings: LineageSettings, tree: LineageTree) -> Task:
    """Leave out the cells of NODE; for NODE:time, the middle third of their times."""
    name, _, part = node.partition(":")
    is_left_out = (cells.obs[settings.label_key] == name).to_numpy()
    if part:
        time = cells.obs[settings.time_key].to_numpy(float)
        low, high = np.quantile(time[is_left_out], [1 / 3, 2 / 3])
        is_left_out &= (time >= low) & (time <= high)
    return Task(name, cells[is_left_out].copy(), cells[~is_left_out].copy(), settings, tree)


def reconstructed(task: Task, seed: int) -> AnnData:
    """Reconstruct the cells by bdm at their times."""
    return tl.reconstruct(task.lineage, task.remaining, task.node, at=task.times, extrapolate=True, seed=seed)


@dataclass(frozen=True)
class Neighbours:
    """Cells near a place in the lineage, and rows of the nearest ones."""

    cells: AnnData
    nearest: np.ndarray
    before: np.ndarray  # in ancestral samples
    after: np.ndarray  # in descendant samples

    @classmethod
    def from_task(cls, task: Task) -> "Neighbours":
        """Find the neighbours of the median left-out time."""
        lineage = task.lineage
        relatives, point = relatives_of(lineage, task.remaining, "auto")
        place = lineage.places_at(lineage.tree.find(task.node), np.median(task.times))
        points = lineage.places
        path, before = points.path(place)[:, 0], points.is_ancestral(place)[:, 0]
        sides = np.ones(len(path), dtype=bool), before, place.is_ancestral(points)[0]

        def near(values: np.ndarray) -> np.ndarray:
            order = np.argsort(np.where(values, path, np.inf)[point], kind="stable")
            return order[values[point][order]][:N_NEAREST]

        return cls(relatives, *map(near, sides))


def nearest_cells(task: Task, seed: int) -> AnnData:
    """Sample real cells of the nearest samples."""
    neighbours, generator = Neighbours.from_task(task), numpy_generator(seed, "nearest")
    return neighbours.cells[sample_rows(neighbours.nearest, task.real.n_obs, generator)]


def mixture(task: Task, seed: int) -> AnnData:
    """Sample real cells, half from earlier and half from later samples."""
    neighbours, generator = Neighbours.from_task(task), numpy_generator(seed, "mixture")
    n = task.real.n_obs // 2
    before = sample_rows(neighbours.before, n, generator)
    after = sample_rows(neighbours.after, task.real.n_obs - n, generator)
    return neighbours.cells[np.concatenate([before, after])]


def blend(task: Task, seed: int, weight: float) -> AnnData:
    """Sample counts around a weighted mean of earlier and later samples.

    The dispersion is estimated within samples.
    """
    neighbours, generator = Neighbours.from_task(task), numpy_generator(seed, "blend")

    def share(rows: np.ndarray) -> np.ndarray:
        total = np.asarray(neighbours.cells.X[rows].sum(axis=0)).ravel()
        return total / total.sum()

    mean = (1 - weight) * share(neighbours.before) + weight * share(neighbours.after)
    rows = generator.choice(neighbours.nearest, task.real.n_obs)
    size = np.asarray(neighbours.cells.X[rows].sum(axis=1)).ravel()
    dispersion = np.full(neighbours.cells.n_vars, 1e-3)
    dispersion[neighbours.cells.var_names.get_indexer(task.lineage.genes.index)] = task.lineage.dispersion
    rate = generator.standard_gamma(1 / dispersion, (len(size), len(mean))) * dispersion * mean * size[:, None]
    return AnnData(csr_matrix(generator.poisson(rate).astype(np.float32)), var=neighbours.cells.var)


METHODS: dict[str, Callable[[Task, int], AnnData]] = {
    "bdm": reconstructed,
    "nearest": nearest_cells,
    "mixture": mixture,
    **{f"blend-{weight:g}": partial(blend, weight=weight) for weight in WEIGHTS},
}


def without_nodes(cells: AnnData, nodes: list[str], settings: LineageSettings, tree: LineageTree, seed: int) -> Rows:
    """Leave out each node or time, and score the generated cells."""
    genes, rows = variable_genes(cells), []
    for node in nodes:
        task = leave_out(cells, node, settings, tree)
        generated = {name: method(task, seed) for name, method in METHODS.items()}
        rows += [{"left_out": node, "score": "nodes"} | row for row in scored(generated, task.real, seed, genes)]
    return rows
