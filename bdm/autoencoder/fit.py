import math
from dataclasses import dataclass
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bdm.arrays import to_tensor
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.cells import (
    batch_codes,
    batch_names,
    cell_blocks,
    evidence_lower_bounds,
    mean_bound_by_type,
    sample_cells,
    sample_rows,
    type_codes,
    type_names,
)
from bdm.autoencoder.fit_adapters import N_ITERATIONS, fit_adapters, likelihood
from bdm.autoencoder.network import AutoencoderShape, CountAutoencoder
from bdm.checkpoint import Checkpoint
from bdm.seeds import derive
from bdm.settings import AutoencoderSettings
from bdm.threads import Map, threads, using_threads
from bdm.training import Loop, train

N_TRAINING, N_HELD_OUT = 100_000, 10_000  # cells that are read, where there are more
N_START = 10_000  # cells that the network starts from


@dataclass(frozen=True)
class FittedAutoencoder:
    """A trained autoencoder with the cell types and batches it knows and how training went.

    Attributes
    ----------
    likelihood
        Of validation cells by type, see :func:`bdm.autoencoder.cells.mean_by_type`; of training cells where there
        are none.
    adapters
        Type-specific decoders of the types that have one.
    """

    network: CountAutoencoder
    cell_types: tuple[str, ...]
    batches: tuple[str, ...]
    history: pd.DataFrame
    likelihood: pd.DataFrame
    adapters: Adapters


@using_threads()
def fit_autoencoder(
    adata: ad.AnnData,
    settings: AutoencoderSettings,
    *,
    seed: int,
    device: str = "auto",
    checkpoint: Checkpoint | None = None,
) -> FittedAutoencoder:
    """Train the autoencoder on the training cells, stopped where validation cells are most likely.

    Every step encodes cells by their posterior under the present parameters, and improves the parameters for them:
    expectation maximisation in minibatches. Then each type gets a type-specific decoder if its validation cells gain.

    No more than 100,000 training and 10,000 validation cells are read, drawn from larger data: by as many draws as
    training makes, a fit of this few parameters learns no less from them.

    Parameters
    ----------
    adata
        Prepared counts: ``X`` cells x genes in CSR, in memory or on disk, ``obs['split']``, ``obs['cell_type']``, and
        ``obs['batch']`` if batches enter.
    checkpoint
        Where training goes on from, if it was interrupted.
    """
    cell_types, batches = type_names(adata), batch_names(adata)
    training = sample_cells(adata, "train", n_cells=N_TRAINING, seed=seed)
    held_out = sample_cells(adata, "validation", n_cells=N_HELD_OUT, seed=seed)
    types, codes = type_codes(training, cell_types), batch_codes(training, batches)
    shape = AutoencoderShape(adata.n_vars, len(cell_types), settings.n_latent, len(batches))
    start = sample_rows(training.obs["cell_type"], np.arange(training.n_obs), "start", n_cells=N_START, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "autoencoder"))
        network = CountAutoencoder(shape)
        network.initialise(to_tensor(training.X[start].toarray()), types[start])

    def minibatch(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, ...]:
        cells = torch.randint(training.n_obs, (settings.batch_size,), generator=generator)
        where = next(network.parameters()).device
        counts = to_tensor(training.X[cells.numpy()].toarray()).to(where)
        noise = torch.randn(len(cells), shape.n_latent, generator=generator).to(where)
        return counts, types[cells].to(where), codes[cells].to(where), noise

    def loss(network: nn.Module, generator: torch.Generator, run: Map) -> Tensor:
        cells = minibatch(network, generator)
        value, latent = network(*cells, n_iterations=N_ITERATIONS, run=run)
        network.update_prior_means(cells[1], latent)
        return value.mean() + network.penalty(loading_scale=settings.loading_scale) / n_training

    def by_type(network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        cells = minibatch(network, generator)
        found = {}
        for code in cells[1].unique():
            chosen = cells[1] == code
            try:
                value, _ = network(*(part[chosen] for part in cells), n_iterations=N_ITERATIONS)
            except torch.linalg.LinAlgError:
                value = torch.tensor(math.nan)
            found[cell_types[code]] = float(value.mean())
        return found

    def validation(network: nn.Module) -> Tensor:
        of_cells = type_codes(held_out, cell_types), batch_codes(held_out, batches)
        return -torch.from_numpy(
            evidence_lower_bounds(network, held_out, *of_cells, seed=derive(seed, "validation"))
        ).mean()

    n_training = int((adata.obs["split"] == "train").sum())
    loop = Loop(
        settings.n_steps,
        settings.learning_rate,
        seed=derive(seed, "autoencoder steps"),
        device=device,
        what="the autoencoder",
        n_warmup=50,
    )
    judge = validation if held_out.n_obs else None
    with threads() as run:
        history = train(network, partial(loss, run=run), loop, by_type=by_type, validation=judge, checkpoint=checkpoint)
    network = network.cpu().eval()
    network.rotate_to_principal_axes(_mean_precision(network, training[start], types[start], codes[start]))
    none = Adapters.of_shared(network, (), ())
    adapters = none if settings.shared_decoder else fit_adapters(network, adata, seed=seed)
    judged = held_out if held_out.n_obs else training[start]
    types = type_codes(judged, cell_types)
    bound = evidence_lower_bounds(network, judged, types, batch_codes(judged, batches), seed=seed)
    for cell_type in adapters:
        rows = np.flatnonzero(types == cell_types.index(cell_type))
        bound[rows] = likelihood(adapters.network(cell_type, network), judged[rows], batches, seed=seed)
    table = mean_bound_by_type(bound, judged, types, cell_types)
    return FittedAutoencoder(network, cell_types, batches, history, table, adapters)


def _mean_precision(network: CountAutoencoder, adata: ad.AnnData, types: Tensor, codes: Tensor) -> Tensor:
    @torch.no_grad()  # holds for the thread that it is said in
    def summed(block: tuple[Tensor, ...]) -> Tensor:
        return network.encode(*block).precision.sum(dim=0)

    with threads() as run:
        return sum(run(summed, cell_blocks(adata, types, codes))) / adata.n_obs
