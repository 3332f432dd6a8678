"""``bdm fit``: fit a model to raw counts, in all stages."""

from pathlib import Path
from typing import Annotated

from bdm._core.errors import counted, error_prefix
from bdm.commands.base import Device, Labels, OutModel, Summary, Tree
from bdm.commands.train import generating, write_model
from bdm.settings import Seed, Settings


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
    from bdm.data.prepare import is_prepared, preparation
    from bdm.data.read import read_cells

    cells = read_cells(data, labels=labels, on_disk=True, **settings.prepare.reading)
    with error_prefix(data):
        diffusion = BranchedDiffusion(cells, settings=settings, seed=seed, device=device, tree=tree)
    prepared = diffusion.prepared
    assert prepared is not None
    recorded = preparation(cells)["data_sha256"] if is_prepared(cells) else None
    prepared.uns["bdm"]["data_sha256"] = recorded or sha256(data)
    model = diffusion.fit().model
    write_model(out, model, diffusion.history)
    facts = {
        "cells": f"{prepared.n_obs:,} x {features_in_words(prepared.var)}, of {counted(len(model.cell_types), 'type')}",
        "prior": model.prior.description,
        **model.learned,
    }
    return Summary(facts, then=generating(out))
