"""``bdm fit``: fit a model to raw counts, all stages in one go."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bdm.commands.base import Summary, generating, print_plan
from bdm.commands.options import CheckpointEvery, Device, DryRun, OutFolder
from bdm.settings import Labels, Seed, Settings, Tree

if TYPE_CHECKING:
    from bdm.api import BranchedDiffusion


def fit(
    data: Annotated[Path, typer.Argument(help="Cells, in any format that prepare reads.", show_default=False)],
    out: OutFolder,
    *,
    labels: Labels = None,
    tree: Tree = None,
    settings: Settings,
    device: Device = "auto",
    checkpoint_every: CheckpointEvery = 30,
    seed: Seed = 0,
    dry_run: DryRun = False,
) -> Summary | None:
    """Fit a model to all given cells: prepare, autoencoder, hierarchy and train in one go.

    Example: bdm fit cells.h5ad model/ --label-key cell_type
    """
    from contextlib import ExitStack

    from anndata import AnnData

    from bdm._core.checkpoint import checkpoint_beside
    from bdm._core.files import atomic_write
    from bdm.commands.train import steps_of_prior, write_tables
    from bdm.donors.effects import summary_of
    from bdm.errors import counted
    from bdm.model.card import save_with_card
    from bdm.model.fit import Checkpoints

    how: dict[str, Any] = {"settings": settings, "seed": seed, "device": device, "tree": tree}
    prepared: AnnData
    if dry_run:
        model = model_of_cells(data, labels, **how)
        prepared = model.prepared
        n_steps = {"the autoencoder": settings.autoencoder.n_steps, **steps_of_prior(settings.prior)}
        print_plan(out, prepared.obs, prepared.n_vars, n_steps)
        return None
    with ExitStack() as files:
        facts = deciding(data, labels, tree, settings, seed=seed)
        checkpoints = Checkpoints(
            **{
                part: files.enter_context(checkpoint_beside(out, part=part, seconds=checkpoint_every, **facts))
                for part in ("autoencoder", "prior")
            }
        )
        folder = files.enter_context(atomic_write(out, folder_of="model.json"))
        model = model_of_cells(data, labels, **how)
        prepared = model.prepared
        prepared.uns["bdm"]["data_sha256"] = facts["files"][str(data)]
        save_with_card(folder, model.fit(checkpoints=checkpoints).model)
        write_tables(folder, model.history)
    cells = f"{prepared.n_obs:,} x {prepared.n_vars:,} genes, of {counted(len(model.hierarchy.cell_types), 'type')}"
    found = {"cells": cells, "prior": model.model.prior.description}
    if (donors := model.model.donor_effects) is not None:
        found["donors"] = summary_of(donors)
    return Summary((out,), found, then=generating(out))


def deciding(data: Path, labels: Path | None, tree: Path | None, settings: Settings, *, seed: int) -> dict[str, Any]:
    """Facts that decide how training goes on: settings, and the content of files, also of lists of genes."""
    from dataclasses import asdict

    from bdm._core.files import sha256
    from bdm.data.genes import gene_lists
    from bdm.validation import CELL_ONTOLOGY

    files = [path for path in (data, labels, tree) if path is not None and str(path) != CELL_ONTOLOGY]
    return {
        "settings": asdict(settings),
        "files": {str(path): sha256(path) for path in files},
        "tree": tree and str(tree),
        "genes": [None if names is None else list(names) for names in gene_lists(settings.prepare)],
        "seed": seed,
    }


def model_of_cells(data: Path, labels: Path | None, **how: Any) -> "BranchedDiffusion":
    """Make a model of the cells in a file, which messages on the cells name."""
    from bdm.api import BranchedDiffusion
    from bdm.data.read import read_cells
    from bdm.errors import at

    cells = read_cells(data, labels=labels, on_disk=True)
    with at(data):
        return BranchedDiffusion(cells, **how)
