"""Estimate how donors differ from the counts of prepared cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.special import digamma, gammaln
from torch import Tensor

from bdm._core.errors import InputError
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.blocks import batch_codes
from bdm.autoencoder.decoder import Decoder
from bdm.data.modalities import Modality
from bdm.data.prepare import has_donors
from bdm.model.donor_variance import (
    FEW,
    DonorVariance,
    Groups,
    certainty,
    donor_variance,
    group_cells,
    pseudobulks,
)

N_FACTORS = 30  # maximum number of factors of donor effects


@dataclass(frozen=True, eq=False)
class DonorEffects:
    """Distribution of donor effects.

    A donor changes the log expression of gene g in cell type c by ``sd[c, g] u - sd[c, g]**2 / 2``. Here
    ``u = sum_k loadings[k, c, g] f_k + residual``; the factors f_k are independent standard normals, and u has unit
    variance. Cell types share the fraction ``shared`` of the residual variance. Log library sizes are treated as
    further genes.
    """

    n_donors: int
    cell_types: tuple[str, ...]  # cell types with cells of several donors; the only ones with effects
    populations: tuple[str, ...]  # populations of these types
    composition: DonorComposition
    shared: float
    sd: Tensor  # standard deviation between donors, cell types x (genes + library sizes)
    loadings: Tensor  # factors x cell types x (genes + library sizes)
    # covariance between donors of the mean of y = (latent, log library sizes), populations x dimensions x dimensions
    between: Tensor
    beyond: Tensor  # variance between donors that the latent space cannot express, cell types x genes

    @property
    def n_genes(self) -> int:
        """Number of features: genes, proteins and peaks."""
        return self.beyond.shape[1]

    @property
    def summary(self) -> str:
        """One-sentence summary for reports, with a warning if donors are few."""
        kept, median = certainty(self.n_donors), float(self.sd[:, : self.n_genes].median())
        spread = f"standard deviation of log expression {median:.2f} (median over genes and cell types)"
        summary = f"{self.n_donors} donors, {spread}"
        if kept < 1:
            return f"{summary}; with fewer than {FEW} donors the estimate is uncertain and shrunk to {kept:.0%}"
        return summary


def fit_donors(prepared: ad.AnnData, latent: ad.AnnData, autoencoder: GeneAutoencoder) -> DonorEffects | None:
    """Estimate donor effects from training and validation cells; None without donors."""
    if not has_donors(prepared):
        return None
    rows = np.flatnonzero((prepared.obs["split"] != "test").to_numpy())
    obs = latent.obs.iloc[rows]
    donors, names = pd.factorize(obs["donor"].astype(str), sort=True)
    population = obs["sub_population"].astype(str).to_numpy()
    codes = pd.DataFrame(
        {
            "donor": donors,
            "cell_type": pd.Index(autoencoder.cell_types).get_indexer(obs["cell_type"].astype(str)),
            "population": pd.Index(autoencoder.populations).get_indexer(population),
            "batch": batch_codes(latent, autoencoder.batches).numpy()[rows],
        }
    )
    modalities, factors = autoencoder.modalities, autoencoder.network.decoder.batch_factors()
    groups = [group_cells(prepared, rows, codes, modality) for modality in modalities]
    by_modality = [
        pseudobulks(part, factors[:, modality.features], n_donors=len(names))
        for part, modality in zip(groups, modalities, strict=True)
    ]
    estimates = {code: [donor_variance(bulks[code]) for bulks in by_modality] for code in by_modality[0]}
    variances = {
        autoencoder.cell_types[code]: joined_variance([part for part in parts if part is not None], modalities)
        for code, parts in estimates.items()
        if None not in parts
    }
    cell_type_of = {
        name: cell_type for cell_type in autoencoder.cell_types for name in autoencoder.populations_of(cell_type)
    }
    z = np.asarray(latent.X[rows])[:, : autoencoder.network.shape.n_latent]
    means = population_means(groups, modalities, z, population, autoencoder)
    composition = fit_composition(donors, population, cell_type_of, share_fitted=len(rows) / prepared.n_obs)
    return combine_effects(variances, composition, autoencoder, means)


def joined_variance(parts: Sequence[DonorVariance], modalities: Sequence[Modality]) -> DonorVariance:
    """Concatenate modalities: features of all, then their library sizes."""

    def joined(values: Sequence[np.ndarray]) -> np.ndarray:
        sizes = [value[..., -1:] for value, modality in zip(values, modalities, strict=True) if modality.normalised]
        return np.concatenate([*(value[..., :-1] for value in values), *sizes], axis=-1)

    return DonorVariance(*(joined([getattr(part, entry.name) for part in parts]) for entry in fields(DonorVariance)))


@dataclass(frozen=True)
class PopulationMeans:
    """Means over the cells of a population."""

    expression: tuple[np.ndarray, ...]  # decoded from the mean latent, as in generated cells, by modality
    log_library_sizes: tuple[float, ...]  # mean, by modality
    n_counts: tuple[float, ...]  # total counts by modality; number of cells for proteins
    n_donors: int  # number of donors with cells


@torch.no_grad()
def population_means(
    groups: Sequence[Groups],
    modalities: Sequence[Modality],
    latent: np.ndarray,
    population: np.ndarray,
    autoencoder: GeneAutoencoder,
) -> dict[str, dict[str, PopulationMeans]]:
    """Compute the means of populations by cell type; ``latent``: cells x latent dimensions."""
    means: dict[str, dict[str, PopulationMeans]] = {}
    for (type_code, code), first_table in groups[0].table.groupby(["cell_type", "population"]):
        tables = [part.table.loc[first_table.index] for part in groups]
        name = autoencoder.populations[int(code)]
        decoder = autoencoder.network_of(name).decoder
        mean = torch.from_numpy(latent[population == name].mean(axis=0, keepdims=True))
        expression = decoder.decode(mean)[0].exp()
        means.setdefault(autoencoder.cell_types[int(type_code)], {})[name] = PopulationMeans(
            tuple(expression.double().numpy()[modality.features] for modality in modalities),
            tuple(
                float(table["log_library_size"].sum() / table["n_cells"].sum())
                for table, modality in zip(tables, modalities, strict=True)
                if modality.normalised
            ),
            tuple(float(table["library_size"].sum()) for table in tables),
            first_table["donor"].nunique(),
        )
    return means


def composition_variance(
    composition: DonorComposition, cell_type: str, means: dict[str, PopulationMeans]
) -> np.ndarray:
    """Return the variance between donors due to the proportions of a type's populations."""
    ratios = []
    for modality in range(len(next(iter(means.values())).expression)):
        n_counts = np.array([mean.n_counts[modality] for mean in means.values()])
        expression = np.stack([mean.expression[modality] for mean in means.values()])
        ratios.append(expression / (n_counts @ expression / n_counts.sum()))
    values = np.column_stack([*ratios, [mean.log_library_sizes for mean in means.values()]])
    n_genes = sum(ratio.shape[1] for ratio in ratios)
    parameters = np.array([composition.populations[cell_type][name] for name in means])
    proportion = parameters / parameters.sum()
    variance = proportion @ (values - proportion @ values) ** 2 / (parameters.sum() + 1)
    return np.append(np.log1p(variance[:n_genes]), variance[n_genes:])


def combine_effects(
    variances: dict[str, DonorVariance],
    composition: DonorComposition,
    autoencoder: GeneAutoencoder,
    means: dict[str, dict[str, PopulationMeans]],
) -> DonorEffects:
    """Combine cell types: common factors, and the variance that latents explain."""
    cell_types = tuple(variances)
    n_genes = autoencoder.network.shape.n_genes
    if not cell_types:
        raise InputError("No cell type has cells of two or more donors; fit without donors.")
    scores = np.stack([variances[name].score for name in cell_types], axis=1)  # donors x types x columns
    weights = np.stack([variances[name].weight for name in cell_types], axis=1)
    loadings = common_factors(scores)
    by_composition = np.stack([composition_variance(composition, name, means[name]) for name in cell_types])
    variance = np.maximum(np.stack([variances[name].variance for name in cell_types]) - by_composition, 0)
    populations, between = [], []
    beyond = np.zeros((len(cell_types), n_genes))
    for row, cell_type in enumerate(cell_types):
        sd = np.sqrt(variance[row])
        explained = np.zeros(n_genes)
        n_counts = np.sum([mean.n_counts for mean in means[cell_type].values()], axis=0)
        for name, mean in means[cell_type].items():
            covariance, in_latents = latent_covariance(
                loadings[:, row] * sd, variance[row, n_genes:], autoencoder.network_of(name).decoder, mean
            )
            populations.append(name)
            between.append(covariance)
            fractions = zip(mean.n_counts / n_counts, mean.expression, strict=True)
            explained += np.concatenate([np.full(len(part), fraction) for fraction, part in fractions]) * in_latents
        beyond[row] = np.maximum(variance[row, :n_genes] - explained, 0)
    return DonorEffects(
        n_donors=len(scores),
        cell_types=cell_types,
        populations=tuple(populations),
        composition=composition,
        shared=shared_fraction(scores, weights, loadings),
        sd=torch.tensor(np.sqrt(variance), dtype=torch.float32),
        loadings=torch.tensor(loadings, dtype=torch.float32),
        between=torch.tensor(np.stack(between), dtype=torch.float32),
        beyond=torch.tensor(beyond, dtype=torch.float32),
    )


def common_factors(scores: np.ndarray) -> np.ndarray:
    """Compute principal components of scores (donors x types x columns).

    Loadings are factors x types x columns, and explain a variance of at most 1.
    """
    n_donors = len(scores)
    flat = scores.reshape(n_donors, -1)
    flat = flat - flat.mean(axis=0)
    value, vector = np.linalg.eigh(flat @ flat.T)
    kept = np.argsort(value)[::-1][: min(N_FACTORS, n_donors - 1)]
    loadings = vector[:, kept].T @ flat / np.sqrt(n_donors - 1)
    explained = (loadings**2).sum(axis=0)
    return np.asarray((loadings / np.sqrt(np.maximum(explained, 1))).reshape(len(kept), *scores.shape[1:]))


def shared_fraction(scores: np.ndarray, weights: np.ndarray, loadings: np.ndarray) -> float:
    """Estimate the fraction of the residual variance that cell types share.

    It is the sum of products of two types' deviations beyond the factors, relative to the sum if all were shared.
    """
    n_types = scores.shape[1]
    observed = by_factors = maximum = 0.0
    residual = np.sqrt(np.maximum(1 - (loadings**2).sum(axis=0), 0))
    for a in range(n_types):
        for b in range(a):
            weight = (weights[:, a] * weights[:, b]).sum(axis=0)
            observed += float((scores[:, a] * scores[:, b]).sum())
            by_factors += float(weight @ (loadings[:, a] * loadings[:, b]).sum(axis=0))
            maximum += float(weight @ (residual[a] * residual[b]))
    return float(np.clip((observed - by_factors) / maximum, 0, 1)) if maximum > 0 else 0.0


@torch.no_grad()
def latent_covariance(
    effects: np.ndarray, library_variance: np.ndarray, decoder: Decoder, means: PopulationMeans
) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariance of y between donors, and the gene variance that it explains.

    The decoder's weighted least-squares fit of the log expression effects gives the shift of the latent. Weights are a
    donor's counts, and the prior of latents regularises the fit. ``effects``: factors x (genes + library sizes).
    """
    expression = np.concatenate(means.expression)
    directions, n_genes = decoder.directions(expression), len(expression)
    counts = [part * (n / means.n_counts[0]) for part, n in zip(means.expression, means.n_counts, strict=True)]
    weighted = np.concatenate(counts)[:, None] * directions
    ends = np.cumsum([len(part) for part in means.expression[:-1]], dtype=int)
    blocks = zip(np.split(effects[:, :n_genes], ends, axis=1), means.expression, decoder.blocks.normalised, strict=True)
    genes = np.concatenate(
        [part - (part @ shares)[:, None] if normalised else part for part, shares, normalised in blocks], axis=1
    )
    information = directions.T @ weighted + np.eye(directions.shape[1]) * means.n_donors / means.n_counts[0]
    shift = np.linalg.solve(information, weighted.T @ genes.T).T
    y = np.column_stack([shift, effects[:, n_genes:]])
    covariance = y.T @ y
    sizes = np.arange(shift.shape[1], y.shape[1])
    covariance[sizes, sizes] = library_variance
    return covariance, ((shift @ directions.T) ** 2).sum(axis=0)


MAX_SUM = 1e4  # sum of Dirichlet parameters above which donors hardly differ
N_QUANTILES = 21
MIN_VARIANCE = 1e-12  # of log numbers of cells, to tell donors with equal numbers


@dataclass(frozen=True)
class DonorComposition:
    """Distribution of a donor's proportions of populations and number of cells."""

    cell_types: dict[str, float]  # Dirichlet parameters of cell type proportions
    populations: dict[str, dict[str, float]]  # by cell type, Dirichlet parameters of population proportions
    n_cells: tuple[float, ...]  # quantiles of the number of cells, evenly spaced, see :func:`cell_number_quantiles`

    @property
    def concentration(self) -> float:
        """Sum of the parameters of cell types; large if donors are alike."""
        return sum(self.cell_types.values())

    def with_type(
        self, name: str, populations: Sequence[str], share: float, n_cells: Sequence[float]
    ) -> DonorComposition:
        """Add a cell type with its share of all cells."""
        parameter = self.concentration * share / (1 - share)
        within = np.asarray(n_cells) / np.sum(n_cells) * MAX_SUM
        added = dict(zip(populations, within.tolist(), strict=True))
        return DonorComposition(self.cell_types | {name: parameter}, self.populations | {name: added}, self.n_cells)

    def sample(self, generator: np.random.Generator) -> tuple[pd.Series, int]:
        """Sample the proportions of populations and the number of cells of a donor."""
        number, types, *within = generator.spawn(2 + len(self.populations))
        quantiles = np.linspace(0, 1, len(self.n_cells))
        n_cells = max(round(float(np.interp(number.random(), quantiles, self.n_cells))), 1)
        shares = dict(zip(self.cell_types, types.dirichlet(list(self.cell_types.values())), strict=True))
        proportions = {
            population: float(shares[cell_type] * share)
            for (cell_type, parameters), rng in zip(self.populations.items(), within, strict=True)
            for population, share in zip(parameters, rng.dirichlet(list(parameters.values())), strict=True)
        }
        return pd.Series(proportions), n_cells


def fit_composition(
    donor: np.ndarray, population: np.ndarray, cell_type_of: dict[str, str], *, share_fitted: float
) -> DonorComposition:
    """Fit the composition of donors by maximum likelihood.

    ``share_fitted`` is the fraction of all cells in ``donor`` and ``population``.
    """
    table = pd.crosstab(donor, population).reindex(columns=list(cell_type_of), fill_value=0)
    populations: dict[str, list[str]] = {}
    for name, cell_type in cell_type_of.items():
        populations.setdefault(cell_type, []).append(name)
    by_type = pd.DataFrame({cell_type: table[names].sum(axis=1) for cell_type, names in populations.items()})
    return DonorComposition(
        dirichlet_parameters(by_type),
        {cell_type: dirichlet_parameters(table[names]) for cell_type, names in populations.items()},
        cell_number_quantiles(table.sum(axis=1).to_numpy() / share_fitted),
    )


def cell_number_quantiles(n_cells: np.ndarray) -> tuple[float, ...]:
    """Return quantiles of numbers of cells, to sample from by interpolation.

    They are spread such that samples have the variance of log numbers between donors.
    """
    log_n = np.log(n_cells)
    quantiles = np.quantile(log_n, np.linspace(0, 1, N_QUANTILES))
    low, high = quantiles[:-1], quantiles[1:]
    mean = float((low + high).mean() / 2)
    variance = float((low**2 + low * high + high**2).mean() / 3 - mean**2)
    if variance > MIN_VARIANCE:
        quantiles = mean + (quantiles - mean) * np.sqrt(certainty(len(n_cells)) * log_n.var(ddof=1) / variance)
    return tuple(np.round(np.exp(quantiles), 1).tolist())


def dirichlet_parameters(numbers: pd.DataFrame) -> dict[str, float]:
    """Fit a Dirichlet-multinomial to counts (donors x groups) by maximum likelihood.

    With few donors, the variance is shrunk, see :func:`bdm.model.donor_variance.certainty`.
    """
    counts = numbers.to_numpy(dtype=float)
    counts = counts[counts.sum(axis=1) > 0]
    n_donors, n_groups = counts.shape
    if n_groups == 1:
        return {str(numbers.columns[0]): MAX_SUM}
    totals = counts.sum(axis=1)
    start = np.log(np.maximum(counts.mean(axis=0), 1e-3) / counts.mean(axis=0).sum() * 10)

    def negative_log_likelihood(log_parameters: np.ndarray) -> tuple[float, np.ndarray]:
        a = np.exp(log_parameters)
        total = a.sum()
        value = (gammaln(total) - gammaln(totals + total)).sum() + (gammaln(counts + a) - gammaln(a)).sum()
        slope = (digamma(total) - digamma(totals + total)).sum() + (digamma(counts + a) - digamma(a)).sum(axis=0)
        return -float(value), -slope * a

    bounds = [(np.log(1e-4), np.log(MAX_SUM))] * n_groups
    fitted = np.exp(minimize(negative_log_likelihood, start, jac=True, bounds=bounds, method="L-BFGS-B").x)
    total = min(fitted.sum(), MAX_SUM)
    kept = certainty(n_donors)
    concentration = min((total + 1) / kept - 1, MAX_SUM) if kept > 0 else MAX_SUM
    parameters = fitted / fitted.sum() * concentration
    return dict(zip(map(str, numbers.columns), parameters.tolist(), strict=True))
