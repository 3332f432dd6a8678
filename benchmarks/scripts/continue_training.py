"""Extend a flat model by another cell type by continuing the training of all parameters."""

from dataclasses import replace

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn

from bdm.arrays import to_tensor
from bdm.autoencoder.cells import batch_codes, type_codes
from bdm.autoencoder.fit_adapters import N_ITERATIONS
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.diffusion.denoiser import BranchedDenoiser
from bdm.diffusion.noise import denoising_losses, sample_noised
from bdm.diffusion.populations import BranchPopulations
from bdm.extension.extend import ExtendSettings
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.latent.cells import LatentCells, encode, latent_cells
from bdm.latent.moments import PopulationMoments, Whitening, population_moments
from bdm.model.model import BranchedModel, composition_of, with_branches, with_more_cells
from bdm.seeds import Minibatches, derive
from bdm.settings import AutoencoderSettings, DenoiserSettings
from bdm.training import Loop, train

WARMUP = 20  # steps, as in an extension


def continue_training_of(
    model: BranchedModel, cells: AnnData, cell_type: str, settings: ExtendSettings, *, seed: int
) -> BranchedModel:
    """Add a cell type to a flat model, and train all of it on, for as many steps as an extension takes.

    The whitened space stays, as the denoiser was trained in it; moments are new of all types that there are cells of.

    Parameters
    ----------
    cells
        Prepared cells to train on: of the new type, and of known ones where these are at hand.
    """
    cells = cells[cells.obs["split"] != "test"].copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.remove_unused_categories()
    new = cells[cells.obs["cell_type"] == cell_type]
    n_cells_learned = int(model.composition.to_numpy().sum()) + new.n_obs
    known = model.autoencoder
    names = {"cell_types": (*known.cell_types, cell_type), "rows": (*known.rows, cell_type)}
    autoencoder = replace(known, network=with_type(known.network), **names)
    train_autoencoder(autoencoder, cells, n_steps=settings.adapter.n_steps, n_cells_learned=n_cells_learned, seed=seed)
    encoded = encode(cells, autoencoder)
    encoded.obs["sub_population"] = encoded.obs["sub_population"].cat.remove_unused_categories()
    latent = latent_cells(encoded)
    moments = model.moments.joined(population_moments(latent, model.whitening))
    hierarchy = with_leaf(model.hierarchy, cell_type, n_cells=new.n_obs)
    denoiser = with_leaf_branch(model.denoiser, moments, hierarchy)
    train_denoiser(denoiser, latent, model.whitening, hierarchy, n_steps=settings.branch.n_steps, seed=seed)
    library_sizes = torch.cat([model.library_sizes, latent.library_size_range])
    return replace(
        model,
        autoencoder=autoencoder,
        moments=moments,
        hierarchy=hierarchy,
        denoiser=denoiser.eval().requires_grad_(False),
        composition=with_more_cells(model.composition, composition_of(new.obs)),
        library_sizes=torch.stack([library_sizes.min(), library_sizes.max()]),
    )


@torch.no_grad()
def with_type(known: CountAutoencoder) -> CountAutoencoder:
    """Add a type to an autoencoder, which starts as the mean of those known."""
    network = CountAutoencoder(replace(known.shape, n_types=known.shape.n_types + 1))
    added = {
        "type_dispersion": known.type_dispersion.mean(dim=0),
        "prior_sum": known.prior_mean.mean(dim=0),
        "prior_weight": torch.ones(()),
    }
    state = known.state_dict()
    network.load_state_dict(state | {name: torch.cat([state[name], row[None]]) for name, row in added.items()})
    return network


def train_autoencoder(
    autoencoder: GeneAutoencoder, cells: AnnData, *, n_steps: int, n_cells_learned: int, seed: int
) -> None:
    """Train an autoencoder on, by the loss that it was trained by.

    Parameters
    ----------
    n_cells_learned
        Cells that it has been trained on, these included, against which the prior of its parameters weighs little.
    """
    settings, network = AutoencoderSettings(), autoencoder.network
    types, codes = type_codes(cells, autoencoder.rows), batch_codes(cells, autoencoder.batches)
    training = np.flatnonzero(cells.obs["split"] == "train")

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        drawn = training[torch.randint(len(training), (settings.batch_size,), generator=generator).numpy()]
        noise = torch.randn(len(drawn), network.shape.n_latent, generator=generator)
        counts = to_tensor(cells.X[drawn].toarray())
        bound, latent = network(counts, types[drawn], codes[drawn], noise, n_iterations=N_ITERATIONS)
        network.update_prior_means(types[drawn], latent)
        return bound.mean() + network.penalty(loading_scale=settings.loading_scale) / n_cells_learned

    loop = Loop(n_steps, settings.learning_rate, derive(seed, "autoencoder, further"), device="cpu", n_warmup=WARMUP)
    train(network, loss, loop)
    network.eval().requires_grad_(False)


def with_leaf(hierarchy: Hierarchy, cell_type: str, *, n_cells: int) -> Hierarchy:
    """Add a branch of its own to a flat hierarchy."""
    return replace(hierarchy, branches=(*hierarchy.branches, Branch(cell_type, hierarchy.root.name, 0.0, n_cells)))


def with_leaf_branch(known: BranchedDenoiser, moments: PopulationMoments, hierarchy: Hierarchy) -> BranchedDenoiser:
    """Add a branch to a flat denoiser, with the embedding of the nearest type, and give all their present moments."""
    nearest = int((moments.mean[:-1] - moments.mean[-1]).norm(dim=1).argmin())
    embedding = known.branch.weight[1 + nearest].detach()  # the root is first
    denoiser = with_branches(known, BranchPopulations.unset(1, known.shape.n_input), embedding[None])
    denoiser.set_populations(BranchPopulations.of(moments, hierarchy))
    return denoiser.requires_grad_(True)


def train_denoiser(
    denoiser: BranchedDenoiser,
    cells: LatentCells,
    whitening: Whitening,
    hierarchy: Hierarchy,
    *,
    n_steps: int,
    seed: int,
) -> None:
    """Train a flat denoiser on, by the loss that it was trained by."""
    settings, minibatches = DenoiserSettings(n_steps=n_steps), Minibatches.of(cells.population)
    branch = torch.tensor([[branch.name for branch in hierarchy.branches].index(name) for name in cells.populations])

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        index = minibatches.draw(settings.batch_size, generator)
        x = whitening(cells.sample(index, generator))
        noised, sigma = sample_noised(x, settings, hierarchy.sigma_max, generator)
        return denoising_losses(network(noised, sigma, branch[cells.population[index]]), x, sigma).mean()

    loop = Loop(n_steps, settings.learning_rate, derive(seed, "denoiser, further"), device="cpu")
    train(denoiser, loss, loop)
