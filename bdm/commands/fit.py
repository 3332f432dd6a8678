"""``bdm fit`` and its stages, and ``bdm extend``: models and their trees."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from bdm._core.errors import at, counted, listed
from bdm._core.schema import Unset
from bdm.commands.base import (
    AutoencoderFolder,
    Device,
    Holding,
    ModelFolder,
    OutFile,
    OutFolder,
    OutModel,
    Output,
    Prepared,
    Summary,
)
from bdm.settings import (
    AutoencoderSettings,
    HierarchySettings,
    InputKeys,
    Labels,
    MissingAsZero,
    NewTypes,
    Seed,
    Settings,
    TrainSettings,
    Tree,
)

if TYPE_CHECKING:
    import pandas as pd

    from bdm.hierarchy.tree import Hierarchy
    from bdm.model.covariates import CovariateEffects
    from bdm.model.donors import DonorEffects
    from bdm.model.model import BranchedModel


def fit(
    data: Annotated[Path, "Cells, in any format that prepare reads."],
    out: OutModel,
    *,
    labels: Labels = None,
    tree: Tree = None,
    settings: Settings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Fit a model in one go: prepare, autoencoder, hierarchy and train.

    Example: bdm fit cells.h5ad model/ --label-key cell_type
    """
    from bdm._core.files import sha256
    from bdm.api import BranchedDiffusion
    from bdm.data.modalities import features_in_words
    from bdm.data.prepare import origin
    from bdm.data.read import read_cells

    cells = read_cells(data, labels=labels, on_disk=True, **settings.prepare.reading)
    with at(data):
        diffusion = BranchedDiffusion(cells, settings=settings, seed=seed, device=device, tree=tree)
    prepared = diffusion.prepared
    assert prepared is not None
    prepared.uns["bdm"]["data_sha256"] = origin(cells) or sha256(data)
    model = diffusion.fit().model
    write_model(out, model, diffusion.history)
    facts = {
        "cells": f"{prepared.n_obs:,} x {features_in_words(prepared.var)}, of {counted(len(model.cell_types), 'type')}",
        "prior": model.prior.description,
        **summaries_of_effects(model.donor_effects, model.covariates),
    }
    return Summary(facts, then=generating(out))


def autoencoder(
    prepared: Prepared,
    out: Annotated[OutFolder, Holding("autoencoder.json")],
    *,
    settings: AutoencoderSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Train the count autoencoder, and encode all cells.

    Example: bdm autoencoder prepared.h5ad autoencoder/
    """
    from bdm._core.files import sha256
    from bdm.data.prepare import read_prepared
    from bdm.model.fit_model import fit_and_encode

    cells, checksum = read_prepared(prepared, on_disk=True), sha256(prepared)
    encoded, losses = fit_and_encode(cells, settings, seed=seed, device=device, prepared_sha256=checksum)
    encoded.save(out)
    losses.to_csv(out / "training.csv", index=False)
    fitted = encoded.autoencoder
    n_populations = counted(len(fitted.populations), "population")
    facts = {
        "types": f"{len(fitted.cell_types)} with {n_populations}",
        "decoders": f"{len(fitted.adapters)} of {n_populations} with type-specific decoders",
        "training": best_step(losses),
        **summaries_of_effects(encoded.donors, encoded.covariates),
    }
    return Summary(facts, then=("bdm", "hierarchy", out, "hierarchy.json"))


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
    from bdm.autoencoder.latent import read_latent
    from bdm.hierarchy.files import branch_table, save_hierarchy, to_newick
    from bdm.model.fit_model import fit_hierarchy
    from bdm.plotting.hierarchy_figure import draw_hierarchy, view_of
    from bdm.plotting.hierarchy_page import tree_page
    from bdm.plotting.style import save_figure

    fitted = fit_hierarchy(read_latent(autoencoder), settings, seed=seed, tree=tree)
    save_hierarchy(out, fitted)
    if newick is not None:
        newick.write_text(to_newick(fitted), encoding="utf-8")
    if figure is not None:
        save_figure(draw_hierarchy(view_of(fitted)), figure)
    if table is not None:
        branch_table(fitted).to_csv(table, index=False, float_format="%.6g")
    if page is not None:
        page.write_text(tree_page(fitted), encoding="utf-8")
    return Summary(summary_of_tree(fitted), then=("bdm", "train", autoencoder, out, "model/"))


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


def train(
    autoencoder: AutoencoderFolder,
    hierarchy: Annotated[Path, "File made by bdm hierarchy (.json)."],
    out: OutModel,
    *,
    settings: TrainSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Fit the prior of latents along the hierarchy, and write the model.

    Example: bdm train autoencoder/ hierarchy.json model/
    """
    from bdm.hierarchy.files import load_hierarchy
    from bdm.model.fit_model import EncodedCells, fit_model
    from bdm.model.model import warn_of_rare_types

    encoded, tree = EncodedCells.load(autoencoder), load_hierarchy(hierarchy)
    model, history = fit_model(encoded, tree, settings, seed=seed, device=device)
    warn_of_rare_types(model, model.cell_types)
    write_model(out, model, history)
    facts = {"prior": model.prior.description}
    if "training" in history:
        facts["training"] = f"{history['training']['step'].iloc[-1]} of at most {settings.n_steps} steps"
    return Summary(facts, then=generating(out))


def extend(
    model: ModelFolder,
    cells: Annotated[Path, "Cells with the new types, with raw counts."],
    out: OutModel,
    *,
    cell_type: NewTypes = (),
    keys: InputKeys,
    missing_as_zero: MissingAsZero = False,
    known: Annotated[Path | None, "Cells that the model was fitted on, made by bdm prepare."] = None,
    joined: Annotated[
        Path | None, Output, "File of prepared cells to write: the known ones, if given, and the new."
    ] = None,
    report: Annotated[
        Path | None, Output, Holding("extension_report.json"), "Folder of tables and figures to write."
    ] = None,
    seed: Seed = 0,
) -> Summary:
    """Add cell types to a model.

    The model generates the same cells of all other types as before.

    Example: bdm extend model/ new.h5ad extended/ --cell-type "CD56+ NK"
    """
    from bdm._core.files import sha256
    from bdm._core.store import checksum_of
    from bdm.applications.extension.extend import ExtensionReport, describe, extend
    from bdm.applications.extension.new_cells import join_known_cells, select_new_cells
    from bdm.data.matrix import write_h5ad
    from bdm.data.prepare import read_prepared
    from bdm.model.match import cells_for
    from bdm.model.model import load_model
    from bdm.pl import write_result
    from bdm.report.card import save_with_card

    loaded = load_model(model)
    adata = cells_for(cells, loaded, keys, on_disk=False)
    new = select_new_cells(adata, loaded, cell_types=cell_type, keys=keys, missing_as_zero=missing_as_zero, seed=seed)
    prepared = join_known_cells(new, loaded, known and read_prepared(known))
    steps = extend(
        loaded,
        new,
        seed=seed,
        ancestor_sha256=checksum_of(model, "model"),
        cells_name=cells.name,
        cells_sha256=sha256(cells),
        options={**asdict(keys), "missing_as_zero": missing_as_zero},
    )
    save_with_card(out, steps[-1].model)
    if joined is not None:
        write_h5ad(joined, prepared)
    extension = ExtensionReport.from_extensions(steps)
    if report is not None:
        write_result(report, extension)
    types = "\n".join(map(describe, extension.extensions.to_dict("records")))
    return Summary({"types": types}, then=generating(out))


# ---- results


def write_model(folder: Path, model: "BranchedModel", history: "Mapping[str, pd.DataFrame]") -> None:
    """Write a fitted model, its card, and the history of its prior."""
    from bdm.report.card import save_with_card

    save_with_card(folder, model)
    for name, table in history.items():
        if name != "autoencoder":
            table.to_csv(folder / f"{name}.csv", index=False)


def generating(model: Path) -> tuple[Path | str, ...]:
    """Return the words of a command that generates cells of a model."""
    return "bdm", "generate", model, "generated.h5ad", "--cells", "100"


def best_step(losses: "pd.DataFrame") -> str:
    """Describe which step of the last round was kept."""
    losses = losses[losses["round"] == losses["round"].iloc[-1]]
    last = int(losses["step"].iloc[-1])
    if "validation" not in losses:
        return f"all {last} steps"
    best = losses.loc[losses["validation"].idxmin()]
    return f"step {int(best['step'])} of {last} was best, with a loss of {best['validation']:.1f} in validation cells"


def summaries_of_effects(donors: "DonorEffects | None", covariates: "CovariateEffects | None") -> dict[str, str]:
    """Describe the effects of donors and covariates, if any."""
    effects = {"donors": donors, "covariates": covariates}
    return {name: fitted.summary for name, fitted in effects.items() if fitted is not None}


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
