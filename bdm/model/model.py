"""The branched model: its parts, extensions and files, and the genes that type-specific decoders change."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from bdm._core.errors import abbreviated
from bdm._core.files import provenance, sha256, storable
from bdm._core.parallel import using_threads
from bdm._core.store import checksum_of, load, reject_if_damaged, save
from bdm._core.training import device_of
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.levels import Levels, mapped
from bdm.autoencoder.observation import ObservationModel
from bdm.autoencoder.sub_populations import SubPopulations
from bdm.covariates.effects import CovariateEffects, with_residuals
from bdm.data.genes import GeneNames
from bdm.data.read import read_cells
from bdm.donors.draw import DonorModel
from bdm.donors.effects import DonorEffects
from bdm.hierarchy.build import AttachmentPoint, with_new_type
from bdm.hierarchy.clustering import FEW_CELLS
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import LatentLayout, encode
from bdm.latent.moments import Mixture, PopulationMoments, Whitening
from bdm.prior.base import LatentPrior, Sampler
from bdm.settings import SamplerSettings

logger = logging.getLogger(__name__)

ABOUT = "Synthetic cells, computed by bdm with a model of measured cells; they are no measurements."


@dataclass(frozen=True, eq=False)
class Extension:
    """Parameters of one more cell type, without anything that others use."""

    cell_type: str
    attachment: AttachmentPoint  # where the type leaves the hierarchy of the model that is extended
    support: float | None  # share of resamples of its cells that leave the same branch; None without resamples
    # Branches of the populations, from the attachment point down: one leaf, or the clade of a type with several
    tree: Hierarchy
    # Type-specific decoders of the populations, in the latent space of the model; of a type with several, also its own
    adapters: Adapters
    sub_populations: SubPopulations  # of the type; none if it is one population
    moments: PopulationMoments  # of the populations, in whitened space
    # What the prior learned of the branches of ``tree`` beyond the moments, see
    # :meth:`bdm.prior.base.LatentPrior.fit_added`
    prior_state: dict[str, Tensor]
    library_sizes: Tensor  # smallest and largest log library size of its cells
    composition: pd.DataFrame  # number of its new cells, by population (rows) and batch (columns)
    covariates: CovariateEffects | None  # of a new type whose cells have the covariates of the model
    batches: dict[str, Tensor]  # offsets (of genes) of new batches, by name
    provenance: dict[str, Any]  # how it was made; ``ancestor_sha256`` is the checksum of the model that was extended
    # Quantiles of the proteins in its training cells, and in generated cells before these get them, by population
    levels: dict[str, Tensor] = field(default_factory=dict)
    generated_levels: dict[str, Levels] = field(default_factory=dict)

    @property
    def n_cells(self) -> int:
        """Number of new cells that the type was fitted to."""
        return int(self.composition.to_numpy().sum())


@dataclass(frozen=True)
class BranchedModel:
    """Everything that generates cells: decoder, whitened space, prior, and composition of the data."""

    autoencoder: GeneAutoencoder
    whitening: Whitening
    moments: PopulationMoments
    prior: LatentPrior
    # Number of cells of each population (rows) in each batch (columns; one column ``n_cells`` where there are no
    # batches)
    composition: pd.DataFrame
    # Smallest and largest log library size of the training cells, which are the bounds for generated cells; 2 x
    # modalities, if there are several
    library_sizes: Tensor
    provenance: dict[str, Any]  # how it was made: versions, seeds, settings, hash of the data
    # How the donors of the training cells differ; None where no donors were given. Types of extensions have no effects
    # of donors
    donor_effects: DonorEffects | None = None
    # How cells depend on continuous covariates, with the types of extensions; None where none were named
    covariates: CovariateEffects | None = None
    # Of the proteins in generated cells of each population, before these get the levels of training cells
    levels: dict[str, Levels] = field(default_factory=dict)
    # Extensions in the order in which they were added; the other attributes include them
    extensions: tuple[Extension, ...] = ()
    base: BranchedModel | None = None  # the model before any extension; None without extensions

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Cell types that the model generates."""
        return self.autoencoder.cell_types

    @property
    def populations(self) -> tuple[str, ...]:
        """Populations of the cell types, the leaves of the hierarchy."""
        return self.moments.populations

    @property
    def cell_type_of(self) -> dict[str, str]:
        """Cell type of each population."""
        populations_of = self.autoencoder.populations_of
        return {name: cell_type for cell_type in self.cell_types for name in populations_of(cell_type)}

    @property
    def composition_of_types(self) -> pd.DataFrame:
        """Number of cells of each cell type (rows) in each batch (columns)."""
        return self.composition.groupby(self.composition.index.map(self.cell_type_of), sort=False).sum()

    @property
    def hierarchy(self) -> Hierarchy:
        """Tree of the populations, with the noise levels of its branches."""
        return self.prior.hierarchy

    def sampler(self, settings: SamplerSettings = SamplerSettings()) -> Sampler:
        """Make the sampler of whitened cells."""
        return self.prior.sampler(settings)

    @property
    def layout(self) -> LatentLayout:
        """Coordinates of the space that whitened cells are brought back to."""
        return LatentLayout(self.autoencoder.network.shape.n_latent, self.autoencoder.size_names)

    def encode(self, cells: AnnData) -> AnnData:
        """Encode prepared cells, with what covariates leave of their latents, as in :mod:`bdm.latent.cells`."""
        return with_residuals(encode(cells, self.autoencoder), self.covariates)

    def at_covariates(self, x: Tensor, population: str, values: np.ndarray | None) -> Tensor:
        """Move whitened cells of a population to values of the covariates (cells x covariates), if there are any."""
        if self.covariates is None or values is None:
            return x
        return x + self.whitening.linear(self.covariates.shift(population, self.cell_type_of[population], values))

    def with_levels(
        self, counts: sparse.csr_matrix, population: str, generator: np.random.Generator
    ) -> sparse.csr_matrix:
        """Give the proteins of generated cells of a population (cells x genes) the quantiles of training cells."""
        if population not in self.levels:
            return counts
        at = self.autoencoder.proteins
        levels = self.levels[population].quantiles, self.autoencoder.levels[population]
        proteins = sparse.csr_matrix(mapped(counts[:, at].toarray(), *levels, generator), dtype=counts.dtype)
        return sparse.csr_matrix(sparse.hstack([counts[:, : at.start], proteins, counts[:, at.stop :]]))

    def conditioned(self, coordinate: str, value: float) -> BranchedModel:
        """Model of the cells whose coordinate of y, such as ``log_library_size``, has a value.

        Populations of a type are as common as they have cells at the value.
        """
        index = self.layout.index(coordinate)
        along, value = self.whitening.direction(index), value - float(self.whitening.centre[index])
        moments = self.moments
        normals = Mixture(torch.ones(len(moments.mean)), moments.mean.double(), moments.covariance.double())
        density = pd.Series(normals.log_densities_of(along, value).numpy(), moments.populations)
        highest = density.groupby(density.index.map(self.cell_type_of)).transform("max")
        weight = np.exp(density - highest)[self.composition.index]
        return replace(self, prior=self.prior.condition(along, value), composition=self.composition.mul(weight, axis=0))

    @property
    def donors(self) -> DonorModel | None:
        """Distribution of donors, from which new ones are drawn; None where the model was fitted without donors."""
        if self.donor_effects is None:
            return None
        composition, n_cells = self.donor_effects.composition, self.composition.sum(axis=1)
        before = 0.0
        for cell_type in self.cell_types:
            populations = self.autoencoder.populations_of(cell_type)
            of_type = [float(n_cells.get(name, 0)) for name in populations]
            if cell_type not in composition.cell_types:
                share = sum(of_type) / (before + sum(of_type))
                composition = composition.with_type(cell_type, populations, share, of_type)
            before += sum(of_type)
        return DonorModel(self.donor_effects, composition, self.whitening, self.moments, self.cell_type_of)

    def library_range(self, population: str | None) -> tuple[Tensor, Tensor]:
        """Smallest and largest log library sizes for a population: of its extension, if any, or of training cells."""
        extended: dict[str | None, Tensor] = {
            name: extension.library_sizes
            for extension in self.extensions
            for name in (extension.cell_type, *extension.moments.populations)
        }
        smallest, largest = extended.get(population, self.library_sizes)
        return smallest, largest

    @property
    def gene_names(self) -> GeneNames:
        """Names and symbols of the genes."""
        return GeneNames(self.autoencoder.genes, self.autoencoder.provenance["prepare"].get("gene_symbols"))

    @property
    def form(self) -> str | None:
        """Form in which the data kept several modalities, see :mod:`bdm.data.modalities`; None for RNA alone."""
        return self.autoencoder.provenance.get("form")

    @property
    def label_key(self) -> str | None:
        """Column of ``obs`` that held the cell types of the data; None if these had no labels."""
        key = self.preparation["label_key"]
        return None if key is None else str(key)

    @property
    def preparation(self) -> dict[str, Any]:
        """Settings with which the data of the fit were prepared."""
        return dict(self.autoencoder.provenance["prepare"])


@torch.no_grad()
def expected_counts(
    model: BranchedModel,
    x: Tensor,
    batch: np.ndarray | None,
    population: str | None = None,
    *,
    offset: Tensor | None = None,
) -> np.ndarray:
    """Mean counts of cells, cells x genes; ``x``: cells x dimensions; ``offset``: cells x genes."""
    y, layout = model.whitening.inverse(x), model.layout
    decoder, codes = model.autoencoder.network_of(population).decoder, model.autoencoder.batch_codes(batch)
    log_size = y[:, layout.library_sizes].clamp(*model.library_range(population))
    log_mean = decoder.decode(y[:, layout.latent], codes, log_size=log_size, offset=offset)
    if population in model.levels:
        log_mean[:, model.autoencoder.proteins] += model.levels[population].log_factor
    return log_mean.exp().numpy()


@torch.no_grad()
def observation_model(model: BranchedModel, population: str) -> ObservationModel:
    """Observation model of the counts of all genes in a population."""
    code = torch.tensor(model.autoencoder.type_code(population))
    return model.autoencoder.network_of(population).decoder.observation(code)


def composition_of(obs: pd.DataFrame) -> pd.DataFrame:
    """Numbers of cells of populations, or else of cell types (rows), in each batch (columns; or ``n_cells``)."""
    batch = obs["batch"].astype(str) if "batch" in obs else pd.Series("n_cells", index=obs.index)
    population = obs["sub_population" if "sub_population" in obs else "cell_type"].astype(str)
    return pd.crosstab(population, batch).rename_axis(index=None, columns=None)


def warn_of_few_cells(model: BranchedModel, cell_types: Collection[str]) -> None:
    """Name the types whose training cells are too few for realistic cells, if any."""
    n_cells = model.composition_of_types.sum(axis=1)
    few = [f"{name} ({n})" for name, n in n_cells.items() if name in cell_types and n < FEW_CELLS]
    if few:
        named = abbreviated(few, n_shown=5)
        logger.warning("Types of fewer than %d training cells, too few for realistic cells: %s.", FEW_CELLS, named)


def extended(model: BranchedModel, extension: Extension) -> BranchedModel:
    """Add a cell type to a model; cells of others do not change by one bit."""
    autoencoder, row = model.autoencoder.with_batches(extension.batches), model.prior.n_rows
    autoencoder = autoencoder.with_type(extension.cell_type, extension.adapters, extension.sub_populations)
    autoencoder = replace(autoencoder, levels=autoencoder.levels | extension.levels)
    hierarchy = with_new_type(model.hierarchy, extension.tree, extension.attachment, row=row, support=extension.support)
    covariates = model.covariates
    if covariates is not None and extension.covariates is not None:
        covariates = covariates.joined(extension.covariates)
    return replace(
        model,
        autoencoder=autoencoder,
        covariates=covariates,
        moments=model.moments.joined(extension.moments),
        prior=model.prior.extended(hierarchy, extension.tree, extension.moments, extension.prior_state),
        composition=with_more_cells(model.composition, extension.composition),
        extensions=(*model.extensions, extension),
        base=model.base or model,
        levels=model.levels | extension.generated_levels,
    )


def with_more_cells(composition: pd.DataFrame, added: pd.DataFrame) -> pd.DataFrame:
    """Add numbers of cells by population and batch, both after the known ones, on whose order their cells depend."""
    rows = composition.index.union(added.index, sort=False)
    columns = composition.columns.union(added.columns, sort=False)
    known, new = (table.reindex(index=rows, columns=columns, fill_value=0) for table in (composition, added))
    return known + new


def checksums(files: Mapping[str, Path | None], *, model: Path | None) -> dict[str, str]:
    """Checksums, by name, of the input files of a result and of its ``model``; without those that are None."""
    found = {name: sha256(file) for name, file in files.items() if file is not None}
    return found if model is None else {**found, "model": checksum_of(model, "model")}


def record_of_cells(model: BranchedModel, *, seed: int, **facts: Any) -> dict[str, Any]:
    """Record for ``uns['bdm']`` of cells that a model computes: what they are, versions, seed, checksum and facts."""
    license, data_sha256 = model.preparation.get("license"), model.autoencoder.provenance.get("data_sha256")
    return storable(provenance(seed=seed, about=ABOUT, license=license, data_sha256=data_sha256, **facts))


def is_of_model(path: Path, checksum: str) -> bool:
    """Whether a model with this checksum computed the cells of a file, or that is unknown; warns if another one did."""
    recorded = read_cells(path, on_disk=True).uns.get("bdm", {}).get("model_sha256") if path.exists() else None
    if recorded in (None, checksum):
        return True
    logger.warning("Not shown: %s has cells of another model than the one next to it; make them again.", path)
    return False


@dataclass(frozen=True)
class StoredModel:
    """Content of the folder of a model: the model before any extension, and its extensions."""

    base: BranchedModel
    extensions: tuple[Extension, ...]


def save_model(folder: Path, model: BranchedModel) -> str:
    """Write a model into its folder, ``model.json`` and ``model.safetensors``, and return its checksum."""
    return save(folder, "model", StoredModel(model.base or model, model.extensions))


@using_threads()
def load_model(folder: Path, *, device: str = "cpu") -> BranchedModel:
    """Read a model from its folder; its prior goes to ``device``."""
    on, stored = device_of(device), load(folder, "model", StoredModel)
    with reject_if_damaged(folder):
        model = replace(stored.base, prior=stored.base.prior.to(on))
        for extension in stored.extensions:
            model = extended(model, extension)
    return model


def type_specific_genes(model: BranchedModel, name: str) -> pd.DataFrame:
    """Expression of genes (CP10k) by the shared and the type-specific decoder, the most changed first."""
    shared, specific = (
        np.exp(log_expression(model, name, type_specific=type_specific)) * 1e4 for type_specific in (False, True)
    )
    names = model.gene_names
    table = pd.DataFrame({"shared": shared, "type_specific": specific}, index=names.index.rename("gene"))
    table["log2_fold_change"] = np.log2((table["type_specific"] + 1) / (table["shared"] + 1))
    if names.differ:
        table.insert(0, "symbol", names.labels)
    return table.sort_values("log2_fold_change", key=np.abs, ascending=False, kind="stable")


@torch.no_grad()
def log_expression(model: BranchedModel, name: str, *, type_specific: bool) -> np.ndarray:
    """Log expression at the mean latent of a cell type or population, normalised over genes, in the mean batch."""
    populations = model.autoencoder.populations_of(name)
    y = model.whitening.inverse(model.moments.mixture(populations).mean[None])
    decoder = model.autoencoder.network_of(name if type_specific else None).decoder
    return decoder.decode(y[:, model.layout.latent])[0].double().numpy()
