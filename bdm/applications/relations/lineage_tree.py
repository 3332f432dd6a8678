"""Lineage trees, times of divisions, and kernels between places."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from bdm._core.errors import InputError, error_prefix
from bdm._core.files import reading
from bdm._core.validation import unknown_node
from bdm.hierarchy.files import from_newick
from bdm.hierarchy.tree import Clade, rejecting_deep_trees

UNNAMED = "ancestor of "  # name of an unnamed node, followed by its first and last descendants
ROOT = "root"  # name of the root if lineage names do not begin alike


@dataclass(frozen=True)
class LineageTree:
    """Lineage tree; any node may have cells."""

    nodes: tuple[str, ...]  # names, mothers before daughters
    mother: np.ndarray  # index of the mother of each node; -1 for the root
    length: np.ndarray  # of the branch to each node

    @classmethod
    def from_clade(cls, clade: Clade) -> "LineageTree":
        """Convert a tree; unnamed nodes are named after their descendants."""
        names: list[str] = []
        mothers, lengths = [], []

        def add(node: Clade, mother: int, length: float) -> None:
            length += 1.0 if node.length is None else node.length
            if node.name is None and len(node.children) == 1:
                return add(node.children[0], mother, length)
            leaves, number = node.leaves(), len(names)
            names.append(str(node.name or f"{UNNAMED}{leaves[0]} and {leaves[-1]}"))
            mothers.append(mother)
            lengths.append(length)
            for child in node.children:
                add(child, number, 0.0)

        add(clade, -1, 0.0)
        if repeated := [name for name, n in Counter(names).items() if n > 1]:
            raise InputError(f"The lineage tree has two nodes {repeated[0]!r}; give each one name.")
        return cls(tuple(names), np.array(mothers), np.array(lengths))

    @classmethod
    def from_names(cls, names: Iterable[str]) -> "LineageTree":
        """Build the tree from lineage names such as ``ABpla``.

        Each prefix of a name is an ancestor. If a node has alternative names, as in ``ABal/ABpr``, the first is used.
        """
        by_path: dict[str, str] = {}
        for name in sorted(set(names)):
            path = name.split("/")[0]
            if path in by_path:
                raise InputError(
                    f"The lineage names {by_path[path]!r} and {name!r} mean the same node; give it one name."
                )
            by_path[path] = name
        first, last = min(by_path), max(by_path)
        n_common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        prefixes = {path[:n] for path in by_path for n in range(n_common, len(path) + 1)}
        index = {path: number for number, path in enumerate(sorted(prefixes, key=lambda path: (len(path), path)))}
        nodes = tuple(by_path.get(path, path or ROOT) for path in index)
        mother = [-1 if len(path) == n_common else index[path[:-1]] for path in index]
        return cls(nodes, np.array(mother), np.ones(len(nodes)))

    def find(self, name: str) -> int:
        """Return the index of a node; spaces and underscores are equal in names."""
        if (number := self.index_of(name)) < 0:
            raise InputError(unknown_node(name, self.nodes))
        return number

    def index_of(self, name: str) -> int:
        """Return the index of a node as :meth:`find`; -1 if it does not exist."""
        return self.index.get(name, self.index.get(in_words(name), -1))

    @cached_property
    def index(self) -> dict[str, int]:
        """Index of each node by its name, with underscores or spaces."""
        exact = {node: number for number, node in enumerate(self.nodes)}
        return {in_words(node): number for node, number in reversed(exact.items())} | exact

    @cached_property
    def paths_to_root(self) -> list[list[int]]:
        """Path from each node to the root, both included."""
        return [np.flatnonzero(ancestors)[::-1].tolist() for ancestors in self.is_below]

    @cached_property
    def is_below(self) -> np.ndarray:
        """Whether a node (row) is or descends from another (column), nodes x nodes."""
        is_below = np.eye(len(self.nodes), dtype=bool)
        for node, mother in enumerate(self.mother[1:], 1):
            is_below[node] |= is_below[mother]
        return is_below

    @cached_property
    def depth(self) -> np.ndarray:
        """Length of the path from the root to each node."""
        return np.array([self.length[path[:-1]].sum() for path in self.paths_to_root])

    @cached_property
    def common_ancestor(self) -> np.ndarray:
        """Last common ancestor of two nodes, nodes x nodes."""
        common = np.zeros((len(self.nodes),) * 2, dtype=int)
        for node, mother in enumerate(self.mother):
            common[node, :node] = common[:node, node] = common[mother, :node]
            common[node, node] = node
        return common

    def daughters(self, node: int) -> list[int]:
        """Return the daughters of a node."""
        return np.flatnonzero(self.mother == node).tolist()


def in_words(name: str) -> str:
    """Replace underscores by spaces."""
    return name.replace("_", " ")


@rejecting_deep_trees()
def read_lineage_tree(tree: LineageTree | Clade | Path | str) -> LineageTree:
    """Read a lineage tree from a Newick file, Newick text, or an object."""
    if isinstance(tree, LineageTree):
        return tree
    if isinstance(tree, str) and tree.lstrip().startswith("("):
        tree = from_newick(tree, every_node=True)
    if isinstance(tree, Clade):
        return LineageTree.from_clade(tree)
    if not isinstance(tree, str | Path):
        raise InputError(f"The lineage tree is a {type(tree).__name__}, but must be in Newick, as a file or text.")
    path = Path(tree)
    with reading(path, "a tree in Newick"):
        text = path.read_bytes().decode("utf-8-sig")
    with error_prefix(path):
        return LineageTree.from_clade(from_newick(text, every_node=True))


# ---- times

EARLY, LATE = 0.05, 0.95  # quantiles of times of a node's cells, as its beginning and end


def check_order(tree: LineageTree, node: np.ndarray, time: np.ndarray) -> None:
    """Reject times if the median of a descendant precedes its ancestor's."""
    median = pd.Series(time).groupby(node).median().reindex(range(len(tree.nodes)))  # NaN without cells
    for daughter, path in enumerate(tree.paths_to_root):
        for mother in path[1:]:
            if median[daughter] < median[mother]:
                raise InputError(
                    f"The times contradict the lineage tree: {tree.nodes[daughter]!r} (median {median[daughter]:g}) is "
                    f"before {tree.nodes[mother]!r} (median {median[mother]:g}), from which it descends; correct the "
                    "tree or the times."
                )


def divisions(tree: LineageTree, node: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Estimate the time at which each node divides; infinite for leaves.

    If a node and a daughter have cells, the division is the time that best separates its cells from its descendants.
    Consecutive nodes without cells divide the time between the neighbouring cells evenly.
    """
    n = len(tree.nodes)
    sampled, end = np.isin(np.arange(n), node), np.full(n, np.inf)
    origin = origin_of(tree, pd.Series(time).groupby(node).min().reindex(range(n)).to_numpy(), time.max())
    first: list[list[tuple[int, float]]] = [[] for _ in range(n)]  # (generations, start) of the next nodes with cells
    for number in range(n)[::-1]:
        if sampled[number]:
            first[number] = [(0, float(np.quantile(time[node == number], EARLY)))]
        else:
            first[number] = [(1 + k, begin) for below in tree.daughters(number) for k, begin in first[below]]
    for number in range(n):
        own, later = time[node == number], time[tree.is_below[node, number] & (node != number)]
        if not len(later):
            continue
        mother, daughters = int(tree.mother[number]), tree.daughters(number)
        start = origin if mother < 0 else end[mother]
        if not sampled[number]:
            division = min(start + (begin - start) / n_missing for n_missing, begin in first[number])
        elif sampled[daughters].any():
            division = separation(own, later)
        else:
            division = min(np.quantile(own, LATE), *(begin for below in daughters for _, begin in first[below]))
        end[number] = max(division, start)
    return end


def origin_of(tree: LineageTree, first: np.ndarray, last: float) -> float:
    """Estimate when a lineage begins.

    Generations before the first cells get the average length of a generation. Shifting or scaling all times shifts or
    scales the origin likewise. ``first`` has the time of the first cell of each node (NaN without cells); ``last`` is
    the time of the last of all cells.
    """
    sampled, n_ancestors = ~np.isnan(first), tree.is_below.sum(axis=1) - 1
    generation = (last - np.nanmin(first)) / (n_ancestors.max() + 1)
    topmost = sampled & ((tree.is_below & sampled).sum(axis=1) == 1)
    return float(np.min(first[topmost] - n_ancestors[topmost] * generation))


def separation(before: np.ndarray, after: np.ndarray) -> float:
    """Return the threshold that separates two sets of times with the lowest error."""
    times = np.unique(np.concatenate([before, after]))
    wrong = [(before > time).mean() + (after <= time).mean() for time in times]
    return float(times[int(np.argmin(wrong))])


# ---- places: nodes at times

TIME_SCALES = (0.1, 0.25, 0.5)  # length scales of kernels in time, as fractions of the range of times
PATH_SCALES = (0.25, 0.7, 1.75)  # of kernels along paths through the tree, likewise


@dataclass(frozen=True)
class Places:
    """Places in a lineage: nodes at times (the depth if untimed)."""

    tree: LineageTree
    end: np.ndarray  # time at which each node of the tree divides
    node: np.ndarray  # index of the node of each place
    time: np.ndarray

    def shared(self, other: "Places") -> np.ndarray:
        """Return the path that two places share: time until their lineages divide, places x other places."""
        common = self.tree.common_ancestor[self.node[:, None], other.node]
        limit = np.where(self.node[:, None] == other.node, np.inf, self.end[common])
        return np.asarray(np.minimum(np.minimum.outer(self.time, other.time), limit))

    def path(self, other: "Places") -> np.ndarray:
        """Return the length of the path through the tree between two places, places x other places."""
        return np.asarray(np.add.outer(self.time, other.time) - 2 * self.shared(other))

    def is_ancestral(self, other: "Places") -> np.ndarray:
        """Return whether a place is an ancestor of another, or equal, places x other places."""
        return np.asarray(self.tree.is_below[other.node][:, self.node].T & np.less_equal.outer(self.time, other.time))

    def kernels(self, other: "Places", origin: float, span: float, *, timed: bool) -> list[np.ndarray]:
        """Return candidate kernels, places x other places.

        Along the lineage: Brownian motion, and Ornstein-Uhlenbeck processes (which revert to the mean). Along time,
        shared by all lineages: squared exponentials. Also averages of both. ``origin`` is the start time of the
        lineage, and ``span`` the range of measured times; if not ``timed``, both are depths in the tree.
        """
        path, difference = self.path(other), np.subtract.outer(self.time, other.time)
        brownian = np.maximum(self.shared(other) - origin, 0) / span  # 0 before the origin
        reverting = [np.exp(-path / (scale * span)) for scale in PATH_SCALES]
        smooth = [np.exp(-((difference / (scale * span)) ** 2) / 2) for scale in TIME_SCALES] if timed else []
        both = [(lineage + of_time) / 2 for lineage in (brownian, reverting[1]) for of_time in smooth]
        return [brownian, *reverting, *both, *smooth]
