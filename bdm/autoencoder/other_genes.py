"""Decoder of the genes that are not highly variable: a regression of each gene on the latents of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import anndata as ad
import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import one_hot

from bdm._core.parallel import threads
from bdm._core.seeds import to_tensor
from bdm._core.store import concat
from bdm.autoencoder.adapters import CELLS_PER_POPULATION, Adapters
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.decoder import BATCH_OFFSET_SCALE, MIN_SIZE, AutoencoderShape, Decoder
from bdm.autoencoder.latent import (
    SampledCells,
    populations_of_cells,
    sample_cells_with_latents,
    trained_populations,
)
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.softmax import MAX_LOG_STEP, Parameters, noise_step
from bdm.data.modalities import encoded_features

N_CELLS = 10_000  # cells to fit to, at most
N_STEPS = 8  # Newton steps
N_GENES = 512  # genes that are improved together
LOADING_SCALE, MIN_LOADING_SCALE = 0.1, 0.003  # prior standard deviation of a loading: at the start, and at least
POPULATION_SCALE, MIN_POPULATION_SCALE = 0.3, 0.02  # the same for log expression in a population
NOISE_SCALE = 2.0  # prior standard deviation of a parameter of the noise
MAX_CHANGE = 1.0  # of log expression by a Newton step, in the cell that changes most


def add_other_genes(autoencoder: GeneAutoencoder, cells: ad.AnnData, *, seed: int) -> GeneAutoencoder:
    """Decode the genes that are not highly variable, too, if there are any.

    Given its latent, the counts of a cell are independent, so that each gene is a regression of its own. The latents
    are samples from their posteriors given the highly variable genes. Populations share the loadings; those with a
    decoder of their own also have a log expression of their own. ``cells`` have the counts of all features, and
    ``obs["sub_population"]``.
    """
    network = autoencoder.network
    sizes = {name: getattr(network.shape, name) for name in ("n_types", "n_latent", "n_batches", "likelihood")}
    shape = AutoencoderShape.from_genes(autoencoder.genes, **sizes)
    if not shape.encoded:
        return autoencoder
    sampled = sample_other_counts(autoencoder, cells, autoencoder.populations, seed=seed)
    others = fit_decoder([*sampled.values()], network.decoder)
    larger = CountAutoencoder.from_decoder(network.decoder.with_other_genes(shape, others), network.prior_mean)
    adapters = adapters_with_other_genes(autoencoder.adapters, larger.decoder, sampled)
    return replace(autoencoder, network=larger, adapters=adapters)


def add_other_genes_of_type(
    adapters: Adapters, autoencoder: GeneAutoencoder, encoder: GeneAutoencoder, cells: ad.AnnData, *, seed: int
) -> Adapters:
    """Add other genes to the decoders of an added cell type, if the ``autoencoder`` has such genes.

    ``encoder`` encodes the type by the highly variable genes. ``cells`` are prepared cells of the type.
    """
    if not autoencoder.network.shape.encoded:
        return adapters
    encoded = cells[:, encoded_features(cells.var)]
    obs = cells.obs.assign(sub_population=populations_of_cells(encoded, encoder))
    sampled = sample_other_counts(encoder, ad.AnnData(cells.X, obs, cells.var), encoder.populations, seed=seed)
    return adapters_with_other_genes(adapters, autoencoder.network.decoder, sampled)


# ---- cells


def sample_other_counts(
    autoencoder: GeneAutoencoder, cells: ad.AnnData, populations: Sequence[str], *, seed: int
) -> dict[str, SampledCells]:
    """Sample training cells of populations, with their counts of other genes."""
    names = trained_populations(cells, populations)
    n_cells = min(CELLS_PER_POPULATION["train"], N_CELLS // len(names))
    others = np.setdiff1d(np.arange(cells.n_vars), encoded_features(cells.var))

    def sample(name: str) -> SampledCells:
        sampled = sample_cells_with_latents(cells, autoencoder, name, n_cells=n_cells, purpose="other genes", seed=seed)
        return replace(sampled, counts=sparse.csr_matrix(sampled.counts[:, others]))

    with threads() as run:
        return dict(zip(names, run(sample, names), strict=True))


# ---- decoder of all populations


@dataclass(frozen=True)
class Regressions:
    """Regressions of genes on the columns of a design matrix, between two Newton steps."""

    weight: Tensor  # genes x columns
    noise: Parameters  # genes
    log_normaliser: Tensor  # of the softmax, cells
    precision: Tensor  # of the normal prior of weights, columns


def fit_decoder(populations: Sequence[SampledCells], encoded: Decoder) -> Decoder:
    """Fit a decoder of other genes for all populations by Newton's method.

    The softmax, which would join the regressions of genes, has the normaliser of the step before. The prior standard
    deviation of the loadings of each latent dimension maximises the evidence (MacKay 1992, Neural Computation 4:415).
    ``encoded`` is the decoder of the other features, which has the same latents and batches.
    """
    counts = sparse.csc_matrix(sparse.vstack([part.counts for part in populations]))
    latent, batch = (torch.cat([getattr(part, name) for part in populations]) for name in ("latent", "batch"))
    log_size = to_tensor(np.asarray(counts.sum(axis=1), dtype=np.float32).ravel()).clamp(min=MIN_SIZE).log()
    n_types, n_latent, n_batches = encoded.shape.n_types, latent.shape[1], encoded.shape.n_batches
    of_batches = one_hot(batch, n_batches).float() if n_batches > 1 else latent[:, :0]
    # Columns of the design matrix: 1, latents, batches
    design = torch.cat([torch.ones(len(latent), 1), latent, of_batches], dim=1)
    precision = torch.full((design.shape[1],), BATCH_OFFSET_SCALE**-2)
    loadings, batches = slice(1, 1 + n_latent), slice(1 + n_latent, None)
    precision[0], precision[loadings] = 0, LOADING_SCALE**-2
    rows = [len(part.latent) for part in populations]
    moments = torch.stack([part.T @ part / len(part) for part in design.split(rows)])
    total = to_tensor(np.asarray(counts.sum(axis=0), dtype=np.float32).ravel()) + 0.5
    weight = torch.zeros(len(total), design.shape[1])
    weight[:, 0] = (total / total.sum()).log()
    typical = {name: value.mean() for name, value in encoded.noise(torch.arange(n_types)).items()}
    noise = {name: value.expand(len(total)) for name, value in typical.items()}
    fitted = Regressions(weight, noise, torch.zeros(len(latent)), precision)

    @torch.no_grad()  # applies to the current thread only
    def improve(fitted: Regressions, first: int) -> tuple[Tensor, Parameters, Tensor, Tensor]:
        """Return improved weights and noise of a few genes, their sum in each cell, and what data say of weights."""
        genes, precision = slice(first, first + N_GENES), fitted.precision
        observed, own = to_tensor(counts[:, genes].toarray()), fitted.weight[genes]
        own_noise = {name: value[genes] for name, value in fitted.noise.items()}
        logits = design @ own.T
        mean = (logits + (log_size - fitted.log_normaliser)[:, None]).exp()
        observation = encoded.observation_model.from_parameters(own_noise)
        residual, information = observation.derivatives(observed, mean)
        # In the information matrix of a gene, all cells of a population have the same weight
        by_population = torch.stack([part.sum(dim=0) for part in information.split(rows)])
        matrix = torch.einsum("pg,pij->gij", by_population, moments) + torch.diag(precision)
        covariance = torch.linalg.inv(matrix.double()).float()
        step = torch.einsum("gij,gj->gi", covariance, residual.T @ design - precision * own)
        largest = (design @ step.T).abs().amax(dim=0)
        step = step * (MAX_CHANGE / largest.clamp(min=MAX_CHANGE))[:, None]
        gradients = observation.parameter_gradients(observed, mean)
        changed = {
            name: own_noise[name] + noise_step(each, own_noise[name] - typical[name], NOISE_SCALE**-2)
            for name, each in gradients.items()
        }
        determined = (1 - precision * covariance.diagonal(dim1=1, dim2=2)).sum(dim=0)
        return own + step, changed, logits.exp().sum(dim=1), determined

    for number in range(N_STEPS):
        with threads() as run:
            improved = run(partial(improve, fitted), range(0, len(total), N_GENES))
            weights, noises, sums, determined = zip(*improved, strict=True)
        weight, precision = torch.cat(weights), fitted.precision.clone()
        if number > 0:  # before, weights are far from their optimum
            variance = (weight**2).sum(dim=0) / sum(determined)
            precision[loadings] = 1 / variance[loadings].clamp(min=MIN_LOADING_SCALE**2)
        fitted = Regressions(weight, concat(noises), sum(sums).log(), precision)
    state = encoded.noise_state({name: value.expand(n_types, -1) for name, value in fitted.noise.items()})
    state |= {"loadings.weight": fitted.weight[:, loadings], "loadings.bias": fitted.weight[:, 0]}
    state["batch_offset"] = fitted.weight[:, batches].T if n_batches > 1 else torch.zeros(1, len(total))
    shape = AutoencoderShape(len(total), n_types, n_latent, n_batches, encoded.shape.likelihood)
    return encoded.with_state(shape, state)


# ---- decoders of single populations


def adapters_with_other_genes(adapters: Adapters, decoder: Decoder, cells: Mapping[str, SampledCells]) -> Adapters:
    """Add log expression and noise of other genes to decoders of populations, given the shared ``decoder``.

    Populations without ``cells`` have those of the shared decoder.
    """
    others, shape = decoder.other_part(), decoder.shape
    noise = {name: value[0] for name, value in others.noise(torch.tensor([0])).items()}

    @torch.no_grad()  # applies to the current thread only
    def parameters_of(name: str) -> Parameters:
        fitted = fit_offset(cells[name], others) if name in cells else others.loadings.bias.detach()
        return {"offset": fitted, **noise}

    with threads() as run:
        by_name = list(run(parameters_of, adapters))
    added = {
        name: shape.joined(values, torch.stack([part[name] for part in by_name]))
        for name, values in adapters.parameters.items()
        if name != "loadings" and by_name
    }
    return replace(adapters, parameters=adapters.parameters | added)


def fit_offset(cells: SampledCells, others: Decoder) -> Tensor:
    """Fit the log expression of other genes in a population, with the loadings of all populations.

    The change has a normal prior, whose standard deviation maximises the evidence.
    """
    counts, observation = to_tensor(cells.counts.toarray()), others.observation(torch.tensor([0]))
    log_size = others.size(counts).log()
    change, precision = torch.zeros(others.shape.n_genes), POPULATION_SCALE**-2
    for _ in range(N_STEPS):
        log_mean = others.decode(cells.latent, cells.batch, log_size=log_size, offset=change)
        residual, information = observation.derivatives(counts, log_mean.exp())
        curvature = information.sum(dim=0) + precision
        step = (residual.sum(dim=0) - precision * change) / curvature
        change = change + step.clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
        variance = (change**2).sum() / (1 - precision / curvature).sum()
        precision = float(1 / variance.clamp(min=MIN_POPULATION_SCALE**2))
    return others.loadings.bias.detach() + change
