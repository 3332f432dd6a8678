"""Simulation of a designed experiment, block by block: cells with its donors, changes, depth and artefacts."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from torch import Tensor

from bdm._core.parallel import keep_freed_memory, threads
from bdm._core.seeds import numpy_generator
from bdm.autoencoder.observation import ObservationModel
from bdm.data.columns import without_unused_categories
from bdm.design.changes import planted_genes, strengths
from bdm.design.experiment import DesignedCells, DesignedExperiment, cells_of, compile_design
from bdm.design.settings import Design
from bdm.design.truth import truth_of
from bdm.generation.at import drawn_values
from bdm.generation.generate import (
    Block,
    Chunk,
    GeneratedCells,
    Portion,
    covariate_columns,
    in_order,
    independent_chunks,
    latents,
    portions_of,
    reserved_names,
    type_columns,
)
from bdm.model.model import BranchedModel, observation_model, record_of_cells

RESERVED = ("sample", "donor", "condition", "batch", "doublet", "doublet_partner", "depth_factor")


def simulate_cells(model: BranchedModel, design: Design) -> ad.AnnData:
    """Simulate a designed experiment in memory.

    Returns
    -------
    AnnData with raw counts in ``X`` (CSR), the model's ``var``, and the latent in ``obsm['latent']``. ``obs`` has
    ``sample``, ``donor``, ``condition``, ``batch`` (where the model has batches), ``cell_type``, ``sub_population``,
    ``depth_factor``, ``doublet`` with the population of the other cell in ``doublet_partner``, and for each change to
    which a share of the cells responds ``responds_NAME`` (``responds`` if it is the only one). ``varm`` has the log2
    fold changes of expected counts by gene and cell type for each condition, ``log2_fold_change_CONDITION``; and
    ``uns['truth']`` the tables of :func:`bdm.design.truth.truth_of`.
    """
    return simulated_cells(compile_design(model, design)).in_memory()


def simulated_cells(experiment: DesignedExperiment) -> GeneratedCells:
    """Simulate an experiment block by block, as :func:`simulate_cells` does."""
    model, request, seed = experiment.model, experiment.request, experiment.design.seed
    cells = cells_of(experiment)
    simulation = Simulation(experiment, cells)

    def blocks() -> Iterator[Block]:
        keep_freed_memory()
        with threads() as run:
            chunks = independent_chunks(model.sampler(), request, seed, run)
            yield from run(simulation.block, chunks)

    varm, tables = truth_of(experiment)
    obs, var = observations_of(experiment, cells), model.autoencoder.genes.copy()
    record = record_of_cells(model, seed=seed, design=design_record(experiment.design))
    return GeneratedCells(obs, var, blocks(), varm=varm, uns={"truth": tables, "bdm": record})


def observations_of(experiment: DesignedExperiment, cells: DesignedCells) -> pd.DataFrame:
    """Make ``obs`` of all cells of an experiment: by population, then sample."""
    model, samples = experiment.model, experiment.samples
    names = [str(name) for name in cells.population]
    cell_type_of = model.cell_type_of
    cell_type = [cell_type_of[name] for name in names]
    columns: dict[str, Any] = {"sample": pd.Categorical.from_codes(cells.sample, categories=samples.index.to_list())}
    for key in ("donor", "condition", "batch"):
        if key != "batch" or model.autoencoder.batches:
            columns[key] = pd.Categorical(samples[key].to_numpy()[cells.sample], categories=samples[key].unique())
    own = {name: column for name, column in type_columns(model, cell_type).items() if name not in RESERVED}
    columns |= own
    columns["sub_population"] = in_order(names, model.populations)
    if model.autoencoder.batches:
        others = [name for name in reserved_names(model.preparation["batch_key"]) if name not in (*RESERVED, *own)]
        columns |= dict.fromkeys(others, columns["batch"])
    values = drawn_values(model, experiment.request.table, experiment.design.seed)
    columns |= {name: column for name, column in covariate_columns(model, values).items() if name not in RESERVED}
    columns["depth_factor"] = samples["depth_factor"].to_numpy()[cells.sample]
    columns["doublet"] = cells.doublet
    columns["doublet_partner"] = pd.Categorical.from_codes(cells.partner_population, categories=model.populations)
    columns |= response_columns(experiment, cells)
    columns["synthetic"] = True
    obs = pd.DataFrame(columns, index=[f"synthetic-{number}" for number in range(1, len(names) + 1)])
    return without_unused_categories(obs)


def response_columns(experiment: DesignedExperiment, cells: DesignedCells) -> dict[str, np.ndarray]:
    """Whether each cell responds, for the changes to which not all cells of a condition respond."""
    partial = [i for i, plant in enumerate(experiment.plants) if plant.change.share < 1]
    names = [f"responds_{experiment.plants[i].change.name}" for i in partial] if len(partial) > 1 else ["responds"]
    return {name: cells.strength[:, i] == 1 for name, i in zip(names, partial, strict=False)}


@dataclass(frozen=True)
class Droplets:
    """Counts and expected counts of a few droplets, cells x genes."""

    counts: np.ndarray
    mean: np.ndarray

    def of_features(self, features: slice) -> "Droplets":
        """Take the features of a modality."""
        return Droplets(self.counts[:, features], self.mean[:, features])


@dataclass(frozen=True)
class Origin:
    """What cells of one population that are decoded together are."""

    population: str
    sample: np.ndarray  # row of each cell's sample in the table of samples
    strength: np.ndarray  # cells x changes
    key: tuple[int | str, ...]  # names the random numbers of the cells, in addition to their population


class Simulation:
    """Counts of the cells of an experiment."""

    def __init__(self, experiment: DesignedExperiment, cells: DesignedCells) -> None:
        self.experiment, self.cells = experiment, cells
        self.model, self.seed = experiment.model, experiment.design.seed
        self.values = drawn_values(self.model, experiment.request.table, self.seed)
        self.depth = experiment.samples["depth_factor"].to_numpy()
        self.condition = experiment.samples["condition"].to_numpy()
        ambient = experiment.design.ambient
        self.ambient = experiment.ambient_profiles.to_numpy() if ambient.share else None
        self.planted = cache(lambda population: planted_genes(experiment.plants, population))
        self.observation = cache(self._observation)

    def block(self, chunk: Chunk) -> Block:
        """Sample the counts of the cells of a chunk."""
        portions = [self.portion(chunk.population, portion) for portion in portions_of(chunk)]
        counts = sp.vstack([sp.csr_matrix(droplets.counts) for droplets, _ in portions], format="csr")
        means = [droplets.mean for droplets, _ in portions] if self.experiment.design.expected else []
        expected = np.concatenate(means) if means else None
        return Block(counts, np.concatenate([latent for _, latent in portions]), expected=expected)

    def portion(self, population: str, portion: Portion) -> tuple[Droplets, np.ndarray]:
        """Sample the droplets of a portion, and give the latents of their first cells."""
        first = self.cells.first.get(population, 0) + portion.start
        rows = np.arange(first, first + portion.n_cells)
        origin = Origin(population, self.cells.sample[rows], self.cells.strength[rows], (portion.start,))
        x = self.experiment.of_donors(portion.padded, population, padded(origin.sample, len(portion.padded)))
        x = self.model.at_covariates(x, population, portion.rows_in(self.values.get(population)))
        droplets = self.singlets(x, origin)
        droplets = self.with_partners(droplets, rows, origin)
        if self.ambient is not None:
            generator = numpy_generator(self.seed, "ambient", population, *origin.key)
            share = self.experiment.design.ambient.share
            features = [modality.features for modality in self.experiment.modalities]
            profiles = [self.ambient[:, columns].cumsum(axis=1)[origin.sample] for columns in features]
            parts = [
                with_ambient(droplets.of_features(columns), share, profile, generator)
                for columns, profile in zip(features, profiles, strict=True)
            ]
            counts, mean = (
                np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("counts", "mean")
            )
            droplets = Droplets(counts, mean)
        return droplets, portion.of_cells(latents(self.model, x))

    def singlets(self, x: Tensor, origin: Origin) -> Droplets:
        """Sample single cells with the changes and the depth of their samples."""
        population, n_cells = origin.population, len(origin.sample)
        mean = self.experiment.expected(x, population, padded(origin.sample, len(x)))[:n_cells]
        observation = self.observation(population)
        generator = numpy_generator(self.seed, "counts", population, *origin.key)  # as generated cells
        sampled = self.model.with_levels(observation.sample(mean, generator), population, generator)
        droplets = Droplets(sampled.toarray(), mean)
        droplets = self.changed(droplets, observation, origin)
        depth = self.depth[origin.sample][:, None]
        if (depth == 1).all():
            return droplets
        generator = numpy_generator(self.seed, "depth", population, *origin.key)
        counts = observation.rescale(droplets.counts, droplets.mean, depth, generator)
        return Droplets(counts, droplets.mean * depth.astype(np.float32))

    def changed(self, droplets: Droplets, observation: ObservationModel, origin: Origin) -> Droplets:
        """Plant the changes; the counts of all other genes and cells stay as they are."""
        (genes, log2_fold_change), counts, mean = self.planted(origin.population), droplets.counts, droplets.mean
        factor = 2.0 ** (origin.strength @ log2_fold_change)
        if (factor != 1).any():
            generator = numpy_generator(self.seed, "changes", origin.population, *origin.key)
            of_genes = observation.of_genes(genes)
            counts[:, genes] = of_genes.rescale(counts[:, genes], mean[:, genes], factor, generator)
            mean[:, genes] *= factor
        return Droplets(counts, mean)

    def with_partners(self, droplets: Droplets, rows: np.ndarray, origin: Origin) -> Droplets:
        """Add the counts of the second cells to those of doublets."""
        counts, mean = droplets.counts, droplets.mean
        of_partner = self.cells.partner_population[rows]
        for code in np.unique(of_partner[self.cells.doublet[rows]]):
            chosen = np.flatnonzero(of_partner == code)
            population, sample = self.model.populations[code], origin.sample[chosen]
            key = ("partner of", origin.population, *origin.key)
            plants, generator = self.experiment.plants, numpy_generator(self.seed, "partner responds", population, *key)
            uniform = generator.random((len(sample), len(plants)))
            partners = Origin(population, sample, strengths(plants, population, self.condition[sample], uniform), key)
            x = self.experiment.reference_cells(population, self.cells.partner[rows[chosen]], sample)
            added = self.singlets(x, partners)
            counts[chosen] += added.counts
            mean[chosen] += added.mean
        return Droplets(counts, mean)

    def _observation(self, population: str) -> ObservationModel:
        observation, donors = observation_model(self.model, population), self.experiment.donors
        return observation if donors is None else donors.observation(population, observation)


def padded(values: np.ndarray, n_cells: int) -> np.ndarray:
    """Repeat the last value up to a number of cells; the first known one where there are none."""
    return np.pad(values, (0, n_cells - len(values)), mode="edge") if len(values) else np.zeros(n_cells, values.dtype)


def with_ambient(droplets: Droplets, share: float, cumulative: np.ndarray, generator: np.random.Generator) -> Droplets:
    """Replace a share of the counts by ambient RNA, of profiles that are cumulative over genes, droplets x genes."""
    for_cells, for_numbers, for_genes = generator.spawn(3)
    counts, detected = droplets.counts, droplets.counts > 0
    n_ambient = for_numbers.poisson(share * counts.sum(axis=1))
    counts[detected] = for_cells.binomial(counts[detected].astype(np.int64), 1 - share)
    droplet = np.repeat(np.arange(len(counts)), n_ambient)
    uniform = for_genes.random(len(droplet))
    for i in range(len(counts)):
        genes = np.searchsorted(cumulative[i], uniform[droplet == i] * cumulative[i, -1], side="right")
        np.add.at(counts[i], genes, 1)
    size = droplets.mean.sum(axis=1, keepdims=True)
    profile = np.diff(cumulative, axis=1, prepend=0).astype(np.float32)
    return Droplets(counts, (1 - share) * droplets.mean + share * size * profile)


def design_record(design: Design) -> dict[str, Any]:
    """Content of a design as a design file has it, for the record of how cells were made."""

    def content(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key).rstrip("_"): content(item) for key, item in value.items() if item is not None}
        return [content(item) for item in value] if isinstance(value, list | tuple) else value

    return dict(content(asdict(design)))
