"""``bdm hierarchy``: derive the hierarchy of cell types."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdm.commands.base import Summary
from bdm.commands.options import AutoencoderFolder, OutFile
from bdm.settings import HierarchySettings, Seed, Tree
from bdm.text import counted, listed

if TYPE_CHECKING:
    from bdm.hierarchy.tree import Hierarchy


def hierarchy(
    autoencoder: AutoencoderFolder,
    out: OutFile,
    *,
    newick: Annotated[Path | None, typer.Option(help="Newick file to write as well.", dir_okay=False)] = None,
    figure: Annotated[Path | None, typer.Option(help="Figure to write as well (.png, .svg, .pdf).")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Table of branches to write as well (.csv).", dir_okay=False)
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Page for the browser to write as well (.html).")] = None,
    tree: Tree = None,
    settings: HierarchySettings,
    seed: Seed = 0,
) -> Summary:
    """Derive the hierarchy of cell types by clustering their means.

    Example: bdm hierarchy autoencoder/ hierarchy.json --newick hierarchy.nwk --page hierarchy.html
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from bdm.errors import InputError
    from bdm.files import atomic_write
    from bdm.hierarchy.build import build_hierarchy
    from bdm.hierarchy.files import branch_table, read_tree, save_hierarchy, to_newick
    from bdm.latent.cells import latent_cells, read_latent
    from bdm.plotting.page.tree import tree_page
    from bdm.plotting.style import save_figure
    from bdm.plotting.tree import plot_hierarchy

    outputs = [path.resolve() for path in (out, newick, figure, table, page) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise InputError(f"Two outputs would be written to {outputs[-1]}; name a file for each.")
    given = None if tree is None else read_tree(tree)
    with ExitStack() as files:
        built = build_hierarchy(latent_cells(read_latent(autoencoder)), settings, seed=seed, tree=given)
        if tree is not None:
            built = replace(built, provenance=built.provenance | {"tree": tree.name})
        save_hierarchy(files.enter_context(atomic_write(out)), built)
        if newick is not None:
            files.enter_context(atomic_write(newick)).write_text(to_newick(built), encoding="utf-8")
        if figure is not None:
            save_figure(plot_hierarchy(built), files.enter_context(atomic_write(figure)))
        if table is not None:
            branch_table(built).to_csv(files.enter_context(atomic_write(table)), index=False, float_format="%.6g")
        if page is not None:
            files.enter_context(atomic_write(page)).write_text(tree_page(built), encoding="utf-8")
    n_nodes = sum(1 for branch in built.branches if built.children[branch.name])
    n_populations = len(built.populations) - len(built.cell_types)
    divided = f" with {len(built.populations)} populations" if n_populations else ""
    types, nodes = counted(len(built.cell_types), "cell type"), counted(n_nodes, "node")
    facts = {"tree": f"{types}{divided}, {nodes}", **stray_populations(built)}
    written = (out, newick, figure, table, page)
    return Summary(written, facts, then=("bdm", "train", autoencoder, out, "model/"))


def stray_populations(hierarchy: "Hierarchy") -> dict[str, str]:
    """Describe the sub-populations that are nearer to another cell type, if there are any, for the summary."""
    stray = [f"{branch.name} to {branch.nearer_to}" for branch in hierarchy.branches if branch.nearer_to]
    return {"nearer to another cell type": listed(stray)} if stray else {}
