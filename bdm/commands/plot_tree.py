"""``bdm plot-tree``: plot a tree of cell types."""

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from bdm._core.schema import Unset
from bdm.commands.base import OutFile, Summary


def plot_tree(
    tree: Annotated[Path, "Folder of a model, or file made by bdm hierarchy (.json)."],
    out: OutFile,
    *,
    root: Annotated[str | None, "Node whose clade is plotted.", Unset("the whole tree")] = None,
    max_rows: Annotated[int, Ge(2), "Maximum number of rows; clades stand for cell types beyond it."] = 60,
    since: Annotated[int, Ge(0), "Number of the extension after which added types are highlighted."] = 0,
    sub_populations: Annotated[bool, "Draw each sub-population of a cell type."] = False,
) -> Summary:
    """Plot a tree of cell types, or a clade of it.

    Writes a figure (.png, .svg, .pdf), or a page for the browser (.html).

    Example: bdm plot-tree model/ clade.png --root "node 12"
    """
    from bdm.hierarchy.files import load_hierarchy
    from bdm.model.model import load_model
    from bdm.plotting.hierarchy_figure import draw_hierarchy, view_of
    from bdm.plotting.hierarchy_page import tree_page
    from bdm.plotting.style import save_figure

    hierarchy = load_model(tree).hierarchy if tree.is_dir() else load_hierarchy(tree)
    view: dict[str, Any] = {"root": root, "max_rows": max_rows, "since": since, "sub_populations": sub_populations}
    if out.suffix == ".html":
        out.write_text(tree_page(hierarchy, **view), encoding="utf-8")
    else:
        save_figure(draw_hierarchy(view_of(hierarchy, **view), since=since), out)
    return Summary()
