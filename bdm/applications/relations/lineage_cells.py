"""Locate cells in a lineage by their nodes and times."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError, counted
from bdm._core.validation import unknown_node
from bdm.applications.relations.lineage_tree import LineageTree
from bdm.data.columns import finite_column, text_column
from bdm.data.counts import raw_counts
from bdm.settings import LineageSettings

N_TIMES = 11  # grid of times for predictions; each cell uses the nearest one


@dataclass(frozen=True)
class LineageCells:
    """Cells with raw counts, and the node, time and time bin of each."""

    cells: AnnData
    node: np.ndarray
    time: np.ndarray
    bin: np.ndarray
    edges: np.ndarray  # lower edges of all bins; empty without times


def locate(
    adata: AnnData, settings: LineageSettings, tree: LineageTree, edges: np.ndarray | None = None
) -> LineageCells:
    """Locate cells in a lineage; without times, the time of a cell is the depth of its node."""
    key, argument = settings.lineage_key or settings.label_key, "lineage_key" if settings.lineage_key else "label_key"
    names = text_column(adata.obs, key, argument=argument)
    index = {name: tree.index_of(name) for name in sorted(set(names))}
    if unknown := [name for name, number in index.items() if number < 0]:
        remedy = "add it to the tree, or leave its cells out"
        raise InputError(f"{unknown_node(unknown[0], tree.nodes)} obs[{key!r}] has cells of it; {remedy}.")
    node = names.map(index).to_numpy(int)
    cells = raw_counts(adata, source=settings.counts)
    if settings.time_key is None:
        return LineageCells(cells, node, tree.depth[node], np.zeros(len(node), dtype=int), np.array([]))
    time = times_of(adata.obs, settings.time_key)
    if edges is None:
        times = np.unique(time)
        few = len(times) <= settings.n_times
        edges = times if few else np.linspace(times[0], times[-1], settings.n_times + 1)[:-1]
    return LineageCells(cells, node, time, np.searchsorted(edges, time, side="right") - 1, edges)


def columns_of(cells: AnnData, genes: pd.Index) -> np.ndarray:
    """Return the columns of a lineage's genes in cells; reject missing genes."""
    column = np.asarray(cells.var_names.get_indexer(genes))
    if len(missing := genes[column < 0]):
        raise InputError(
            f"The cells lack {counted(len(missing), 'gene')} of the lineage, for example {missing[0]!r}; use cells "
            "with all genes of the lineage."
        )
    return column


def require_columns(obs: pd.DataFrame, *keys: str | None) -> None:
    """Reject cells without the columns of ``obs`` that a lineage needs."""
    for key in keys:
        if key is not None and key not in obs:
            raise InputError(f"obs of the cells has no column {key!r}, which the lineage was fitted with.")


def times_of(obs: pd.DataFrame, key: str) -> np.ndarray:
    """Return the times of cells from a column of ``obs``."""
    return finite_column(obs, key, argument="time_key", need="times are numbers").to_numpy()


def nearest_times(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of times, and the index of the nearest for each cell."""
    grid = np.unique(time)
    if len(grid) > N_TIMES:
        grid = np.linspace(grid[0], grid[-1], N_TIMES)
    used, nearest = np.unique(np.abs(time[:, None] - grid).argmin(axis=1), return_inverse=True)
    return grid[used], nearest
