"""``bdm fit``: fit a model to raw counts, all stages in one go."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from bdm.commands.base import Summary, generating, print_plan
from bdm.commands.options import CheckpointEvery, Device, DryRun, OutFolder
from bdm.errors import at, counted
from bdm.settings import Labels, Seed, Settings, Tree


def fit(
    data: Annotated[Path, "Cells, in any format that prepare reads."],
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
    from anndata import AnnData

    from bdm._core.checkpoint import checkpoint_beside
    from bdm._core.files import atomic_write
    from bdm.api import BranchedDiffusion
    from bdm.commands.train import steps_of_prior, write_tables
    from bdm.data.read import read_cells
    from bdm.donors.effects import summary_of
    from bdm.model.card import save_with_card
    from bdm.model.fit import Checkpoints

    with ExitStack() as files:
        if not dry_run:
            facts = deciding(data, labels, tree, settings, seed=seed)
            of_parts = {
                part: files.enter_context(checkpoint_beside(out, part=part, seconds=checkpoint_every, **facts))
                for part in ("autoencoder", "prior")
            }
            folder = files.enter_context(atomic_write(out, folder_of="model.json"))
        read = read_cells(data, labels=labels, on_disk=True)
        with at(data):
            model = BranchedDiffusion(read, settings=settings, seed=seed, device=device, tree=tree)
        prepared: AnnData = model.prepared
        if dry_run:
            n_steps = {"the autoencoder": settings.autoencoder.n_steps, **steps_of_prior(settings.prior)}
            print_plan(out, prepared.obs, prepared.n_vars, n_steps)
            return None
        prepared.uns["bdm"]["data_sha256"] = facts["files"][str(data)]
        save_with_card(folder, model.fit(checkpoints=Checkpoints(**of_parts)).model)
        write_tables(folder, model.history)
    cells = f"{prepared.n_obs:,} x {prepared.n_vars:,} genes, of {counted(len(model.hierarchy.cell_types), 'type')}"
    found = {"cells": cells, "prior": model.model.prior.description}
    if (donors := model.model.donor_effects) is not None:
        found["donors"] = summary_of(donors)
    return Summary((out,), found, then=generating(out))


def deciding(data: Path, labels: Path | None, tree: Path | None, settings: Settings, *, seed: int) -> dict[str, Any]:
    """Facts that decide how training goes on: settings, and the content of files, also of lists of genes."""
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
