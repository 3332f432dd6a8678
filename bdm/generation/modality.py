"""Prediction of a missing modality from RNA: infer latents, then decode."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from bdm._core.errors import InputError
from bdm._core.parallel import threads, using_threads
from bdm._core.schema import Setting
from bdm._core.seeds import numpy_generator, to_tensor, torch_generator
from bdm.autoencoder.decoder import Decoder
from bdm.autoencoder.moments import Normal, matrix_power
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.observation import ObservationModel
from bdm.autoencoder.protein_levels import map_quantiles
from bdm.data.cell_sets import DEFAULT_KEYS
from bdm.data.columns import writable, writable_names
from bdm.data.modalities import LIBRARY_SIZE, RNA, Modality, blocks_of, parts_of_rna
from bdm.effects.effect import shifts_in
from bdm.model.match import (
    check_known,
    check_not_empty,
    counts_of_genes,
    counts_slot,
    inputs_of,
    label_column,
    labels_of,
)
from bdm.model.model import BranchedModel, generated_noise, record_of_cells
from bdm.settings import InputKeys, Samples

MAX_BLOCK, MAX_ENTRIES = 256, 2**25  # cells that are predicted together, and samples of their counts
N_SAMPLES = 200  # posterior samples per cell
RNA_POWER = 0.5  # power of the RNA likelihood, as the latent does not explain all correlation of genes
INTERVAL = (0.05, 0.95)  # quantiles
LOG1P, LOWER, UPPER, SAMPLE = "log1p", "lower", "upper", "sample"  # layers of predicted cells


@dataclass(frozen=True)
class PredictionRequest:
    """Cells with RNA, matched to a model."""

    counts: AnnData  # counts of the model's highly variable genes
    cell_type: np.ndarray | None  # None if types are unknown, so that all are possible
    batch: Tensor  # index of each cell's batch
    inputs: pd.DataFrame  # batch and covariates, if the model has them


def match_request(adata: AnnData, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS) -> PredictionRequest:
    """Match cells with RNA to a model, using their cell types if present."""
    genes, source = model.autoencoder.genes, counts_slot(adata, model, keys)
    counts = counts_of_genes(adata, genes.iloc[parts_of_rna(genes)[0].features], source=source)
    check_not_empty(counts)
    cell_type, known = None, {keys.label_key, model.label_key, "cell_type"} & set(adata.obs)
    if keys.label_key is not None or (known and label_column(adata.obs, model, keys) is not None):
        labels = labels_of(adata.obs, model, keys)
        check_known(labels, model, remedy="leave them out, or give no types")
        cell_type = labels.to_numpy(dtype=str)
    inputs = inputs_of(adata, model, keys)
    batch = model.autoencoder.batch_codes(inputs.get("batch"))
    batch = torch.zeros(adata.n_obs, dtype=torch.long) if batch is None else batch
    return PredictionRequest(counts, cell_type, batch, inputs)


def find_modality(model: BranchedModel, name: str) -> Modality:
    """Find a modality of the model by name or kind."""
    predicted = [modality for modality in model.autoencoder.modalities if modality.kind != RNA]
    for modality in predicted:
        if name in (modality.name, modality.kind):
            return modality
    if not predicted:
        raise InputError("The model was fitted to RNA alone; fit one to cells with proteins or peaks, too.")
    known = ", ".join(modality.name for modality in predicted)
    raise InputError(f"The model has no modality {name!r} beside RNA; it has {known}.")


@using_threads()
def predict_modality(
    model: BranchedModel, request: PredictionRequest, modality: Modality, *, n_samples: int = N_SAMPLES, seed: int = 0
) -> AnnData:
    """Predict the counts of a modality from the RNA of cells.

    The posterior of a cell's latent is a mixture with one normal per possible population: the prior of the population
    at the cell's covariates and library size, times the likelihood of the RNA to the power of 1/2, in a Laplace
    approximation. Mixture weights are the posterior probabilities of the populations. Proteins have the levels of
    training cells.

    Returns
    -------
    AnnData with expected counts in ``X`` and these layers: ``log1p``, the expected log1p of counts; ``lower`` and
    ``upper``, the 90% interval of counts; ``sample``, one draw. ``obsm['populations']`` has the probability of each
    population, in the order of the model; names are as in files, such as ``cell_1`` for ``cell/1``.
    """
    n_samples = Setting("n_samples", Samples).checked(n_samples)
    var = model.autoencoder.genes.iloc[modality.features]
    var = pd.DataFrame(index=var.index.str.removeprefix(modality.prefix))
    posteriors = [PopulationPosterior.from_model(model, name, modality) for name in model.populations]

    @torch.no_grad()  # here, because each thread has its own setting
    def predicted(rows: slice) -> dict[str, np.ndarray]:
        return predict_block(model, posteriors, request, rows, n_samples=n_samples, seed=seed)

    n_cells, block = request.counts.n_obs, max(min(MAX_BLOCK, MAX_ENTRIES // (n_samples * len(var))), 1)
    with threads() as run:
        blocks = list(run(predicted, (slice(start, min(start + block, n_cells)) for start in range(0, n_cells, block))))
    layers = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    names = writable_names(model.populations)
    populations = pd.DataFrame(layers.pop("populations"), index=request.counts.obs_names, columns=names)
    record = record_of_cells(model, seed=seed, settings={"modality": modality.name, "n_samples": n_samples})
    return AnnData(
        layers.pop("mean"),
        obs=writable(request.counts.obs),
        var=var,
        obsm={"populations": populations},
        layers=layers,
        uns={"bdm": record},
    )


@dataclass(frozen=True)
class PopulationPosterior:
    """Posterior of latents given RNA, for cells of one population."""

    model: BranchedModel
    name: str
    code: int  # index of the population in the networks
    network: CountAutoencoder  # for RNA alone
    normal: Normal  # of y = (latent, log library sizes), in double precision
    target: Decoder  # for the modality to predict
    noise: ObservationModel  # of generated counts of this modality
    target_size: int | None  # index of the modality's log library size in y without the library size of RNA
    has_levels: bool  # whether predicted proteins have the levels of training cells

    @classmethod
    def from_model(cls, model: BranchedModel, name: str, modality: Modality) -> PopulationPosterior:
        """Build from the decoders and moments of a population."""
        network, row = model.autoencoder.network_of(name), model.moments.populations.index(name)
        colour = matrix_power(model.whitening.covariance.double(), 0.5)
        mean = model.moments.mean[row].double() @ colour + model.whitening.centre.double()
        return cls(
            model,
            name,
            model.autoencoder.population_code(name),
            CountAutoencoder.from_decoder(network.decoder.of_blocks(0), network.prior_mean),
            Normal(mean, colour @ model.moments.covariance[row].double() @ colour),
            network.decoder.of_blocks(blocks_of(model.autoencoder.genes).index(modality)),
            generated_noise(model, name).of_genes(np.r_[modality.features]),
            model.layout.index(modality.size_name) - 1 if modality.normalised else None,
            has_levels=not modality.normalised and name in model.levels,
        )

    @property
    def cell_type(self) -> str:
        """Cell type of the population."""
        return self.model.cell_type_of[self.name]

    def expected(self, y: Tensor, batch: Tensor) -> np.ndarray:
        """Decode y without the library size of RNA to mean counts."""
        n_latent, log_size = self.target.shape.n_latent, None
        if self.target_size is not None:
            smallest, largest = (size[self.target_size - n_latent + 1] for size in self.model.library_range(self.name))
            log_size = y[:, self.target_size, None].clamp(smallest, largest).float()
        log_mean = self.target.decode(y[:, :n_latent].float(), batch, log_size=log_size)
        return np.asarray((log_mean + self.model.levels[self.name].log_factor if self.has_levels else log_mean).exp())

    def sampled(self, mean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Sample counts of the modality; proteins have the levels of training cells."""
        counts = self.noise.sample(mean, generator).toarray()
        if not self.has_levels:
            return counts
        levels, training_levels = self.model.levels[self.name], self.model.autoencoder.levels[self.name]
        return map_quantiles(counts, levels.quantiles, training_levels, generator)

    def prior(self, at: pd.DataFrame) -> tuple[float | Tensor, Tensor]:
        """Return the population's log share and mean of y at the inputs of cells."""
        n_cells, covariates = self.model.composition.sum(axis=1), self.model.covariates
        log_share, mean = math.log(n_cells[self.name] / n_cells.sum()), self.normal.mean
        for effect in shifts_in(self.model.effects):
            mean = mean + effect.latent(at, self.name, self.cell_type).double()
        if covariates is None:
            return log_share, mean
        values = at[list(covariates.names)].to_numpy()
        n_of_type = self.model.n_training_cells(self.cell_type)
        share = covariates.shares(self.cell_type, n_of_type.to_dict(), values)[:, n_of_type.index.get_loc(self.name)]
        log_change = to_tensor(np.log(share * n_of_type.sum() / n_of_type[self.name]))
        return log_share + log_change, mean

    def infer(self, counts: Tensor, batch: Tensor, at: pd.DataFrame, rna_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log evidence, and the posterior mean and covariance of y, per cell.

        The evidence includes the population's share; y excludes the library size of RNA, on which the prior is
        conditioned. The log likelihood is expanded at the posterior mode under the autoencoder's prior,
        N(prior_mean, I).
        """
        n_latent, types = self.network.shape.n_latent, torch.full((len(counts),), self.code)
        encoded = self.network.encode(counts, types, batch)
        mode, prior_mean = encoded.mean, self.network.prior_mean[self.code]
        at_mode = RNA_POWER * self.network.decoder.log_likelihood(counts, mode, types, batch).double()
        information = RNA_POWER * (encoded.precision.double() - torch.eye(n_latent, dtype=torch.float64))
        mode, gradient = mode.double(), RNA_POWER * (encoded.mean - prior_mean).double()

        # Prior, given the library size
        log_share, prior_y = self.prior(at)
        log_size = self.network.decoder.size(counts).log().double().squeeze(1)
        rest = torch.tensor([k for k in range(len(self.normal.mean)) if k != rna_size])
        variance = self.normal.covariance[rna_size, rna_size]
        gain = self.normal.covariance[rest, rna_size] / variance
        deviation = log_size - prior_y[..., rna_size]
        mean = prior_y[..., rest] + deviation[:, None] * gain
        covariance = self.normal.covariance[rest][:, rest] - variance * gain[:, None] * gain
        log_density = -(deviation**2 / variance + variance.log()) / 2

        # Times the likelihood, which depends on the latent alone
        n_rest = len(rest)
        precision, linear = torch.zeros(len(counts), n_rest, n_rest).double(), torch.zeros(len(counts), n_rest).double()
        precision[:, :n_latent, :n_latent] = information
        linear[:, :n_latent] = torch.einsum("cij,cj->ci", information, mode) + gradient
        constant = at_mode - (gradient * mode).sum(dim=1) - torch.einsum("ci,cij,cj->c", mode, information, mode) / 2
        prior_precision = torch.linalg.inv(covariance)
        posterior = torch.linalg.inv(precision + prior_precision)
        pulled = linear + mean @ prior_precision
        centre = torch.einsum("cij,cj->ci", posterior, pulled)
        evidence = (
            constant
            + (pulled * centre).sum(dim=1) / 2
            - torch.einsum("ci,ij,cj->c", mean, prior_precision, mean) / 2
            + (torch.logdet(posterior) - torch.logdet(covariance)) / 2
        )
        return log_share + log_density + evidence, centre, posterior


def predict_block(
    model: BranchedModel,
    posteriors: list[PopulationPosterior],
    request: PredictionRequest,
    rows: slice,
    *,
    n_samples: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Predict a block of cells: mean, layers, and probabilities of populations."""
    counts, batch = to_tensor(request.counts.X[rows].toarray()), request.batch[rows]
    n_cells, rna_size = len(counts), model.layout.index(LIBRARY_SIZE)
    log_evidence = torch.full((n_cells, len(posteriors)), -torch.inf, dtype=torch.float64)
    approximations: dict[int, tuple[np.ndarray, Tensor, Tensor]] = {}  # by population: cells, means, covariances
    for k, posterior in enumerate(posteriors):
        possible = np.arange(n_cells)
        if request.cell_type is not None:
            possible = np.flatnonzero(request.cell_type[rows] == posterior.cell_type)
        if len(possible):
            log_evidence[possible, k], centre, covariance = posterior.infer(
                counts[possible], batch[possible], request.inputs.iloc[rows].iloc[possible], rna_size
            )
            approximations[k] = possible, centre, covariance
    probability = log_evidence.softmax(dim=1)

    generator = torch_generator(seed, "latents", rows.start)
    population = torch.multinomial(probability, n_samples, replacement=True, generator=generator)
    noise = torch.randn(n_cells, n_samples, len(model.layout.names) - 1, generator=generator, dtype=torch.float64)
    mean, sampled = np.zeros((2, n_cells, n_samples, posteriors[0].target.shape.n_genes), dtype=np.float32)
    for k, (possible, centre, covariance) in approximations.items():
        cell, number = np.nonzero((population[possible] == k).numpy())
        if len(cell):
            cells = possible[cell]
            root = torch.linalg.cholesky(covariance)
            y = centre[cell] + torch.einsum("nij,nj->ni", root[cell], noise[cells, number])
            mean[cells, number] = posteriors[k].expected(y, batch[cells])
            draws = numpy_generator(seed, "counts", posteriors[k].name, rows.start)
            sampled[cells, number] = posteriors[k].sampled(mean[cells, number], draws)
    lower, upper = np.quantile(sampled, INTERVAL, axis=1, method="inverted_cdf")
    return {
        "mean": mean.mean(axis=1),
        LOG1P: np.log1p(sampled).mean(axis=1),
        LOWER: lower.astype(np.float32),
        UPPER: upper.astype(np.float32),
        SAMPLE: sampled[:, 0].copy(),
        "populations": probability.float().numpy(),
    }
