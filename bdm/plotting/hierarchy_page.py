"""Tree of cell types as a self-contained HTML page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from bdm.hierarchy.tree import PLACE_UNCERTAIN, Hierarchy
from bdm.plotting.hierarchy_figure import View, view_of
from bdm.plotting.style import ADDED, BRANCH, NODE

MAX_ROWS = 40  # when the page opens


def tree_page(
    hierarchy: Hierarchy,
    *,
    root: str | None = None,
    max_rows: int = MAX_ROWS,
    since: int = 0,
    sub_populations: bool = False,
    title: str = "Hierarchy of cell types",
) -> str:
    """Write an interactive page of the tree, as HTML without other files.

    Readers open and close clades, search for types, and read about branches. The page starts as the figure of
    :func:`bdm.pl.hierarchy` with the same arguments.
    """
    view = view_of(hierarchy, root=root, max_rows=max_rows, since=since, sub_populations=sub_populations)
    browser = tree_browser(view, title=title, heading=f"<h1>{escape(title)}</h1>", since=since)
    return read_template("page.html").substitute(
        title=escape(title), style=browser.style, browser=browser.body, script=browser.script
    )


@dataclass(frozen=True)
class TreeBrowser:
    """HTML of the tree for a page; the script fills the body."""

    body: str
    style: str
    script: str


def tree_browser(
    view: View, *, title: str, heading: str = "", since: int = 0, genes: Mapping[str, Sequence[str]] | None = None
) -> TreeBrowser:
    """Return the tree of :func:`tree_page`, with genes, as a part of a page."""
    data = collect_data(view, since=since, genes=genes or {})
    body = read_template("tree.html").substitute(title=escape(title), heading=heading, data=encode_script(data))
    colours = f":root {{ --branch: {BRANCH}; --point: {NODE}; --added: {ADDED}; }}\n"
    return TreeBrowser(body, colours + read_template("tree.css").template, read_template("tree.js").template)


def read_template(name: str) -> Template:
    """Read a template of the page."""
    return Template((files("bdm.plotting") / "templates" / name).read_text(encoding="utf-8"))


def collect_data(view: View, *, since: int, genes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Collect the branches and initially open nodes of a page.

    Parents and open nodes are positions in the list of branches.
    """
    hierarchy = view.hierarchy
    position = {branch.name: i for i, branch in enumerate(hierarchy.branches)}
    branches = [
        {
            "name": branch.name,
            "parent": None if branch.parent is None else position[branch.parent],
            "level": round(branch.level, 4),
            "cells": branch.n_cells,
            "support": branch.support,
            "added": branch.added,
            "note": PLACE_UNCERTAIN if branch.place_uncertain else None,
            "genes": list(genes.get(branch.name, ())),
            **({} if branch.cell_type in (None, branch.name) else {"type": branch.cell_type}),
            **({"nearer": branch.nearer_to} if branch.nearer_to else {}),
        }
        for branch in hierarchy.branches
    ]
    return {
        "sigma_max": round(hierarchy.sigma_max, 4),
        "since": since,
        "top": position[view.root],
        "opened": [position[name] for name in view.opened],
        "branches": branches,
    }


def encode_script(content: dict[str, Any]) -> str:
    """Write JSON that is safe inside a script element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
