"""Read and write hierarchies and trees: JSON, Newick, and a table of branches."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bdm._core.errors import InputError, error_prefix
from bdm._core.files import read_json, reading, write_checksummed_json
from bdm._core.store import FORMAT, ContentReader, ContentWriter, read_content, reject_if_damaged
from bdm.hierarchy.tree import PLACE_UNCERTAIN, Clade, Hierarchy, from_nested, rejecting_deep_trees


def save_hierarchy(path: Path, hierarchy: Hierarchy) -> None:
    """Write a hierarchy into a JSON file."""
    write_checksummed_json(path, {"format": FORMAT, **ContentWriter().encode(hierarchy, "hierarchy")})


def load_hierarchy(path: Path) -> Hierarchy:
    """Read a hierarchy from its JSON file."""
    content = read_content(path, "hierarchy")
    with reject_if_damaged(path):
        fields = {name: value for name, value in content.items() if name not in ("format", "checksum")}
        hierarchy: Hierarchy = ContentReader({}).decode(fields, Hierarchy)
        fault = hierarchy.fault()
    if fault:
        raise InputError(f"{path} is damaged ({fault}); create it again.")
    return hierarchy


def to_newick(hierarchy: Hierarchy) -> str:
    """Convert a hierarchy to Newick, with branch lengths in noise levels.

    Inner nodes are labelled by their support, except cell types with sub-populations: they keep their name, which
    :func:`read_tree` recognises.
    """
    subtrees: dict[str, str] = {}
    for branch in reversed(hierarchy.branches):
        children = hierarchy.children[branch.name]
        if children:
            label = "" if branch.support is None else f"{branch.support:.2f}"
            label = quoted(branch.name) if branch.name == branch.cell_type else label
            text = f"({','.join(subtrees.pop(child) for child in children)}){label}"
        else:
            text = quoted(branch.name)
        segment = hierarchy.segment(branch.name)
        subtrees[branch.name] = f"{text}:{segment.high - segment.low:.6g}"
    return subtrees[hierarchy.root.name] + ";\n"


def quoted(name: str) -> str:
    """Return a name as a quoted Newick label."""
    return "'" + name.replace("'", "''") + "'"


TOKEN = re.compile(r"\s*(?:'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\"|(\[[^]]*\])|([(),;:])|([^\s()\[\]',;:]+))")


def from_newick(text: str, *, every_node: bool = False) -> Clade:
    """Parse the first tree of a Newick text, including labels of inner nodes.

    ``every_node`` keeps nodes with one child, underscores and branch lengths.
    """
    open_nodes: list[list[Clade]] = [[]]
    position, in_length = 0, False
    length: float | None = None
    name: str | None = None
    closed: Clade | None = None
    while match := TOKEN.match(text, position):
        position = match.end()
        single, double, comment, mark, word = match.groups()
        if comment is not None:
            continue
        if mark is None:
            if in_length and every_node:
                length = branch_length(match.group().strip())
            if not in_length:
                if single is not None:
                    label = single.replace("''", "'")
                elif double is not None:
                    label = double.replace('""', '"')
                else:
                    label = word if every_node else word.replace("_", " ")
                name = label if name is None else f"{name} {label}"
            continue
        if mark == ":":
            in_length = True
            continue
        if mark == "(":
            if name is not None or closed or in_length:
                break
            open_nodes.append([])
            continue
        if closed is None and name is None:
            raise InputError("The Newick text has a branch without a name; name every leaf by its cell type.")
        node = Clade(name) if closed is None else closed
        open_nodes[-1].append(Clade(name if name and node.children else node.name, node.children, length))
        name, in_length, closed, length = None, False, None, None
        if mark == ")" and len(open_nodes) > 1:
            children = tuple(open_nodes.pop())
            closed = Clade(children=children) if len(children) > 1 or every_node else children[0]
        elif mark == ";" and len(open_nodes) == 1 and len(open_nodes[0]) == 1:
            return open_nodes[0][0]
        elif mark != ",":
            break
    raise InputError(f"The Newick text cannot be read near character {position}; check brackets and the end ';'.")


def branch_length(text: str) -> float:
    """Parse the length of a branch."""
    try:
        length = float(text)
    except ValueError:
        length = -1.0
    if not 0 <= length < float("inf"):
        raise InputError(f"The Newick text has a branch length {text!r}; lengths are numbers of 0 or more.")
    return length


Tree = Clade | Path | str | Sequence[Any]  # clade, file, Newick text, or nested lists of cell types


@rejecting_deep_trees()
def as_clade(tree: Tree) -> Clade:
    """Convert a user's tree, in any form of :data:`Tree`, to a clade."""
    if isinstance(tree, Clade):
        return tree
    if isinstance(tree, Path) or (isinstance(tree, str) and not tree.lstrip().startswith("(")):
        return read_tree(tree)
    return from_newick(tree) if isinstance(tree, str) else from_nested(tree)


def read_tree(path: Path | str) -> Clade:
    """Read a tree of cell types from a JSON or Newick file.

    JSON files contain nested lists of names. Newick names may be quoted (single or double); in unquoted names,
    underscores are spaces. Branch lengths and comments are ignored. An inner node named after a cell type is that cell
    type, unless cell types are below it; bdm writes types with sub-populations this way. Other names of inner nodes are
    ignored.

    Parameters
    ----------
    path
        File with nested lists (``.json``) or Newick (any other suffix).

    Returns
    -------
    Tree for the argument ``tree`` of :class:`bdm.BranchedDiffusion`.

    Raises
    ------
    InputError
        If the file does not exist or is not a tree.
    """
    path = Path(path)
    is_json = path.suffix.lower() == ".json"
    if is_json:
        content = read_json(path)
    else:
        with reading(path, "a tree in Newick"):
            content = path.read_bytes().decode("utf-8-sig")  # reading as text would change line breaks in names
    with error_prefix(path), rejecting_deep_trees():
        return from_nested(content) if is_json else from_newick(content)


def branch_table(hierarchy: Hierarchy) -> pd.DataFrame:
    """Tabulate all branches, parents first, with the cell types below each."""
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
