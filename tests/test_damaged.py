"""Damaged files are rejected: no wrong model, no traceback, no crash, no endless wait."""

import os
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from damage import READERS, attempts, run, summary

from bdm._core.checkpoint import Checkpoint, TrainingState
from bdm._core.files import preparation, provenance, storable
from bdm.autoencoder.fit import fit_autoencoder
from bdm.autoencoder.softmax import AdapterSettings
from bdm.autoencoder.storage import save_autoencoder
from bdm.data.prepare import prepared_cells, read_prepared
from bdm.data.read import read_cells
from bdm.errors import InputError
from bdm.extension.extend import ExtendSettings, extend_all
from bdm.extension.new_cells import new_cells
from bdm.generation.chunks import Part
from bdm.generation.generate import generated_cells
from bdm.generation.merge import write_cells
from bdm.generation.request import request_cells
from bdm.hierarchy.build import build_hierarchy
from bdm.hierarchy.files import save_hierarchy
from bdm.latent.cells import encode, latent_cells, read_latent, save_latent
from bdm.model.fit import fit_model
from bdm.model.model import save_model
from bdm.settings import (
    AutoencoderSettings,
    HierarchySettings,
    InputKeys,
    PrepareSettings,
    PriorSettings,
    SamplerSettings,
)

CASES = round(6 * float(os.environ.get("BDM_CASES", "1")))  # of each kind of file; many in processes of their own
OWN = ("prepared.h5ad", "autoencoder", "model", "hierarchy.json", "checkpoint", "parts")

pytestmark = pytest.mark.filterwarnings("ignore")


def write_all(folder: Path, cells: ad.AnnData, *, seed: int) -> None:
    """Write one of each kind of file."""
    folder.mkdir()
    cells = cells.copy()
    cells.write_h5ad(folder / "csr.h5ad")
    cells.write_h5ad(folder / "gzip.h5ad", compression="gzip")
    cells.write_zarr(folder / "cells.zarr")
    for name, counts in {"csc": cells.X.tocsc(), "dense": cells.X.toarray()}.items():
        ad.AnnData(counts, obs=cells.obs, var=cells.var).write_h5ad(folder / f"{name}.h5ad")

    known = cells[cells.obs["cell_type"] != "CD34+"].copy()
    prepared_cells(known, PrepareSettings(genes="all", test=0.0, seed=seed)).write(folder / "prepared.h5ad")
    prepared = read_prepared(folder / "prepared.h5ad")
    record = provenance(seed=seed, settings={}, **preparation(prepared))
    settings = AutoencoderSettings(n_latent=4, n_steps=10)
    autoencoder, _ = fit_autoencoder(prepared, settings, seed=seed, provenance=record)
    latent = encode(prepared, autoencoder)
    save_latent(folder / "autoencoder", latent, of=save_autoencoder(folder / "autoencoder", autoencoder))
    hierarchy = build_hierarchy(latent_cells(latent), HierarchySettings(n_bootstrap=0), seed=seed)
    save_hierarchy(folder / "hierarchy.json", hierarchy)
    quick = PriorSettings(width=8, n_layers=1, n_steps=10)
    model, _ = fit_model(latent, autoencoder, hierarchy, quick, seed=seed, provenance=record)

    (folder / "parts").mkdir()
    for number in (1, 2):
        part, request = Part(number, 2), request_cells(model, 20)
        generated = generated_cells(model, request, SamplerSettings(), seed=seed, part=part)
        write_cells(folder / f"parts/{number}.h5ad", generated, {"bdm": storable({**record, "part": str(part)})})

    settings = ExtendSettings(adapter=AdapterSettings(n_steps=5), branch=PriorSettings(n_steps=5), n_bootstrap=2)
    new = new_cells(cells, model, cell_types=("CD34+",), keys=InputKeys(label_key="cell_type"), seed=seed)
    [grown] = extend_all(model, new, settings, seed=seed, provenance=record)
    save_model(folder / "model", grown.model)
    tensors = {"network": model.autoencoder.network.state_dict(), "averaged": {"mean": model.moments.mean + 1}}
    history = [{"step": 7, "loss": 1.5}]
    progress = TrainingState(7, tensors, best_loss=1.5, loss_sum=2.5, first_loss=3.5, history=history)
    Checkpoint(folder / "checkpoint", "identity").write(progress)


@pytest.fixture(scope="module")
def folder(example_cells, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    cells = example_cells.copy()
    cells.obs = cells.obs[["bulk_labels"]].rename(columns={"bulk_labels": "cell_type"})
    types = ("CD34+", "CD56+ NK", "Dendritic")
    cells = cells[cells.obs["cell_type"].isin(types).to_numpy(), :150]
    cells = cells[np.asarray(cells.X.sum(axis=1)).ravel() > 0]
    for seed, name in enumerate(("whole", "other")):
        write_all(folder / name, cells[seed::2], seed=seed)
    return folder


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_rejected(folder, kind):
    cases = list((attempts if CASES <= 6 else run)(kind, folder, range(CASES)))
    assert not [case for case in cases if case.outcome == "fault"], summary(cases)
    if kind in OWN:
        assert {case.outcome for case in cases if case.outcome != "same"} == {"rejected"}, summary(cases)


def test_latents_of_another_autoencoder_are_rejected(folder, tmp_path):
    autoencoder = shutil.copytree(folder / "whole/autoencoder", tmp_path / "autoencoder")
    read_latent(autoencoder)
    shutil.copy(folder / "other/autoencoder/latent.h5ad", autoencoder)
    with pytest.raises(InputError, match="is of another autoencoder than the folder's"):
        read_latent(autoencoder)


@pytest.mark.parametrize("part", ["data", "indices"])
def test_missing_piece_of_zarr_is_no_zeros(folder, tmp_path, part):
    cells = shutil.copytree(folder / "whole/cells.zarr", tmp_path / "cells.zarr")
    pieces = [
        file for file in (cells / "X" / part).rglob("*") if file.is_file() and not file.name.startswith((".", "z"))
    ]
    assert pieces
    pieces[0].unlink()
    with pytest.raises(InputError, match=rf"cells\.zarr cannot be read \(1 files of X/{part} are missing\)"):
        read_cells(cells, on_disk=True)
