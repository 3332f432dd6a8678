"""Training that goes wrong stops, and reports why and where."""

import copy
import re
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn

from bdm._core.errors import TrainingError
from bdm._core.training import TrainingPlan, train
from bdm.api import BranchedDiffusion
from bdm.autoencoder.latent import encode, latent_cells
from bdm.data.prepare import prepare
from bdm.model.fit_model import check_collapse
from bdm.settings import AutoencoderSettings, PrepareSettings, TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore")

PLAN = TrainingPlan(n_steps=60, learning_rate=0.05, seed=3, device="cpu", n_warmup=5, validate_every=10)


# ---- the loop


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
    x = torch.randn(16, 4, generator=generator)
    return ((network(x) - x.sum(dim=1, keepdim=True)) ** 2).mean() + 1


def going_wrong_at(n_steps: int, harm: float):
    """Loss that is multiplied after so many steps."""
    taken = []

    def of(network: nn.Module, generator: torch.Generator) -> Tensor:
        taken.append(1)
        return loss(network, generator) * (harm if len(taken) > n_steps else 1)

    return of


@pytest.mark.parametrize(("harm", "reason"), [(np.nan, "became nan"), (1e4, "before training, was"), (np.inf, "inf")])
def test_loss_that_goes_wrong_stops(harm, reason):
    with pytest.raises(TrainingError, match=reason):
        train(network(), going_wrong_at(37, harm), PLAN)


def test_type_is_reported():
    def by_group(network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        return {"one": 3.0, "other": torch.nan, "third": 9.0}

    with pytest.raises(TrainingError, match=r"at step 38: .* most of all for cells of 'other'"):
        train(network(), going_wrong_at(37, np.nan), PLAN, by_group=by_group)


# ---- settings that are too much


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"autoencoder": AutoencoderSettings(n_latent=6, n_steps=100, learning_rate=1e3)}, "the autoencoder"),
        (
            {"train": TrainSettings(prior="diffusion", width=32, n_steps=200, learning_rate=30.0)},
            "the network of the prior",
        ),
    ],
)
def test_too_high_learning_rate(example_cells, tiny_settings, changes, what):
    settings = replace(tiny_settings, **changes)
    model = BranchedDiffusion(example_cells, label_key="bulk_labels", settings=settings)
    with pytest.raises(TrainingError, match=rf"Training of {what} diverged at step \d+: .* cells of '.*'"):
        model.fit()


# ---- cells that are odd


def identical_type(counts: np.ndarray, cell_type: np.ndarray) -> None:
    counts[cell_type == "CD56+ NK"] = counts[np.argmax(cell_type == "CD56+ NK")]


def enormous_cell(counts: np.ndarray, cell_type: np.ndarray) -> None:
    counts[5] = np.ceil(counts[5] * (1e7 / counts[5].sum()))


def gene_with_all_counts(counts: np.ndarray, cell_type: np.ndarray) -> None:
    counts[:, 7] = counts.sum(axis=1) * 1000 + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "odd",
    [identical_type, *(pytest.param(odd, marks=pytest.mark.nightly) for odd in (enormous_cell, gene_with_all_counts))],
)
def test_odd_cells_are_no_reason_to_stop(example_cells, small_settings, odd):
    counts = example_cells.X.toarray()
    odd(counts, example_cells.obs["bulk_labels"].to_numpy())
    cells = ad.AnnData(sparse.csr_matrix(counts), obs=example_cells.obs, var=example_cells.var)
    model = BranchedDiffusion(cells, label_key="bulk_labels", settings=small_settings).fit()
    generated = model.generate(20)
    assert np.isfinite(generated.X.data).all()
    assert (generated.X.sum(axis=1) > 0).all()


# ---- types that collapse


@pytest.fixture(scope="module")
def learned(small_model, example_cells):
    settings = PrepareSettings(label_key="bulk_labels", genes="all", test=0.0)
    prepared = prepare(example_cells, settings)[:, small_model.model.autoencoder.genes.index].copy()
    return latent_cells(encode(prepared, small_model.model.autoencoder))


@pytest.mark.parametrize(
    ("part", "value", "expected"), [("variance", 0.0, "the spread"), ("mean", 50.0, "radius away")]
)
def test_collapsed_population_is_named(small_model, learned, part, value, expected):
    model = small_model.model
    population = model.hierarchy.populations_of("CD19+ B")[0]
    broken = copy.deepcopy(model.prior)
    getattr(broken.populations, part)[model.hierarchy.rows[population]] = value
    check_collapse(model.sampler(), learned, model.whitening, seed=0)
    with pytest.raises(TrainingError, match=rf"cells of {re.escape(repr(population))} .* {expected}"):
        check_collapse(broken.sampler(), learned, model.whitening, seed=0)
