"""Differences between donors: estimated from counts, and sampled for new donors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property, partial
from typing import ClassVar

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.errors import InputError
from bdm._core.seeds import to_tensor
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.decoder import Decoder
from bdm.autoencoder.inputs import batch_codes
from bdm.autoencoder.moments import PopulationMoments, Whitening
from bdm.autoencoder.observation import ObservationModel
from bdm.data.filters import is_fitted
from bdm.data.modalities import Modality, blocks_of
from bdm.data.prepare import has_donors
from bdm.effects.donor_composition import DonorComposition, fit_composition
from bdm.effects.donor_variance import (
    FEW_DONORS,
    KEYS,
    DonorVariance,
    Groups,
    certainty,
    donor_variance,
    group_cells,
    pseudobulks,
)
from bdm.effects.effect import CellsToFit, Effect, LatentSpace, Shift, shifts_in

N_FACTORS = 30  # maximum number of factors of donor effects
MAX_DONOR_SHARE = 0.9  # largest fraction of the variance in any direction that is between donors


@dataclass(frozen=True, eq=False)
class DonorEffects(Effect, name="donors"):
    """Distribution of donor effects.

    A donor changes the log expression of gene g in cell type c by ``sd[c, g] u - sd[c, g]**2 / 2``. Here
    ``u = sum_k loadings[k, c, g] f_k + residual``; the factors f_k are independent standard normals, and u has unit
    variance. Cell types share the fraction ``shared_fraction`` of the residual variance. Log library sizes are
    treated as further genes.
    """

    is_random: ClassVar[bool] = True

    n_donors: int
    cell_types: tuple[str, ...]  # cell types with cells of several donors; the only ones with effects
    populations: tuple[str, ...]  # populations of these types
    composition: DonorComposition
    shared_fraction: float
    sd: Tensor  # standard deviation between donors, cell types x (genes + library sizes)
    loadings: Tensor  # factors x cell types x (genes + library sizes)
    # covariance between donors of the mean of y = (latent, log library sizes), populations x dimensions x dimensions
    latent_covariance: Tensor
    unexplained_variance: Tensor  # between donors, which the latent space cannot express; cell types x genes

    @classmethod
    def fit(cls, cells: CellsToFit) -> DonorEffects | None:
        """Estimate donor effects; see :func:`fit_donors`."""
        return fit_donors(cells.prepared, cells.latent, cells.autoencoder, shifts_in(cells.effects))

    @property
    def inputs(self) -> tuple[str, ...]:
        """No columns: cells differ by donor only once new donors are sampled, see :class:`NewDonors`."""
        return ()

    @property
    def n_genes(self) -> int:
        """Number of features: genes, proteins and peaks."""
        return self.unexplained_variance.shape[1]

    @property
    def summary(self) -> str:
        """One-sentence summary for reports, with a warning if donors are few."""
        kept, median = certainty(self.n_donors), float(self.sd[:, : self.n_genes].median())
        spread = f"standard deviation of log expression {median:.2f} (median over genes and cell types)"
        summary = f"{self.n_donors} donors, {spread}"
        if kept < 1:
            return f"{summary}; with fewer than {FEW_DONORS} donors the estimate is uncertain and shrunk to {kept:.0%}"
        return summary


@dataclass(frozen=True, eq=False)
class DonorModel:
    """Distribution of donors. Donors do not differ within added cell types."""

    effects: DonorEffects
    composition: DonorComposition  # of all cell types of the model, including added ones
    whitening: Whitening
    moments: PopulationMoments
    cell_type_of: dict[str, str]  # cell type of each population of the model

    @property
    def n_donors(self) -> int:
        """Number of donors in the training data."""
        return self.effects.n_donors

    def sample(self, n: int, generator: np.random.Generator) -> NewDonors:
        """Sample new donors; donor i does not depend on ``n``."""
        effects = self.effects
        n_types, n_columns = effects.sd.shape
        loadings = effects.loadings.double().numpy()
        residual = np.sqrt(np.maximum(1 - (loadings**2).sum(axis=0), 0))
        deviation, proportions, n_cells = np.zeros((n, n_types, n_columns), np.float32), [], []
        for number, rng in enumerate(generator.spawn(n)):
            for_factors, for_shared, for_types, for_cells = rng.spawn(4)
            factors = np.einsum("k,kcg->cg", for_factors.standard_normal(len(loadings)), loadings)
            shared, own = for_shared.standard_normal(n_columns), for_types.standard_normal((n_types, n_columns))
            fraction = effects.shared_fraction
            mixed = np.sqrt(fraction) * shared + np.sqrt(1 - fraction) * own
            deviation[number] = factors + residual * mixed
            donor_proportions, donor_n_cells = self.composition.sample(for_cells)
            proportions.append(donor_proportions)
            n_cells.append(donor_n_cells)
        names = tuple(f"donor-{number}" for number in range(1, n + 1))
        table = pd.DataFrame(proportions, index=list(names))
        return NewDonors(names, self, deviation, table, np.array(n_cells, dtype=int))

    @cached_property
    def contractions(self) -> dict[str, Tensor]:
        """Linear maps that remove the variance between donors, by population.

        The map is ``C**1/2 (I - E)**1/2 C**-1/2`` with ``E = C**-1/2 B C**-1/2``, for the covariance C of all cells and
        B between donors. Mapped cells have covariance ``C - B``. All are dimensions x dimensions, in whitened space.
        """
        maps = {}
        for row, name in enumerate(self.effects.populations):
            between = self.whitening.linear(self.whitening.linear(self.effects.latent_covariance[row]).T).double()
            covariance = self.moments.covariance[self.moments.populations.index(name)].double()
            value, axes = torch.linalg.eigh(covariance)
            root = value.clamp(min=1e-8).sqrt()
            half, inverse = (axes * root) @ axes.T, (axes / root) @ axes.T
            share, directions = torch.linalg.eigh(inverse @ between @ inverse)
            kept = (1 - share.clamp(0, MAX_DONOR_SHARE)).sqrt()
            maps[name] = (half @ (directions * kept) @ directions.T @ inverse).float()
        return maps


@dataclass(frozen=True, eq=False)
class DonorInput(Effect):
    """Effect of the donors of a design."""

    names: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that the effect reads."""
        return ("donor",)

    @property
    def summary(self) -> str:
        """Short summary for reports."""
        return f"{len(self.names)} new donors"

    def codes(self, at: pd.DataFrame) -> np.ndarray:
        """Return the index of each cell's donor."""
        return np.asarray(pd.Index(self.names).get_indexer(at["donor"]))

    @abstractmethod
    def log_expression(self, population: str) -> np.ndarray:
        """Return offsets of log expression, donors x genes."""

    @cached_property
    def offsets(self) -> Callable[[str], Tensor]:
        """Cached function: :meth:`log_expression` of a population, as a tensor."""
        return cache(lambda population: to_tensor(self.log_expression(population).astype(np.float32)))

    def offset(self, at: pd.DataFrame, population: str) -> Tensor:
        """Return offsets of log expression, cells x genes."""
        return self.offsets(population)[to_tensor(self.codes(at))]


@dataclass(frozen=True, eq=False)
class NewDonors(DonorInput):
    """Donors sampled from a :class:`DonorModel`."""

    model: DonorModel
    deviation: np.ndarray  # in standard deviations, donors x cell types with effects x (genes + library sizes)
    proportions: pd.DataFrame  # donors x populations; rows sum to 1
    n_cells: np.ndarray  # cells per donor

    def row(self, population: str) -> int | None:
        """Return the row of a population's cell type, or None without effects."""
        effects = self.model.effects
        if population not in effects.populations:
            return None
        return effects.cell_types.index(self.model.cell_type_of[population])

    def move(self, x: Tensor, at: pd.DataFrame, population: str, space: LatentSpace) -> Tensor:
        """Reduce whitened cells to the spread within donors, and shift their library sizes."""
        row = self.row(population)
        if row is None:
            return x
        model, mean, donor = self.model, space.mean(population), self.codes(at)
        sizes = slice(model.effects.n_genes, None)  # last columns of effects, and last coordinates of y
        shift = model.effects.sd[row, sizes] * torch.tensor(self.deviation[donor, row, sizes])
        y = torch.cat([torch.zeros(len(x), x.shape[1] - shift.shape[1]), shift], dim=1)
        return mean + (x - mean) @ model.contractions[population].T + model.whitening.linear(y)

    def log_expression(self, population: str) -> np.ndarray:
        """Return offsets of log expression, donors x genes.

        The expected fold change, over donors, is 1.
        """
        row = self.row(population)
        genes = slice(0, self.model.effects.n_genes)
        sd = self.model.effects.sd[:, genes].double().numpy()
        if row is None:
            return np.zeros((len(self.names), sd.shape[1]))
        return np.asarray(self.deviation[:, row, genes] * sd[row] - sd[row] ** 2 / 2)

    def observation(self, observation: ObservationModel, population: str) -> ObservationModel:
        """Remove the variance that :meth:`log_expression` adds from an observation model."""
        row = self.row(population)
        return observation if row is None else observation.within(self.model.effects.unexplained_variance[row])


# ---- fit


def fit_donors(
    prepared: ad.AnnData, latent: ad.AnnData, autoencoder: GeneAutoencoder, effects: Sequence[Shift] = ()
) -> DonorEffects | None:
    """Estimate donor effects from training and validation cells; None without donors.

    Differences between donors that follow from ``effects``, such as their ages, are no donor effects.
    """
    if not has_donors(prepared):
        return None
    rows = np.flatnonzero(is_fitted(prepared.obs))
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
    n_latent = autoencoder.network.shape.n_latent
    z, shift = np.asarray(latent.X[rows])[:, :n_latent], shift_of_cells(obs, effects, latent.n_vars)
    log_sizes = iter(shift[:, n_latent:].T)
    blocks = blocks_of(autoencoder.genes)
    groups = [
        group_cells(prepared, rows, codes, block, shift=next(log_sizes) if block.normalised else 0.0)
        for block in blocks
    ]
    group_shift = pd.DataFrame(shift[:, :n_latent]).groupby([codes[key] for key in KEYS]).mean().to_numpy()
    mean = pd.DataFrame(z).groupby(codes["population"].to_numpy()).mean() if effects else None
    batch_factors = autoencoder.network.decoder.batch_factors()

    def factors(features: slice, table: pd.DataFrame) -> np.ndarray:
        factor = np.asarray(batch_factors[table["batch"]])
        if mean is not None:
            for code, members in table.groupby("population").indices.items():
                decoder = autoencoder.network_of(autoencoder.populations[code]).decoder
                factor[members] *= fold_changes(
                    decoder, mean.loc[code].to_numpy(), group_shift[table.index[members]], table["batch"].iloc[members]
                )
        return factor[:, features]

    by_block = [
        pseudobulks(part, partial(factors, block.features), n_donors=len(names))
        for part, block in zip(groups, blocks, strict=True)
    ]
    estimates = {code: [donor_variance(bulks[code]) for bulks in by_block] for code in by_block[0]}
    variances = {
        autoencoder.cell_types[code]: joined_variance([part for part in parts if part is not None], blocks)
        for code, parts in estimates.items()
        if None not in parts
    }
    cell_type_of = {
        name: cell_type for cell_type in autoencoder.cell_types for name in autoencoder.populations_of(cell_type)
    }
    means = population_means(groups, blocks, z, population, autoencoder)
    composition = fit_composition(donors, population, cell_type_of, share_fitted=len(rows) / prepared.n_obs)
    return combine_effects(variances, composition, autoencoder, means)


def shift_of_cells(obs: pd.DataFrame, effects: Sequence[Shift], n_dims: int) -> np.ndarray:
    """Sum the shifts of y by effects, cells x dimensions; 0 for cells with missing inputs."""
    shift = np.zeros((len(obs), n_dims), dtype=np.float32)
    for (cell_type, population), members in obs.groupby(["cell_type", "sub_population"], observed=True).indices.items():
        for effect in effects:
            shift[members] += effect.latent(obs.iloc[members], population, cell_type).numpy()
    return np.nan_to_num(shift)


@torch.no_grad()
def fold_changes(decoder: Decoder, mean: np.ndarray, shift: np.ndarray, batch: pd.Series) -> np.ndarray:
    """Return the fold changes of expression by shifts (groups x latent dimensions) of a mean latent."""
    centre, batches = torch.from_numpy(mean).expand(len(shift), -1), torch.from_numpy(batch.to_numpy())
    before, after = (decoder.decode(z, batches) for z in (centre, centre + torch.from_numpy(shift)))
    return np.asarray((after - before).double().exp().numpy())


def joined_variance(parts: Sequence[DonorVariance], blocks: Sequence[Modality]) -> DonorVariance:
    """Concatenate blocks: features of all, then their library sizes."""

    def joined(values: Sequence[np.ndarray]) -> np.ndarray:
        sizes = [value[..., -1:] for value, block in zip(values, blocks, strict=True) if block.normalised]
        return np.concatenate([*(value[..., :-1] for value in values), *sizes], axis=-1)

    return DonorVariance(*(joined([getattr(part, entry.name) for part in parts]) for entry in fields(DonorVariance)))


@dataclass(frozen=True)
class PopulationMeans:
    """Means over the cells of a population."""

    expression: tuple[np.ndarray, ...]  # decoded from the mean latent, as in generated cells, by block
    log_library_sizes: tuple[float, ...]  # mean, by block
    n_counts: tuple[float, ...]  # total counts by block; number of cells for proteins
    n_donors: int  # number of donors with cells


@torch.no_grad()
def population_means(
    groups: Sequence[Groups],
    blocks: Sequence[Modality],
    latent: np.ndarray,
    population: np.ndarray,
    autoencoder: GeneAutoencoder,
) -> dict[str, dict[str, PopulationMeans]]:
    """Compute the means of populations by cell type; ``latent``: cells x latent dimensions."""
    means: dict[str, dict[str, PopulationMeans]] = {}
    for (population_code, code), first_table in groups[0].table.groupby(["cell_type", "population"]):
        tables = [part.table.loc[first_table.index] for part in groups]
        name = autoencoder.populations[int(code)]
        decoder = autoencoder.network_of(name).decoder
        mean = torch.from_numpy(latent[population == name].mean(axis=0, keepdims=True))
        expression = decoder.decode(mean)[0].exp()
        means.setdefault(autoencoder.cell_types[int(population_code)], {})[name] = PopulationMeans(
            tuple(expression.double().numpy()[block.features] for block in blocks),
            tuple(
                float(table["log_library_size"].sum() / table["n_cells"].sum())
                for table, block in zip(tables, blocks, strict=True)
                if block.normalised
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
    for block in range(len(next(iter(means.values())).expression)):
        n_counts = np.array([mean.n_counts[block] for mean in means.values()])
        expression = np.stack([mean.expression[block] for mean in means.values()])
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
    populations, covariances = [], []
    unexplained = np.zeros((len(cell_types), n_genes))
    for row, cell_type in enumerate(cell_types):
        sd = np.sqrt(variance[row])
        explained = np.zeros(n_genes)
        n_counts = np.sum([mean.n_counts for mean in means[cell_type].values()], axis=0)
        for name, mean in means[cell_type].items():
            covariance, in_latents = latent_covariance(
                loadings[:, row] * sd, variance[row, n_genes:], autoencoder.network_of(name).decoder, mean
            )
            populations.append(name)
            covariances.append(covariance)
            fractions = zip(mean.n_counts / n_counts, mean.expression, strict=True)
            explained += np.concatenate([np.full(len(part), fraction) for fraction, part in fractions]) * in_latents
        unexplained[row] = np.maximum(variance[row, :n_genes] - explained, 0)
    return DonorEffects(
        n_donors=len(scores),
        cell_types=cell_types,
        populations=tuple(populations),
        composition=composition,
        shared_fraction=fit_shared_fraction(scores, weights, loadings),
        sd=torch.tensor(np.sqrt(variance), dtype=torch.float32),
        loadings=torch.tensor(loadings, dtype=torch.float32),
        latent_covariance=torch.tensor(np.stack(covariances), dtype=torch.float32),
        unexplained_variance=torch.tensor(unexplained, dtype=torch.float32),
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


def fit_shared_fraction(scores: np.ndarray, weights: np.ndarray, loadings: np.ndarray) -> float:
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
