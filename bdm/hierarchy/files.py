"""Hierarchies and trees in files: JSON, Newick, and a table of branches."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bdm._core.errors import InputError, at
from bdm._core.files import read_checksummed_json, read_json, reading, write_checksummed_json
from bdm._core.store import FORMAT, ContentReader, ContentWriter, reject_if_damaged
from bdm.hierarchy.tree import PLACE_UNCERTAIN, Clade, Hierarchy, from_nested, rejecting_deep_trees


def save_hierarchy(path: Path, hierarchy: Hierarchy) -> None:
    """Write a hierarchy into a JSON file."""
    write_checksummed_json(path, {"format": FORMAT, **ContentWriter().encode(hierarchy, "hierarchy")})


def load_hierarchy(path: Path) -> Hierarchy:
    """Read a hierarchy from its JSON file."""
    content = read_checksummed_json(path, "hierarchy", version=FORMAT)
    with reject_if_damaged(path):
        of_fields = {name: value for name, value in content.items() if name not in ("format", "checksum")}
        hierarchy: Hierarchy = ContentReader({}).decode(of_fields, Hierarchy)
        fault = hierarchy.fault()
    if fault:
        raise InputError(f"{path} is damaged ({fault}); make it again.")
    return hierarchy


TOKEN = re.compile(r"\s*(?:'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\"|(\[[^]]*\])|([(),;:])|([^\s()\[\]',;:]+))")


def quoted(name: str) -> str:
    """Name as a quoted Newick label."""
    return "'" + name.replace("'", "''") + "'"


def to_newick(hierarchy: Hierarchy) -> str:
    """Write a hierarchy in Newick, with branch lengths in noise levels.

    An inner node is labelled by its support, and above the sub-populations of a cell type by its name, so that
    :func:`read_tree` finds the cell types again.
    """
    written: dict[str, str] = {}
    for branch in reversed(hierarchy.branches):
        children = hierarchy.children[branch.name]
        if children:
            label = "" if branch.support is None else f"{branch.support:.2f}"
            label = quoted(branch.name) if branch.name == branch.cell_type else label
            text = f"({','.join(written.pop(child) for child in children)}){label}"
        else:
            text = quoted(branch.name)
        segment = hierarchy.segment(branch.name)
        written[branch.name] = f"{text}:{segment.high - segment.low:.6g}"
    return written[hierarchy.root.name] + ";\n"


def from_newick(text: str, *, every_node: bool = False) -> Clade:
    """Read the shape of the first tree of a Newick text, with the labels of inner nodes as their names.

    With ``every_node``, nodes with one child are kept, underscores stay as they are, and branches have lengths.
    """
    open_nodes: list[list[Clade]] = [[]]
    position, skip = 0, False
    length: float | None = None
    name: str | None = None
    closed: Clade | None = None
    while match := TOKEN.match(text, position):
        position = match.end()
        single, double, comment, sign, word = match.groups()
        if comment is not None:
            continue
        if sign is None:
            if skip and every_node:
                length = branch_length(match.group().strip())
            if not skip:
                if single is not None:
                    label = single.replace("''", "'")
                elif double is not None:
                    label = double.replace('""', '"')
                else:
                    label = word if every_node else word.replace("_", " ")
                name = label if name is None else f"{name} {label}"
            continue
        if sign == ":":
            skip = True
            continue
        if sign == "(":
            if name is not None or closed or skip:
                break
            open_nodes.append([])
            continue
        if closed is None and name is None:
            raise InputError("The Newick text has a branch without a name; name every leaf by its cell type.")
        node = Clade(name) if closed is None else closed
        open_nodes[-1].append(Clade(name if name and node.children else node.name, node.children, length))
        name, skip, closed, length = None, False, None, None
        if sign == ")" and len(open_nodes) > 1:
            children = tuple(open_nodes.pop())
            closed = Clade(children=children) if len(children) > 1 or every_node else children[0]
        elif sign == ";" and len(open_nodes) == 1 and len(open_nodes[0]) == 1:
            return open_nodes[0][0]
        elif sign != ",":
            break
    raise InputError(f"The Newick text cannot be read near character {position}; check brackets and the end ';'.")


def branch_length(text: str) -> float:
    """Read the length of a branch."""
    try:
        length = float(text)
    except ValueError:
        length = -1.0
    if not 0 <= length < float("inf"):
        raise InputError(f"The Newick text has the branch length {text!r}, which must be a number that is at least 0.")
    return length


Tree = Clade | Path | str | Sequence[Any]  # a shape, a file, Newick text, or nested lists of cell types


@rejecting_deep_trees()
def as_clade(tree: Tree) -> Clade:
    """Turn a user's tree, in any form of :data:`Tree`, into its shape."""
    if isinstance(tree, Clade):
        return tree
    if isinstance(tree, Path) or (isinstance(tree, str) and not tree.lstrip().startswith("(")):
        return read_tree(tree)
    return from_newick(tree) if isinstance(tree, str) else from_nested(tree)


def read_tree(path: Path | str) -> Clade:
    """Read a tree of cell types: nested lists in ``.json``, or Newick in any other file.

    Newick names may be in single or double quotes; in names without quotes, an underscore stands for a space. Branch
    lengths and comments are ignored. An inner node stands for a cell type if it has the name of one, and none is below
    it, as in the Newick file of a hierarchy with sub-populations; other names of inner nodes are ignored.

    Returns
    -------
    Shape of the tree, for the argument ``tree`` of :class:`bdm.BranchedDiffusion`.

    Raises
    ------
    InputError
        If there is no such file, or it is not a tree.
    """
    path = Path(path)
    is_json = path.suffix.lower() == ".json"
    if is_json:
        content = read_json(path)
    else:
        with reading(path, "a tree in Newick"):
            content = path.read_bytes().decode("utf-8-sig")  # as text, it would lose the line breaks in names
    with at(path), rejecting_deep_trees():
        return from_nested(content) if is_json else from_newick(content)


def branch_table(hierarchy: Hierarchy) -> pd.DataFrame:
    """List all branches, parents before their children, with the cell types below each."""
    rows = []
    for branch in hierarchy.branches:
        below = hierarchy.types_below(branch.name)
        rows.append(
            {
                "branch": branch.name,
                "parent": branch.parent,
                "level": branch.level,
                "cell_type": below[0] if len(below) == 1 else None,
                "n_types": len(below),
                "n_populations": sum(1 for _ in hierarchy.leaves(branch.name)),
                "n_cells": branch.n_cells,
                "support": branch.support,
                "nearer_to": branch.nearer_to,
                "place": branch.place,
                "note": PLACE_UNCERTAIN if branch.place_uncertain else None,
                "added": branch.added,
                "cell_types": "; ".join(below),
            }
        )
    return pd.DataFrame(rows)
