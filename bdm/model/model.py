"""The branched model, its extensions and its files."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from bdm._core.errors import InputError, abbreviated
from bdm._core.files import provenance, sha256, storable
from bdm._core.parallel import using_threads
from bdm._core.store import checksum_of, load, reject_if_damaged, save
from bdm._core.training import device_of
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.latent import LatentLayout, encode
from bdm.autoencoder.moments import Mixture, PopulationMoments, Whitening
from bdm.autoencoder.observation import GrowingNegativeBinomial, ObservationModel
from bdm.autoencoder.protein_levels import ProteinLevels, map_quantiles
from bdm.autoencoder.sub_populations import SubPopulations
from bdm.data.genes import GeneNames
from bdm.data.read import read_cells
from bdm.effects.covariates import CovariateEffects
from bdm.effects.donors import DonorEffects, DonorModel
from bdm.effects.effect import Effect, LatentSpace, joined_effects, shifts_in, with_residuals
from bdm.effects.space import SpatialEffects
from bdm.hierarchy.build import FEW_CELLS, AttachmentPoint, with_new_type
from bdm.hierarchy.tree import Hierarchy
from bdm.prior.base import LatentPrior, Sampler

logger = logging.getLogger(__name__)

ABOUT = "Synthetic cells, computed by bdm with a model of measured cells; they are no measurements."


@dataclass(frozen=True, eq=False)
class Extension:
    """Parameters of an added cell type."""

    cell_type: str
    attachment: AttachmentPoint  # where the type leaves the hierarchy of the extended model
    support: float | None  # share of resamples of its cells that leave the same branch; None without resamples
    tree: Hierarchy  # branches of the type's populations, from the attachment point down
    # Type-specific decoders of the populations, and of the type if it has several
    adapters: Adapters
    sub_populations: SubPopulations  # sub-populations of the type; empty if it has a single population
    moments: PopulationMoments  # moments of the populations in whitened space
    # Parameters of the prior on branches of ``tree``, in addition to moments; see
    # :meth:`bdm.prior.base.LatentPrior.fit_added`
    prior_state: dict[str, Tensor]
    library_sizes: Tensor  # smallest and largest log library size of its cells
    composition: pd.DataFrame  # number of its cells, populations x batches
    batches: dict[str, Tensor]  # gene offsets of new batches, by name
    provenance: dict[str, Any]  # record; ``ancestor_sha256`` is the checksum of the extended model
    # Protein quantiles by population: in training cells, and in generated cells before mapping to training cells
    levels: dict[str, Tensor] = field(default_factory=dict)
    generated_levels: dict[str, ProteinLevels] = field(default_factory=dict)
    noise: dict[str, GrowingNegativeBinomial] = field(default_factory=dict)  # of generated counts, by population
    effects: dict[str, Effect] = field(default_factory=dict)  # on the type, by name

    @property
    def n_cells(self) -> int:
        """Number of cells that the type was fitted to."""
        return int(self.composition.to_numpy().sum())


@dataclass(frozen=True)
class BranchedModel:
    """Generative model of cells: autoencoder, whitening, prior and composition of the data."""

    autoencoder: GeneAutoencoder
    whitening: Whitening
    moments: PopulationMoments
    prior: LatentPrior
    # Number of cells, populations x batches; without batches, a single column ``n_cells``
    composition: pd.DataFrame
    # Smallest and largest log library size of training cells, which bound generated cells; with several modalities,
    # 2 x modalities
    library_sizes: Tensor
    provenance: dict[str, Any]  # versions, seeds, settings and checksum of the data
    # Effects by name, in the order of their fit; shifts include extensions, effects of positions and donors do not
    effects: dict[str, Effect] = field(default_factory=dict)
    # Protein levels of generated cells by population, before mapping to training cells
    levels: dict[str, ProteinLevels] = field(default_factory=dict)
    extensions: tuple[Extension, ...] = ()  # in order of addition; all other fields include them
    base: BranchedModel | None = None  # model before any extension; None without extensions

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Cell types that the model generates."""
        return self.autoencoder.cell_types

    @property
    def populations(self) -> tuple[str, ...]:
        """Populations of all cell types: the leaves of the hierarchy."""
        return self.moments.populations

    @property
    def cell_type_of(self) -> dict[str, str]:
        """Cell type of each population."""
        populations_of = self.autoencoder.populations_of
        return {name: cell_type for cell_type in self.cell_types for name in populations_of(cell_type)}

    @property
    def composition_of_types(self) -> pd.DataFrame:
        """Number of cells, cell types x batches."""
        return self.composition.groupby(self.composition.index.map(self.cell_type_of), sort=False).sum()

    def n_training_cells(self, cell_type: str, batch: str | None = None) -> pd.Series:
        """Return the number of training cells of each population of a type.

        With ``batch``, only its cells are counted, unless the type has none there.
        """
        numbers = self.composition.loc[list(self.autoencoder.populations_of(cell_type))]
        in_batch = batch is not None and numbers[batch].any()
        return numbers[batch] if in_batch else numbers.sum(axis=1)

    @property
    def covariates(self) -> CovariateEffects | None:
        """Effects of covariates; None without covariates."""
        return effect_of(self.effects, CovariateEffects)

    @property
    def space(self) -> SpatialEffects | None:
        """Effects of positions; None without positions."""
        return effect_of(self.effects, SpatialEffects)

    @property
    def donor_effects(self) -> DonorEffects | None:
        """Effects of donors; None without donors."""
        return effect_of(self.effects, DonorEffects)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the covariates, and of other inputs of effects that shift latents, except for batches."""
        return tuple(name for effect in shifts_in(self.effects) for name in effect.inputs if name != "batch")

    @property
    def hierarchy(self) -> Hierarchy:
        """Tree of populations with noise levels of branches."""
        return self.prior.hierarchy

    def sampler(self) -> Sampler:
        """Return a sampler of whitened cells."""
        return self.prior.sampler()

    @property
    def layout(self) -> LatentLayout:
        """Coordinates of latent space: latent dimensions and log library sizes."""
        return LatentLayout(self.autoencoder.network.shape.n_latent, self.autoencoder.size_names)

    def encode(self, cells: AnnData) -> AnnData:
        """Encode prepared cells as in :mod:`bdm.autoencoder.latent`, without effects of batches and covariates."""
        return with_residuals(encode(cells, self.autoencoder), shifts_in(self.effects))

    @property
    def learned(self) -> dict[str, str]:
        """What each effect has learned, by name, for reports."""
        return learned_effects(self.autoencoder, self.effects)

    @property
    def latent_space(self) -> LatentSpace:
        """Whitened space, for effects."""
        return LatentSpace(self.whitening, self.moments, self.cell_type_of)

    def effects_at(self, at: pd.DataFrame) -> list[Effect]:
        """Return the effects whose inputs are columns of ``at``."""
        return [effect for effect in self.effects.values() if set(effect.inputs) <= set(at.columns)]

    def moved(self, x: Tensor, population: str, at: pd.DataFrame) -> Tensor:
        """Move whitened cells of a population to their inputs, such as batch and covariates (columns of ``at``)."""
        for effect in reversed(self.effects_at(at)):  # the effects that were fitted last are within the others
            x = effect.move(x, at, population, self.latent_space)
        return x

    def with_protein_levels(
        self, counts: sparse.csr_matrix, population: str, generator: np.random.Generator
    ) -> sparse.csr_matrix:
        """Map protein counts of generated cells to the quantiles of training cells."""
        if population not in self.levels:
            return counts
        columns = self.autoencoder.proteins
        levels = self.levels[population].quantiles, self.autoencoder.levels[population]
        mapped = map_quantiles(counts[:, columns].toarray(), *levels, generator)
        proteins = sparse.csr_matrix(mapped, dtype=counts.dtype)
        return sparse.csr_matrix(sparse.hstack([counts[:, : columns.start], proteins, counts[:, columns.stop :]]))

    def conditioned(self, coordinate: str, value: float) -> BranchedModel:
        """Condition the model on a value of a coordinate.

        ``coordinate`` is a name in :attr:`layout`, such as ``log_library_size``, and ``value`` is not whitened.
        Populations are weighted within their cell type by their density at the value.
        """
        index = self.layout.index(coordinate)
        along, value = self.whitening.direction(index), value - float(self.whitening.centre[index])
        moments = self.moments
        normals = Mixture(torch.ones(len(moments.mean)), moments.mean.double(), moments.covariance.double())
        density = pd.Series(normals.log_densities_along(along, value).numpy(), moments.populations)
        highest = density.groupby(density.index.map(self.cell_type_of)).transform("max")
        weight = np.exp(density - highest)[self.composition.index]
        return replace(self, prior=self.prior.condition(along, value), composition=self.composition.mul(weight, axis=0))

    @property
    def donors(self) -> DonorModel | None:
        """Distribution of new donors; None for a model fitted without donors."""
        if self.donor_effects is None:
            return None
        composition, n_cells = self.donor_effects.composition, self.composition.sum(axis=1)
        n_before = 0.0  # cells of the types before, to which each added type is compared
        for cell_type in self.cell_types:
            populations = self.autoencoder.populations_of(cell_type)
            numbers = [float(n_cells.get(name, 0)) for name in populations]
            if cell_type not in composition.cell_types:
                share = sum(numbers) / (n_before + sum(numbers))
                composition = composition.with_type(cell_type, populations, share, numbers)
            n_before += sum(numbers)
        return DonorModel(self.donor_effects, composition, self.whitening, self.moments, self.cell_type_of)

    def library_range(self, population: str | None) -> tuple[Tensor, Tensor]:
        """Return the range of log library sizes of a population."""
        ranges: dict[str | None, Tensor] = {
            name: extension.library_sizes
            for extension in self.extensions
            for name in (extension.cell_type, *extension.moments.populations)
        }
        smallest, largest = ranges.get(population, self.library_sizes)
        return smallest, largest

    @property
    def gene_names(self) -> GeneNames:
        """Names and symbols of the genes."""
        return GeneNames(self.autoencoder.genes, self.autoencoder.provenance["prepare"].get("gene_symbols"))

    @property
    def form(self) -> str | None:
        """Storage form of several modalities, see :mod:`bdm.data.modalities`; None for RNA."""
        return self.autoencoder.provenance.get("form")

    @property
    def label_key(self) -> str | None:
        """Column of cell types in the data; None without labels."""
        key = self.preparation["label_key"]
        return None if key is None else str(key)

    @property
    def preparation(self) -> dict[str, Any]:
        """Settings of the preparation of the data."""
        return dict(self.autoencoder.provenance["prepare"])


Kind = TypeVar("Kind", bound=Effect)


def effect_of(effects: Mapping[str, Effect], kind: type[Kind]) -> Kind | None:
    """Return the effect of a class, or None."""
    return next((effect for effect in effects.values() if isinstance(effect, kind)), None)


def learned_effects(autoencoder: GeneAutoencoder, effects: Mapping[str, Effect]) -> dict[str, str]:
    """Describe effects by name."""
    learned = {name: effect.summary for name, effect in effects.items()}
    if "batches" in learned or not autoencoder.batches:
        return learned
    return {"batches": f"{len(autoencoder.batches)}, offsets of genes", **learned}


@torch.no_grad()
def expected_counts(model: BranchedModel, x: Tensor, at: pd.DataFrame, population: str | None = None) -> np.ndarray:
    """Decode whitened cells to mean counts.

    Parameters
    ----------
    model
        Model with the decoder and effects.
    x
        Whitened cells at their inputs, see :meth:`BranchedModel.moved`; cells x dimensions.
    at
        Inputs of each cell. Without a column ``batch``, expression is averaged over batches.
    population
        Population whose decoder and effects are used; None for the shared decoder without effects on genes.

    Returns
    -------
    Mean counts, cells x genes.
    """
    y, layout = model.whitening.inverse(x), model.layout
    decoder, codes = model.autoencoder.network_of(population).decoder, model.autoencoder.batch_codes(at.get("batch"))
    log_size = y[:, layout.library_sizes].clamp(*model.library_range(population))
    offset = None if population is None else log_expression_at(model, at, population)
    log_mean = decoder.decode(y[:, layout.latent], codes, log_size=log_size, offset=offset)
    if population in model.levels:
        log_mean[:, model.autoencoder.proteins] += model.levels[population].log_factor
    return log_mean.exp().numpy()


def log_expression_at(model: BranchedModel, at: pd.DataFrame, population: str) -> Tensor | None:
    """Sum the offsets of log expression by effects, cells x genes; None without any."""
    offsets = [effect.offset(at, population) for effect in model.effects_at(at)]
    present = [offset for offset in offsets if offset is not None]
    return torch.stack(present).sum(dim=0) if present else None


def generated_noise(model: BranchedModel, population: str, at: pd.DataFrame | None = None) -> ObservationModel:
    """Return the observation model of generated counts in a population, at the inputs in the columns of ``at``."""
    noise: ObservationModel | None = model.autoencoder.noise.get(population)
    noise = observation_model(model, population) if noise is None else noise
    for effect in [] if at is None else model.effects_at(at):
        noise = effect.observation(noise, population)
    return noise


@torch.no_grad()
def observation_model(model: BranchedModel, population: str) -> ObservationModel:
    """Return the observation model of the decoder of a population."""
    code = torch.tensor(model.autoencoder.population_code(population))
    return model.autoencoder.network_of(population).decoder.observation(code)


def composition_of(obs: pd.DataFrame) -> pd.DataFrame:
    """Count cells, populations (or types) x batches (or ``n_cells``)."""
    batch = obs["batch"].astype(str) if "batch" in obs else pd.Series("n_cells", index=obs.index)
    population = obs["sub_population" if "sub_population" in obs else "cell_type"].astype(str)
    return pd.crosstab(population, batch).rename_axis(index=None, columns=None)


def warn_of_rare_types(model: BranchedModel, cell_types: Collection[str]) -> None:
    """Warn of cell types with too few training cells for realistic cells."""
    n_cells = model.composition_of_types.sum(axis=1)
    few = [f"{name} ({n})" for name, n in n_cells.items() if name in cell_types and n < FEW_CELLS]
    if few:
        names = abbreviated(few, n_shown=5)
        logger.warning("Types of fewer than %d training cells, too few for realistic cells: %s.", FEW_CELLS, names)


def extended(model: BranchedModel, extension: Extension) -> BranchedModel:
    """Add a cell type; cells of other types stay identical."""
    autoencoder, row = model.autoencoder.with_batches(extension.batches), model.prior.n_rows
    autoencoder = autoencoder.with_type(extension.cell_type, extension.adapters, extension.sub_populations)
    autoencoder = replace(
        autoencoder, levels=autoencoder.levels | extension.levels, noise=autoencoder.noise | extension.noise
    )
    hierarchy = with_new_type(model.hierarchy, extension.tree, extension.attachment, row=row, support=extension.support)
    return replace(
        model,
        autoencoder=autoencoder,
        effects=joined_effects(model.effects, extension.effects),
        moments=model.moments.joined(extension.moments),
        prior=model.prior.extended(hierarchy, extension.tree, extension.moments, extension.prior_state),
        composition=with_more_cells(model.composition, extension.composition),
        extensions=(*model.extensions, extension),
        base=model.base or model,
        levels=model.levels | extension.generated_levels,
    )


def with_more_cells(composition: pd.DataFrame, added: pd.DataFrame) -> pd.DataFrame:
    """Add numbers of cells; new rows and columns come last."""
    rows = composition.index.union(added.index, sort=False)  # the order determines the cells of known populations
    columns = composition.columns.union(added.columns, sort=False)
    before, new = (table.reindex(index=rows, columns=columns, fill_value=0) for table in (composition, added))
    return before + new


def checksums(files: Mapping[str, Path | None], *, model: Path | None) -> dict[str, str]:
    """Return checksums by name of input files and the model, skipping None."""
    values = {name: sha256(file) for name, file in files.items() if file is not None}
    return values if model is None else {**values, "model": checksum_of(model, "model")}


def record_of_cells(model: BranchedModel, *, seed: int, **facts: Any) -> dict[str, Any]:
    """Return the record of computed cells for ``uns['bdm']``, with ``facts``."""
    license, data_sha256 = model.preparation.get("license"), model.autoencoder.provenance.get("data_sha256")
    return storable(provenance(seed=seed, about=ABOUT, license=license, data_sha256=data_sha256, **facts))


def is_of_model(path: Path, checksum: str) -> bool:
    """Return whether a file's cells may be this model's; else warn."""
    recorded = read_cells(path, on_disk=True).uns.get("bdm", {}).get("model_sha256") if path.exists() else None
    if recorded in (None, checksum):
        return True
    logger.warning("Not shown: %s has cells of another model than the one next to it; make them again.", path)
    return False


@dataclass(frozen=True)
class StoredModel:
    """Content of a model's folder: the base model and its extensions."""

    base: BranchedModel
    extensions: tuple[Extension, ...]


def save_model(folder: Path, model: BranchedModel) -> str:
    """Write ``model.json`` and ``model.safetensors``; return the checksum."""
    return save(folder, "model", StoredModel(model.base or model, model.extensions))


@using_threads()
def load_model(folder: Path, *, device: str = "cpu") -> BranchedModel:
    """Read a model from its folder, and move its prior to ``device``."""
    torch_device, stored = device_of(device), load(folder, "model", StoredModel)
    with reject_if_damaged(folder):
        model = replace(stored.base, prior=stored.base.prior.to(torch_device))
        for extension in stored.extensions:
            model = extended(model, extension)
    return model


def type_specific_genes(model: BranchedModel, name: str) -> pd.DataFrame:
    """Compare the shared and the type-specific decoder gene by gene.

    Parameters
    ----------
    model
        Model with the decoders.
    name
        Cell type or population.

    Returns
    -------
    Table of genes with ``shared`` and ``type_specific`` expression (CP10k) and ``log2_fold_change`` (with a pseudocount
    of 1), the largest absolute changes first.
    """
    shared, specific = (1e4 * np.exp(values) for values in log_expression(model, name))
    names = model.gene_names
    table = pd.DataFrame({"shared": shared, "type_specific": specific}, index=names.index.rename("gene"))
    table["log2_fold_change"] = np.log2((table["type_specific"] + 1) / (table["shared"] + 1))
    if names.differ:
        table.insert(0, "symbol", names.labels)
    return table.sort_values("log2_fold_change", key=np.abs, ascending=False, kind="stable")


@torch.no_grad()
def log_expression(model: BranchedModel, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode the mean latent of a type or population to log expression, by the shared and its own decoder."""
    populations = model.autoencoder.populations_of(name)
    if len(populations) > 1 and name not in model.autoencoder.adapters:
        raise InputError(
            f"{name!r} has no decoder of its own, but its sub-populations do; name one: {abbreviated(populations)}."
        )
    y = model.whitening.inverse(model.moments.mixture_moments(populations).mean[None])
    decoders = (model.autoencoder.network_of(each).decoder for each in (None, name))
    shared, specific = (decoder.decode(y[:, model.layout.latent])[0].double().numpy() for decoder in decoders)
    return shared, specific
