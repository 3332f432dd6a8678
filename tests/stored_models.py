"""Write small models to a folder in ``data``, with results that later versions must reproduce.

``python tests/stored_models.py model-0.2`` does so for a release with a new format. Models of earlier releases stay as
they are.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from pandas.api.typing import DataFrameGroupBy

from bdm._core.files import write_json
from bdm.api import BranchedDiffusion
from bdm.model.model import save_model
from bdm.prior.diffusion import DiffusionPrior
from bdm.prior.network import BranchNetwork, NetworkShape
from bdm.settings import AutoencoderSettings, HierarchySettings, PrepareSettings, Settings, TrainSettings

MODELS = {"everything": "diffusion", "diffusion": "diffusion", "mixture": "mixture"}  # prior by name of the folder
DATA = Path(__file__).with_name("data")
N_GENES, N_PROTEINS, N_DONORS = 8, 2, 4
KEYS = {
    "batch_key": "batch",
    "donor_key": "donor",
    "covariate_key": "time",
    "spatial_key": "position",
    "section_key": "batch",
}


def with_labels(counts: np.ndarray, cell_type: list[str], *, donor: np.ndarray, time: np.ndarray, position: np.ndarray):
    """Return cells with all columns that the models use."""
    obs = pd.DataFrame({"cell_type": cell_type, "donor": donor, "batch": donor % 2, "time": time})
    obs = obs.astype({"donor": str, "batch": str}).set_axis([f"cell {i}" for i in range(len(obs))])
    n_genes = min(N_GENES, counts.shape[1])
    n_proteins = counts.shape[1] - n_genes
    names = [*(f"gene {i}" for i in range(n_genes)), *(f"protein {i}" for i in range(n_proteins))]
    kinds = ["Gene Expression"] * n_genes + ["Antibody Capture"] * n_proteins
    var = pd.DataFrame({"feature_types": kinds}, index=names)
    return AnnData(counts.astype(np.float32), obs=obs, var=var, obsm={"position": position})


def simulated(types: list[int], *, n_features: int, seed: int = 0) -> AnnData:
    """Simulate cells whose expression depends on type, batch, donor, time and position; type 0 has two states."""
    n_cells = 120 * len(types)
    rng, constant = np.random.default_rng(seed), np.random.default_rng(1)
    of_type, of_donor = (constant.normal(0, sd, (4, n_features)) for sd in (1.0, 0.3))
    cell_type, donor = np.repeat(types, 120), rng.integers(N_DONORS, size=n_cells)
    time, position = rng.uniform(size=n_cells), rng.integers(4, size=(n_cells, 2)).astype(float)
    position[:, 0] = np.floor(6 * rng.beta(1 + cell_type, 4 - cell_type))
    log_mean = of_type[cell_type] + of_donor[donor] + time[:, None] * np.linspace(-1, 1, n_features)
    log_mean[:, 1] += position[:, 1]
    log_mean[:, 2] += donor % 2
    log_mean[(cell_type == 0) & (rng.random(n_cells) < 0.5), :3] += 3
    counts = []
    for features, log_size in ((slice(N_GENES), 6), (slice(N_GENES, None), 4)):
        mean = np.exp(log_mean[:, features])
        size = rng.lognormal(log_size, 0.2, (n_cells, 1))
        counts.append(rng.poisson(size * mean / mean.sum(axis=1, keepdims=True)))
    names = [f"type {i}" for i in cell_type]
    return with_labels(np.hstack(counts), names, donor=donor, time=time, position=position)


def fitted(prior: str, *, everything: bool) -> BranchedDiffusion:
    """Fit a small model; with ``everything``, it has each optional part, and an added type."""
    n_features = N_GENES + N_PROTEINS if everything else N_GENES - 2
    settings = Settings(
        prepare=PrepareSettings(genes="all", test=0.0, min_donors=1),
        autoencoder=AutoencoderSettings(n_latent=2, n_steps=100, sub_populations="auto" if everything else "none"),
        hierarchy=HierarchySettings(n_bootstrap=5),
        train=TrainSettings(prior=prior, width=4, n_layers=1, n_steps=50),
    )
    cells = simulated([0, 1, 2] if everything else [0, 1], n_features=n_features)
    model = BranchedDiffusion(cells, **(KEYS if everything else {}), settings=settings).fit()
    if prior != "mixture":  # a network that has learned little, and would not be used
        fitted_prior = model.model.prior
        shape = NetworkShape(fitted_prior.populations.mean.shape[1], fitted_prior.n_rows, width=4, n_layers=1)
        network, generator = BranchNetwork(shape).eval().requires_grad_(False), torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        used = DiffusionPrior(fitted_prior.hierarchy, fitted_prior.populations, network)
        model.fitted = replace(model.fitted, prior=used)
    return model.extend(simulated([3], n_features=n_features, seed=1)) if everything else model


def results_of(folder: Path) -> dict:
    """Load a model, and compute latents and statistics of new cells, which hardly depend on the seed."""
    model = BranchedDiffusion.load(folder, device="cpu")
    has_parts, n_features, rows = model.donors is not None, len(model.model.autoencoder.genes), np.arange(6)
    counts = np.outer(rows + 1, np.arange(n_features) + 1) * 7 % 11
    types = [model.cell_types[row % len(model.cell_types)] for row in rows]
    cells = with_labels(counts, types, donor=rows, time=rows / 6, position=np.outer(rows, [0.5, 0.5]))
    request = pd.DataFrame({"cell_type": model.cell_types, "n_cells": 1000})
    generated = model.generate(request.assign(batch="1", time=0.8) if has_parts else request)
    by_type = log_counts(generated, generated.obs["cell_type"])
    results = {
        "levels": [branch.level for branch in model.hierarchy.branches],
        "latents": model.get_latent_representation(cells),
        "means": by_type.mean(),
        "deviations": by_type.std(),
    }
    if has_parts:
        experiment = model.simulate({"samples": {"donors": 200, "cells": {"type 1": 20}}})
        located = model.generate(new_locations=2000)
        quadrant = (located.obsm["position"] > [2.5, 1.5]) @ [1, 2]
        results["donors"] = log_counts(experiment, experiment.obs["donor"]).mean().std()
        results["positions"] = log_counts(located, quadrant).mean()
    names = {"branches": [branch.name for branch in model.hierarchy.branches]}
    return names | {name: np.asarray(values).round(4).tolist() for name, values in results.items()}


def log_counts(cells: AnnData, groups: Sequence) -> DataFrameGroupBy:
    """Log counts by group of cells."""
    return pd.DataFrame(np.log1p(cells.X.toarray())).groupby(np.asarray(groups))


if __name__ == "__main__":
    for name, prior in MODELS.items():
        folder = DATA / sys.argv[1] / name
        save_model(folder, fitted(prior, everything=name == "everything").model)
        write_json(folder / "expected.json", results_of(folder))
