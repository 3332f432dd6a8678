"""``bdm hierarchy``: derive the hierarchy of cell types."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bdm._core.errors import counted, listed
from bdm.commands.base import AutoencoderFolder, OutFile, Output, Summary
from bdm.settings import HierarchySettings, Seed, Tree

if TYPE_CHECKING:
    from bdm.hierarchy.tree import Hierarchy


def hierarchy(
    autoencoder: AutoencoderFolder,
    out: OutFile,
    *,
    newick: Annotated[Path | None, Output, "Newick file to write as well."] = None,
    figure: Annotated[Path | None, Output, "Figure to write as well (.png, .svg, .pdf)."] = None,
    table: Annotated[Path | None, Output, "Table of branches to write as well (.csv)."] = None,
    page: Annotated[Path | None, Output, "Page for the browser to write as well (.html)."] = None,
    tree: Tree = None,
    settings: HierarchySettings,
    seed: Seed = 0,
) -> Summary:
    """Derive the hierarchy of cell types by clustering their means.

    Example: bdm hierarchy autoencoder/ hierarchy.json --newick hierarchy.nwk --page hierarchy.html
    """
    from bdm._core.files import atomic_write
    from bdm.autoencoder.latent import latent_cells, read_latent
    from bdm.hierarchy.build import build_hierarchy
    from bdm.hierarchy.files import branch_table, save_hierarchy, to_newick
    from bdm.plotting.style import save_figure
    from bdm.plotting.tree import draw_hierarchy, view_of
    from bdm.plotting.tree_page import tree_page

    with ExitStack() as files:
        latent = read_latent(autoencoder)
        built = build_hierarchy(latent_cells(latent), settings, seed=seed, tree=tree)
        made_of = {"autoencoder": latent.uns.get("autoencoder")}
        if tree is not None:
            made_of["tree"] = tree.name
        built = replace(built, provenance=made_of | built.provenance)
        save_hierarchy(files.enter_context(atomic_write(out)), built)
        if newick is not None:
            files.enter_context(atomic_write(newick)).write_text(to_newick(built), encoding="utf-8")
        if figure is not None:
            save_figure(draw_hierarchy(view_of(built)), files.enter_context(atomic_write(figure)))
        if table is not None:
            branch_table(built).to_csv(files.enter_context(atomic_write(table)), index=False, float_format="%.6g")
        if page is not None:
            files.enter_context(atomic_write(page)).write_text(tree_page(built), encoding="utf-8")
    written = (out, newick, figure, table, page)
    return Summary(written, facts_of(built), then=("bdm", "train", autoencoder, out, "model/"))


def facts_of(built: "Hierarchy") -> dict[str, str]:
    """Describe a hierarchy for the summary."""
    from bdm.hierarchy.tree import PLACE_UNCERTAIN

    n_nodes = sum(1 for branch in built.branches if built.children[branch.name])
    n_populations = len(built.populations) - len(built.cell_types)
    divided = f" with {len(built.populations)} populations" if n_populations else ""
    types, nodes = counted(len(built.cell_types), "cell type"), counted(n_nodes, "node")
    uncertain = [branch.name for branch in built.branches if branch.place_uncertain]
    stray = [f"{branch.name} to {branch.nearer_to}" for branch in built.branches if branch.nearer_to]
    found = {PLACE_UNCERTAIN: uncertain, "nearer to another cell type": stray}
    return {"tree": f"{types}{divided}, {nodes}", **{what: listed(names) for what, names in found.items() if names}}
