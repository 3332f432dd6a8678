"""``bdm hierarchy``: derive the hierarchy of cell types."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bdm._core.errors import counted, listed
from bdm.commands.base import AutoencoderFolder, OutFile, Output, Summary, Tree
from bdm.settings import HierarchySettings, Seed

if TYPE_CHECKING:
    from bdm.hierarchy.tree import Hierarchy


def hierarchy(
    autoencoder: AutoencoderFolder,
    out: OutFile,
    *,
    newick: Annotated[Path | None, Output, "Newick file to write as well."] = None,
    figure: Annotated[Path | None, Output, "Figure to write as well (.png, .svg, .pdf)."] = None,
    table: Annotated[Path | None, Output, "Table of branches to write as well (.csv)."] = None,
    tree: Tree = None,
    settings: HierarchySettings,
    seed: Seed = 0,
) -> Summary:
    """Derive the hierarchy of cell types by clustering their means.

    Example: bdm hierarchy autoencoder/ hierarchy.json --newick hierarchy.nwk --figure hierarchy.png
    """
    from bdm._core.files import write_table
    from bdm.autoencoder.latent import read_latent
    from bdm.hierarchy.files import branch_table, save_hierarchy, to_newick
    from bdm.model.fit_model import fit_hierarchy
    from bdm.plotting.hierarchy_figure import draw_hierarchy, view_of
    from bdm.plotting.style import save_figure

    fitted = fit_hierarchy(read_latent(autoencoder), settings, seed=seed, tree=tree)
    save_hierarchy(out, fitted)
    if newick is not None:
        newick.write_text(to_newick(fitted), encoding="utf-8")
    if figure is not None:
        save_figure(draw_hierarchy(view_of(fitted)), figure)
    if table is not None:
        write_table(branch_table(fitted), table)
    return Summary(summary_of_tree(fitted), then=("bdm", "train", autoencoder, out, "model/"))


def summary_of_tree(hierarchy: "Hierarchy") -> dict[str, str]:
    """Describe a hierarchy by its size, and by types whose place is uncertain."""
    from bdm.hierarchy.tree import PLACE_UNCERTAIN

    n_nodes = sum(1 for branch in hierarchy.branches if hierarchy.children[branch.name])
    n_populations = len(hierarchy.populations) - len(hierarchy.cell_types)
    divided = f" with {len(hierarchy.populations)} populations" if n_populations else ""
    types, nodes = counted(len(hierarchy.cell_types), "cell type"), counted(n_nodes, "node")
    uncertain = [branch.name for branch in hierarchy.branches if branch.place_uncertain]
    nearer = [f"{branch.name} to {branch.nearer_to}" for branch in hierarchy.branches if branch.nearer_to]
    notes = {PLACE_UNCERTAIN: uncertain, "nearer to another cell type": nearer}
    return {"tree": f"{types}{divided}, {nodes}", **{note: listed(names) for note, names in notes.items() if names}}
