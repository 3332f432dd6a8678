"""``bdm fit``: fit a model to raw counts, in all stages."""

from pathlib import Path
from typing import Annotated

from bdm._core.errors import at, counted
from bdm.commands.base import Device, OutFolder, Summary, generating
from bdm.settings import Labels, Seed, Settings, Tree


def fit(
    data: Annotated[Path, "Cells, in any format that prepare reads."],
    out: OutFolder,
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
    from bdm._core.files import atomic_write, sha256
    from bdm.api import BranchedDiffusion
    from bdm.commands.train import write_tables
    from bdm.data.modalities import features_in_words
    from bdm.data.prepare import origin
    from bdm.data.read import read_cells
    from bdm.report.card import save_with_card

    with atomic_write(out, folder_of="model.json") as folder:
        read = read_cells(data, labels=labels, on_disk=True, **settings.prepare.reading)
        with at(data):
            model = BranchedDiffusion(read, settings=settings, seed=seed, device=device, tree=tree)
        prepared = model.prepared
        assert prepared is not None
        prepared.uns["bdm"]["data_sha256"] = origin(read) or sha256(data)
        save_with_card(folder, model.fit().model)
        write_tables(folder, model.history)
    features = features_in_words(prepared.var)
    cells = f"{prepared.n_obs:,} x {features}, of {counted(len(model.hierarchy.cell_types), 'type')}"
    found = {"cells": cells, "prior": model.model.prior.description}
    if (donors := model.model.donor_effects) is not None:
        found["donors"] = donors.summary
    if (covariates := model.model.covariates) is not None:
        found["covariates"] = covariates.summary
    return Summary((out,), found, then=generating(out))
