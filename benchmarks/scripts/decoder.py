"""What a decoder that is not linear would gain: the evidence lower bound of held-out cells under three decoders."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import typer
from torch import Tensor, nn

from bdm.arrays import to_tensor
from bdm.autoencoder.cells import batch_codes
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.posterior import Posterior
from bdm.autoencoder.storage import GeneAutoencoder, load_autoencoder
from bdm.data.prepare import read_prepared
from bdm.latent.cells import cells_by_network, populations_of_cells
from bdm.seeds import torch_generator

BATCH = 256
N_STEPS, EVERY, PATIENCE = 1000, 100, 5  # of decoders; validation cells are scored every so many steps
N_STEPS_POSTERIOR, N_SAMPLES = 150, 16  # for posteriors of held-out cells, and to score them
LEARNING_RATE, POSTERIOR_RATE = 1e-3, 1e-2
WIDTH = 128


@dataclass(frozen=True)
class TypedCounts:
    """Counts of cells (cells x genes, a sparse matrix), with the index of the type and the batch of each."""

    counts: sp.csr_matrix
    cell_type: Tensor
    batch: Tensor

    def dense(self, rows: Tensor) -> Tensor:
        """Return the counts of some cells."""
        return to_tensor(self.counts[rows.numpy()].toarray())


class Decoder(nn.Module):
    """Log expression by the decoder of an autoencoder, plus a network of one hidden layer where there is one."""

    def __init__(self, network: CountAutoencoder, *, width: int = 0) -> None:
        super().__init__()
        self.network = deepcopy(network).requires_grad_(True)
        self.prior_mean = nn.Parameter(network.prior_mean.clone())
        shape = network.shape
        self.residual = None
        if width:
            last = nn.Linear(width, shape.n_genes)
            nn.init.zeros_(last.weight)  # starts as the linear decoder
            nn.init.zeros_(last.bias)
            self.residual = nn.Sequential(nn.Linear(shape.n_latent, width), nn.SiLU(), last)

    def log_expression(self, latent: Tensor, batch: Tensor) -> Tensor:
        """Log expression of cells, normalised over genes, cells x genes."""
        logits = self.network.loadings(latent) + self.network.batch_offset[batch]
        return torch.log_softmax(logits if self.residual is None else logits + self.residual(latent), dim=1)

    def bound(self, cells: TypedCounts, rows: Tensor, posteriors: "Posteriors", noise: Tensor) -> Tensor:
        """Evidence lower bound of cells, one sample of the latent each."""
        counts, types = cells.dense(rows), cells.cell_type[rows]
        mean, log_scale = posteriors(rows)
        log_mean = self.log_expression(mean + log_scale.exp() * noise, cells.batch[rows])
        log_mean = log_mean + counts.sum(dim=1, keepdim=True).log()
        likelihood = self.network.observation(types).log_likelihood(counts, log_mean)
        squares = (2 * log_scale).exp() + (mean - self.prior_mean[types]) ** 2
        return likelihood - (squares - 1 - 2 * log_scale).sum(dim=1) / 2

    def penalty(self, *, loading_scale: float) -> Tensor:
        """Negative log prior of the parameters; the hidden layer has the prior of loadings, on a scale of its width."""
        penalty = self.network.penalty(loading_scale=loading_scale)
        if self.residual is None:
            return penalty
        return penalty + (self.residual[-1].weight ** 2).sum() * WIDTH / loading_scale**2 / 2


class Posteriors(nn.Module):
    """Normal posterior of the latent of each cell, without covariances, as free parameters."""

    def __init__(self, start: Posterior) -> None:
        super().__init__()
        self.mean = nn.Embedding.from_pretrained(start.mean.clone(), freeze=False, sparse=True)
        self.log_scale = nn.Embedding.from_pretrained(start.scale.log(), freeze=False, sparse=True)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of cells."""
        return self.mean(rows), self.log_scale(rows)


def cells_of(adata: ad.AnnData, batches: tuple[str, ...], cell_type: Tensor) -> TypedCounts:
    """Give cells their types, by index."""
    return TypedCounts(adata.X, cell_type, batch_codes(adata, batches))


@torch.no_grad()
def laplace(network: CountAutoencoder, cells: TypedCounts) -> Posterior:
    """Posteriors of cells by the autoencoder's own method, to start from."""
    rows = torch.arange(len(cells.cell_type)).split(BATCH)
    return Posterior.joined(network.encode(cells.dense(of), cells.cell_type[of], cells.batch[of]) for of in rows)


def fitted_posteriors(decoder: Decoder, cells: TypedCounts, start: Posterior, *, n_steps: int, seed: int) -> Posteriors:
    """Maximise the bound of cells by their posteriors; the decoder stays as it is."""
    posteriors, generator = Posteriors(start), torch_generator(seed, "posteriors")
    optimiser = torch.optim.SparseAdam(posteriors.parameters(), lr=POSTERIOR_RATE)
    decoder.requires_grad_(False)
    for rows in torch.arange(len(cells.cell_type)).split(BATCH):
        for _ in range(n_steps):
            optimiser.zero_grad()
            noise = torch.randn(len(rows), start.mean.shape[1], generator=generator)
            (-decoder.bound(cells, rows, posteriors, noise).sum()).backward()
            optimiser.step()
    decoder.requires_grad_(True)
    return posteriors


@torch.no_grad()
def bounds(decoder: Decoder, cells: TypedCounts, posteriors: Posteriors, *, seed: int) -> np.ndarray:
    """Mean bound of each cell over several samples of the latent."""
    generator, found = torch_generator(seed, "bounds"), []
    for rows in torch.arange(len(cells.cell_type)).split(BATCH):
        noise = torch.randn(N_SAMPLES, len(rows), posteriors.mean.embedding_dim, generator=generator)
        found.append(torch.stack([decoder.bound(cells, rows, posteriors, of) for of in noise]).mean(dim=0))
    return torch.cat(found).numpy()


def held_out_bounds(decoder: Decoder, network: CountAutoencoder, cells: TypedCounts, *, seed: int) -> np.ndarray:
    """Bound of each held-out cell, with posteriors that are fitted to this decoder."""
    start = laplace(network, cells)
    posteriors = fitted_posteriors(decoder, cells, start, n_steps=N_STEPS_POSTERIOR, seed=seed)
    return bounds(decoder, cells, posteriors, seed=seed)


def fit(
    network: CountAutoencoder,
    train: TypedCounts,
    validation: TypedCounts,
    *,
    width: int,
    loading_scale: float,
    seed: int,
) -> Decoder:
    """Train a decoder and the posteriors of the training cells together, up to the step best for validation cells."""
    torch.manual_seed(seed)
    decoder, posteriors = Decoder(network, width=width), Posteriors(laplace(network, train))
    start, generator = laplace(network, validation), torch_generator(seed, "decoder")
    optimisers = (
        torch.optim.Adam(decoder.parameters(), lr=LEARNING_RATE),
        torch.optim.SparseAdam(posteriors.parameters(), lr=POSTERIOR_RATE),
    )
    n_cells = len(train.cell_type)
    best, best_step, kept = -np.inf, 0, deepcopy(decoder.state_dict())
    for step in range(N_STEPS + 1):
        if step % EVERY == 0:
            found = fitted_posteriors(decoder, validation, start, n_steps=N_STEPS_POSTERIOR // 3, seed=seed)
            score = float(bounds(decoder, validation, found, seed=seed).mean())
            print(f"width {width}, step {step}: validation bound {score:.2f}", flush=True)
            if score > best:
                best, best_step, kept = score, step, deepcopy(decoder.state_dict())
            if step - best_step >= PATIENCE * EVERY:
                break
        rows = torch.randint(n_cells, (BATCH,), generator=generator)
        noise = torch.randn(BATCH, network.shape.n_latent, generator=generator)
        loss = -decoder.bound(train, rows, posteriors, noise).mean()
        loss = loss + decoder.penalty(loading_scale=loading_scale) / n_cells
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
    decoder.load_state_dict(kept)
    print(f"width {width}: best at step {best_step}, validation bound {best:.2f}")
    return decoder


def type_specific_bounds(
    autoencoder: GeneAutoencoder, cells: ad.AnnData, population: np.ndarray, *, seed: int
) -> np.ndarray:
    """Bound of each held-out cell under the decoder of its population."""
    found = np.empty(cells.n_obs)
    for rows in cells_by_network(population, autoencoder):
        network = autoencoder.network_of(population[rows[0]])
        of_network = cells_of(cells[rows], autoencoder.batches, autoencoder.type_codes(population[rows]))
        found[rows] = held_out_bounds(Decoder(network), network, of_network, seed=seed)
    return found


def main(prepared: Path, autoencoder: Path, out: Path, *, seed: int = 0) -> None:
    """Write the bound of test cells under the decoders of bdm, and under linear and other decoders trained further."""
    fitted, cells = load_autoencoder(autoencoder), read_prepared(prepared).to_memory()
    network, split = fitted.network, cells.obs["split"].to_numpy()
    population = populations_of_cells(cells, fitted)
    codes = torch.tensor([fitted.rows.index(name) for name in population])
    chosen = {name: split == name for name in ("train", "validation", "test")}
    parts = {name: cells_of(cells[of], fitted.batches, codes[torch.from_numpy(of)]) for name, of in chosen.items()}
    of_test = chosen["test"]
    found = {
        "shared": held_out_bounds(Decoder(network), network, parts["test"], seed=seed),
        "type-specific": type_specific_bounds(fitted, cells[of_test], population[of_test], seed=seed),
    }
    loading_scale = fitted.provenance["settings"]["loading_scale"]
    for name, width in {"linear, trained further": 0, "not linear": WIDTH}.items():
        decoder = fit(network, parts["train"], parts["validation"], width=width, loading_scale=loading_scale, seed=seed)
        found[name] = held_out_bounds(decoder, network, parts["test"], seed=seed)
    base = found["shared"]
    rows = [
        {
            "decoder": name,
            "n_cells": len(base),
            "bound": bound.mean(),
            "gain": (bound - base).mean(),
            "error": (bound - base).std(ddof=1) / np.sqrt(len(base)),
        }
        for name, bound in found.items()
    ]
    table = pd.DataFrame(rows)
    table.to_csv(out, index=False, float_format="%.6g")
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
