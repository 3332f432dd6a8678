"""What is learned of donors, from the counts of prepared cells, and its files."""

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
from bdm.autoencoder.cells import batch_codes
from bdm.autoencoder.decoder import Decoder
from bdm.data.modalities import Modality
from bdm.data.prepare import has_donors
from bdm.donors.variance import (
    FEW,
    DonorVariance,
    Groups,
    certainty,
    donor_variance,
    group_cells,
    pseudobulks,
)

N_FACTORS = 30  # most factors that donors' effects share


@dataclass(frozen=True, eq=False)
class DonorEffects:
    """How donors differ.

    The effect of a donor on the log expression of gene g in cell type c is ``sd[c, g] u - sd[c, g]**2 / 2``, where u
    has unit variance: ``u = sum_k loadings[k, c, g] f_k + rest``, with independent standard normal factors f_k. A part
    ``shared`` of the variance of the rest is the same in all cell types. The log library size is like a further gene.
    """

    n_donors: int  # number of donors that it was learned from
    cell_types: tuple[str, ...]  # cell types in which donors differ: those with cells of several donors
    populations: tuple[str, ...]  # populations of these types
    composition: DonorComposition
    shared: float  # share of the variance of the rest that cell types share
    # Standard deviation between donors of log expression and, last, of log library sizes: cell types x (genes + sizes)
    sd: Tensor
    loadings: Tensor  # factors x cell types x (genes + sizes)
    # Covariance of the donors' shifts of y = (latent, log library sizes): populations x dimensions x dimensions
    between: Tensor
    beyond: Tensor  # variance of log expression between donors beyond the shift of latents: cell types x genes

    @property
    def n_genes(self) -> int:
        """Number of genes, with proteins and peaks if there are any."""
        return self.beyond.shape[1]

    @property
    def summary(self) -> str:
        """What was learned of donors, in one sentence, which says if donors are few."""
        kept, median = certainty(self.n_donors), float(self.sd[:, : self.n_genes].median())
        spread = f"standard deviation of log expression {median:.2f} (median over genes and cell types)"
        found = f"{self.n_donors} donors, {spread}"
        if kept < 1:
            return f"{found}; fewer than {FEW} show little of how donors differ, so {kept:.0%} of the variance is kept"
        return found


def fit_donors(prepared: ad.AnnData, latent: ad.AnnData, autoencoder: GeneAutoencoder) -> DonorEffects | None:
    """Learn how donors differ, from all cells but the test cells; None if the cells have no donors."""
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
    found = {code: [donor_variance(bulks[code]) for bulks in by_modality] for code in by_modality[0]}
    variances = {
        autoencoder.cell_types[code]: joined_variance([part for part in parts if part is not None], modalities)
        for code, parts in found.items()
        if None not in parts
    }
    cell_type_of = {
        name: cell_type for cell_type in autoencoder.cell_types for name in autoencoder.populations_of(cell_type)
    }
    z = np.asarray(latent.X[rows])[:, : autoencoder.network.shape.n_latent]
    means = means_of(groups, modalities, z, population, autoencoder)
    composition = fit_composition(donors, population, cell_type_of, share_fitted=len(rows) / prepared.n_obs)
    return effects_of(variances, composition, autoencoder, means)


def joined_variance(parts: Sequence[DonorVariance], modalities: Sequence[Modality]) -> DonorVariance:
    """Join what was found of modalities: features of all, and then the library sizes of those that have one."""

    def joined(values: Sequence[np.ndarray]) -> np.ndarray:
        sizes = [value[..., -1:] for value, modality in zip(values, modalities, strict=True) if modality.normalised]
        return np.concatenate([*(value[..., :-1] for value in values), *sizes], axis=-1)

    return DonorVariance(*(joined([getattr(part, entry.name) for part in parts]) for entry in fields(DonorVariance)))


@dataclass(frozen=True)
class PopulationMeans:
    """Means over the cells of a population."""

    # Expression that the decoder gives the mean latent, genes, by modality; it is what generated cells have
    expression: tuple[np.ndarray, ...]
    log_library_sizes: tuple[float, ...]  # mean log library sizes
    n_counts: tuple[float, ...]  # counts of all its cells by modality; number of cells for proteins
    n_donors: int  # number of donors with such cells


@torch.no_grad()
def means_of(
    groups: Sequence[Groups],
    modalities: Sequence[Modality],
    latent: np.ndarray,
    population: np.ndarray,
    autoencoder: GeneAutoencoder,
) -> dict[str, dict[str, PopulationMeans]]:
    """Means of the populations that have cells, by cell type; ``latent``: cells x latent dimensions."""
    means: dict[str, dict[str, PopulationMeans]] = {}
    for (type_code, code), of_first in groups[0].table.groupby(["cell_type", "population"]):
        tables = [part.table.loc[of_first.index] for part in groups]
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
            of_first["donor"].nunique(),
        )
    return means


def variance_by_shares(composition: DonorComposition, cell_type: str, means: dict[str, PopulationMeans]) -> np.ndarray:
    """Variance between donors of log expression and, last, log library sizes that the shares of populations cause."""
    ratios = []
    for modality in range(len(next(iter(means.values())).expression)):
        n_counts = np.array([mean.n_counts[modality] for mean in means.values()])
        expression = np.stack([mean.expression[modality] for mean in means.values()])
        ratios.append(expression / (n_counts @ expression / n_counts.sum()))
    values = np.column_stack([*ratios, [mean.log_library_sizes for mean in means.values()]])
    n_genes = sum(ratio.shape[1] for ratio in ratios)
    parameters = np.array([composition.populations[cell_type][name] for name in means])
    share = parameters / parameters.sum()
    variance = share @ (values - share @ values) ** 2 / (parameters.sum() + 1)
    return np.append(np.log1p(variance[:n_genes]), variance[n_genes:])


def effects_of(
    variances: dict[str, DonorVariance],
    composition: DonorComposition,
    autoencoder: GeneAutoencoder,
    means: dict[str, dict[str, PopulationMeans]],
) -> DonorEffects:
    """Combine what was found in the cell types: factors of all, and the part of the variance that latents have."""
    cell_types = tuple(variances)
    n_genes = autoencoder.network.shape.n_genes
    if not cell_types:
        raise InputError("No cell type has cells of several donors; fit without donors.")
    scores = np.stack([of_type.score for of_type in variances.values()], axis=1)  # donors x types x columns
    weights = np.stack([of_type.weight for of_type in variances.values()], axis=1)
    loadings = common_factors(scores)
    by_shares = [variance_by_shares(composition, name, means[name]) for name in cell_types]
    variance = np.stack([of_type.variance for of_type in variances.values()])
    variance = np.maximum(variance - np.stack(by_shares), 0)
    populations, between = [], []
    beyond = np.zeros((len(cell_types), n_genes))
    for row, cell_type in enumerate(cell_types):
        sd = np.sqrt(variance[row])
        of_type, explained = means[cell_type], np.zeros(n_genes)
        n_counts = np.sum([of_population.n_counts for of_population in of_type.values()], axis=0)
        for name, of_population in of_type.items():
            covariance, in_latents = latent_covariance(
                loadings[:, row] * sd, variance[row, n_genes:], autoencoder.network_of(name).decoder, of_population
            )
            populations.append(name)
            between.append(covariance)
            shares = zip(of_population.n_counts / n_counts, of_population.expression, strict=True)
            explained += np.concatenate([np.full(len(part), share) for share, part in shares]) * in_latents
        beyond[row] = np.maximum(variance[row, :n_genes] - explained, 0)
    return DonorEffects(
        n_donors=len(scores),
        cell_types=cell_types,
        populations=tuple(populations),
        composition=composition,
        shared=shared_part(scores, weights, loadings),
        sd=torch.tensor(np.sqrt(variance), dtype=torch.float32),
        loadings=torch.tensor(loadings, dtype=torch.float32),
        between=torch.tensor(np.stack(between), dtype=torch.float32),
        beyond=torch.tensor(beyond, dtype=torch.float32),
    )


def common_factors(scores: np.ndarray) -> np.ndarray:
    """Principal components of donors x types x columns, as factors x types x columns of at most variance 1."""
    n_donors = len(scores)
    flat = scores.reshape(n_donors, -1)
    flat = flat - flat.mean(axis=0)
    value, vector = np.linalg.eigh(flat @ flat.T)
    kept = np.argsort(value)[::-1][: min(N_FACTORS, n_donors - 1)]
    loadings = vector[:, kept].T @ flat / np.sqrt(n_donors - 1)
    explained = (loadings**2).sum(axis=0)
    return np.asarray((loadings / np.sqrt(np.maximum(explained, 1))).reshape(len(kept), *scores.shape[1:]))


def shared_part(scores: np.ndarray, weights: np.ndarray, loadings: np.ndarray) -> float:
    """Share of the variance beyond factors that types share, by mean products of deviations over their noise."""
    n_types = scores.shape[1]
    found = expected = room = 0.0
    rest = np.sqrt(np.maximum(1 - (loadings**2).sum(axis=0), 0))
    for a in range(n_types):
        for b in range(a):
            weight = (weights[:, a] * weights[:, b]).sum(axis=0)
            found += float((scores[:, a] * scores[:, b]).sum())
            expected += float(weight @ (loadings[:, a] * loadings[:, b]).sum(axis=0))
            room += float(weight @ (rest[a] * rest[b]))
    return float(np.clip((found - expected) / room, 0, 1)) if room > 0 else 0.0


@torch.no_grad()
def latent_covariance(
    effects: np.ndarray, library_variance: np.ndarray, decoder: Decoder, means: PopulationMeans
) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of the shifts of y by which the latents of a population follow the effects of donors.

    The shift of the latent is the weighted least-squares fit of log expression by the decoder, with the information of
    the counts of a donor, and the prior of the latents.

    ``effects``: factors x (genes + library sizes); returns: dimensions x dimensions of y; and the variance of the log
    expression of each gene that these shifts cause.
    """
    expression = np.concatenate(means.expression)
    directions, n_genes = decoder.directions(expression), len(expression)
    counts = [part * (n / means.n_counts[0]) for part, n in zip(means.expression, means.n_counts, strict=True)]
    weighted = np.concatenate(counts)[:, None] * directions
    ends = np.cumsum([len(part) for part in means.expression[:-1]], dtype=int)
    of_blocks = zip(
        np.split(effects[:, :n_genes], ends, axis=1), means.expression, decoder.blocks.normalised, strict=True
    )
    genes = np.concatenate(
        [part - (part @ shares)[:, None] if is_share else part for part, shares, is_share in of_blocks], axis=1
    )
    information = directions.T @ weighted + np.eye(directions.shape[1]) * means.n_donors / means.n_counts[0]
    shift = np.linalg.solve(information, weighted.T @ genes.T).T
    y = np.column_stack([shift, effects[:, n_genes:]])
    covariance = y.T @ y
    sizes = np.arange(shift.shape[1], y.shape[1])
    covariance[sizes, sizes] = library_variance
    return covariance, ((shift @ directions.T) ** 2).sum(axis=0)


MAX_SUM = 1e4  # sum of parameters; from about there on, donors differ by the sampling of their cells alone
N_QUANTILES = 21
MIN_VARIANCE = 1e-12  # variance of logarithms of numbers that are not the same


@dataclass(frozen=True)
class DonorComposition:
    """Distribution of a donor's shares of cell types and of their populations, and of its number of cells."""

    # Parameters of the Dirichlet distribution of the shares of cell types; their sum is the concentration
    cell_types: dict[str, float]
    # For each cell type, the parameters of the Dirichlet distribution of the shares of its populations
    populations: dict[str, dict[str, float]]
    n_cells: tuple[float, ...]  # quantiles of the numbers of cells of donors, at equal distances, see :func:`quantiles`

    @property
    def concentration(self) -> float:
        """Concentration of the shares of cell types: the larger, the less donors differ."""
        return sum(self.cell_types.values())

    def with_type(
        self, name: str, populations: Sequence[str], share: float, n_cells: Sequence[float]
    ) -> DonorComposition:
        """Add a cell type with its share of all cells, and populations with their numbers of cells."""
        parameter = self.concentration * share / (1 - share)
        within = np.asarray(n_cells) / np.sum(n_cells) * MAX_SUM
        added = dict(zip(populations, within.tolist(), strict=True))
        return DonorComposition(self.cell_types | {name: parameter}, self.populations | {name: added}, self.n_cells)

    def sample(self, generator: np.random.Generator) -> tuple[pd.Series, int]:
        """Draw the shares of populations, which sum to 1, and the number of cells of a donor."""
        number, types, *within = generator.spawn(2 + len(self.populations))
        quantiles = np.linspace(0, 1, len(self.n_cells))
        n_cells = max(round(float(np.interp(number.random(), quantiles, self.n_cells))), 1)
        shares = dict(zip(self.cell_types, types.dirichlet(list(self.cell_types.values())), strict=True))
        drawn = {
            population: float(shares[cell_type] * share)
            for (cell_type, parameters), rng in zip(self.populations.items(), within, strict=True)
            for population, share in zip(parameters, rng.dirichlet(list(parameters.values())), strict=True)
        }
        return pd.Series(drawn), n_cells


def fit_composition(
    donor: np.ndarray, population: np.ndarray, cell_type_of: dict[str, str], *, share_fitted: float
) -> DonorComposition:
    """Fit the composition of donors by maximum likelihood."""
    table = pd.crosstab(donor, population).reindex(columns=list(cell_type_of), fill_value=0)
    of_type: dict[str, list[str]] = {}
    for name, cell_type in cell_type_of.items():
        of_type.setdefault(cell_type, []).append(name)
    by_type = pd.DataFrame({cell_type: table[names].sum(axis=1) for cell_type, names in of_type.items()})
    return DonorComposition(
        dirichlet_parameters(by_type),
        {cell_type: dirichlet_parameters(table[names]) for cell_type, names in of_type.items()},
        quantiles(table.sum(axis=1).to_numpy() / share_fitted),
    )


def quantiles(n_cells: np.ndarray) -> tuple[float, ...]:
    """Quantiles of numbers of cells, spread until numbers interpolated between them vary as donors do."""
    log_n = np.log(n_cells)
    found = np.quantile(log_n, np.linspace(0, 1, N_QUANTILES))
    low, high = found[:-1], found[1:]
    mean = float((low + high).mean() / 2)
    variance = float((low**2 + low * high + high**2).mean() / 3 - mean**2)
    if variance > MIN_VARIANCE:
        found = mean + (found - mean) * np.sqrt(certainty(len(n_cells)) * log_n.var(ddof=1) / variance)
    return tuple(np.round(np.exp(found), 1).tolist())


def dirichlet_parameters(numbers: pd.DataFrame) -> dict[str, float]:
    """Fit a Dirichlet-multinomial to donors x groups by maximum likelihood; few donors have less variance."""
    counts = numbers.to_numpy(dtype=float)
    counts = counts[counts.sum(axis=1) > 0]
    n_donors, n_groups = counts.shape
    if n_groups == 1:
        return {str(numbers.columns[0]): MAX_SUM}
    totals = counts.sum(axis=1)
    start = np.log(np.maximum(counts.mean(axis=0), 1e-3) / counts.mean(axis=0).sum() * 10)

    def negative(log_parameters: np.ndarray) -> tuple[float, np.ndarray]:
        a = np.exp(log_parameters)
        total = a.sum()
        value = (gammaln(total) - gammaln(totals + total)).sum() + (gammaln(counts + a) - gammaln(a)).sum()
        slope = (digamma(total) - digamma(totals + total)).sum() + (digamma(counts + a) - digamma(a)).sum(axis=0)
        return -float(value), -slope * a

    bounds = [(np.log(1e-4), np.log(MAX_SUM))] * n_groups
    found = np.exp(minimize(negative, start, jac=True, bounds=bounds, method="L-BFGS-B").x)
    total = min(found.sum(), MAX_SUM)
    kept = certainty(n_donors)
    concentration = min((total + 1) / kept - 1, MAX_SUM) if kept > 0 else MAX_SUM
    parameters = found / found.sum() * concentration
    return dict(zip(map(str, numbers.columns), parameters.tolist(), strict=True))
