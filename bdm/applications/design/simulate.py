"""Simulate a designed experiment block by block."""

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
from bdm.applications.design.changes import mark_responding_cells, planted_genes
from bdm.applications.design.design import Design
from bdm.applications.design.experiment import DesignedCells, DesignedExperiment, compile_design, draw_cells
from bdm.applications.design.truth import collect_truth
from bdm.autoencoder.observation import ObservationModel
from bdm.data.columns import without_unused_categories
from bdm.generation.generate import (
    Chunk,
    GeneratedBlock,
    GeneratedCells,
    Portion,
    in_order,
    independent_chunks,
    latents,
    names_in_file,
    portions_of,
    position_columns,
    section_columns,
    type_columns,
)
from bdm.model.model import BranchedModel, expected_counts, generated_noise, record_of_cells

RESERVED = ("sample", "donor", "condition", "batch", "doublet", "doublet_partner", "depth_factor")  # of designs


def simulate_cells(model: BranchedModel, design: Design) -> ad.AnnData:
    """Simulate a designed experiment in memory.

    Parameters
    ----------
    model
        Fitted model that cells are sampled from.
    design
        Samples, composition, changes, depth and artefacts, see :func:`bdm.applications.design.design.read_design`.

    Returns
    -------
    AnnData with raw counts in ``X`` (CSR) and the model's ``var``:

    - ``obs``: ``sample``, ``donor``, ``condition``, ``batch`` (if the model has batches), ``cell_type``,
      ``sub_population``, ``depth_factor``, ``doublet`` and ``doublet_partner`` (population of the second cell).
      Changes with a share of responding cells, or a region, add ``responds_NAME``, or ``responds`` if there is one.
    - ``obsm['latent']``: latents; positions and sections under their names in the training data, if designed.
    - ``varm['log2_fold_change_CONDITION']``: log2 fold changes of expected counts, genes x cell types.
    - ``uns['truth']``: tables of :func:`bdm.applications.design.truth.collect_truth`.

    Raises
    ------
    InputError
        If the model lacks cell types, genes, donors or covariates of the design.
    """
    return simulated_cells(compile_design(model, design)).in_memory()


def simulated_cells(experiment: DesignedExperiment) -> GeneratedCells:
    """Simulate an experiment in blocks, see :func:`simulate_cells`."""
    model, request, seed = experiment.model, experiment.request, experiment.design.seed
    cells = draw_cells(experiment)
    simulation = Simulation(experiment, cells)

    def blocks() -> Iterator[GeneratedBlock]:
        keep_freed_memory()
        with threads() as run:
            chunks = independent_chunks(model.sampler(), request, seed, run)
            yield from run(simulation.block, chunks)

    varm, tables = collect_truth(experiment)
    obs, var = make_obs(experiment, cells), model.autoencoder.genes.copy()
    record = record_of_cells(model, seed=seed, design=design_record(experiment.design))
    obsm = position_columns(model, experiment.by_cell)
    return GeneratedCells(obs, var, blocks(), varm=varm, uns={"truth": tables, "bdm": record}, obsm=obsm)


def make_obs(experiment: DesignedExperiment, cells: DesignedCells) -> pd.DataFrame:
    """Return ``obs`` of all cells of an experiment."""
    model, samples = experiment.model, experiment.samples
    names = [str(name) for name in cells.population]
    cell_type_of = model.cell_type_of
    cell_type = [cell_type_of[name] for name in names]
    columns: dict[str, Any] = {"sample": pd.Categorical.from_codes(cells.sample, categories=samples.index.to_list())}
    for key in ("donor", "condition", "batch"):
        if key != "batch" or model.autoencoder.batches:
            columns[key] = pd.Categorical(samples[key].to_numpy()[cells.sample], categories=samples[key].unique())
    label_columns = {name: column for name, column in type_columns(model, cell_type).items() if name not in RESERVED}
    columns |= label_columns
    columns["sub_population"] = in_order(names, model.populations)
    if model.autoencoder.batches:
        keys = names_in_file(model.preparation["batch_key"])
        columns |= {key: columns["batch"] for key in keys if key not in (*RESERVED, *label_columns)}
    at = experiment.by_cell
    columns |= {name: at[name].to_numpy() for name in model.input_names if name not in RESERVED}
    sections = section_columns(model, at)
    columns |= {name: column for name, column in sections.items() if name not in RESERVED}
    columns["depth_factor"] = samples["depth_factor"].to_numpy()[cells.sample]
    columns["doublet"] = cells.doublet
    columns["doublet_partner"] = pd.Categorical.from_codes(cells.partner_population, categories=model.populations)
    columns |= response_columns(experiment, cells)
    columns["synthetic"] = True
    obs = pd.DataFrame(columns, index=[f"synthetic-{number}" for number in range(1, len(names) + 1)])
    return without_unused_categories(obs)


def response_columns(experiment: DesignedExperiment, cells: DesignedCells) -> dict[str, np.ndarray]:
    """Return which cells respond, for changes with a share below 1 or a region."""
    changes = [planted.change for planted in experiment.changes]
    partial = [i for i, change in enumerate(changes) if change.share < 1 or change.region]
    names = [f"responds_{experiment.changes[i].change.name}" for i in partial] if len(partial) > 1 else ["responds"]
    return {name: cells.response[:, i] == 1 for name, i in zip(names, partial, strict=False)}


@dataclass(frozen=True)
class Droplets:
    """Counts and expected counts of droplets, droplets x genes."""

    counts: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class CellGroup:
    """Cells of one population that are decoded together."""

    population: str
    sample: np.ndarray  # row of each cell in the table of samples
    response: np.ndarray  # cells x changes
    key: tuple[int | str, ...]  # identifies the random numbers, with the population


class Simulation:
    """Sampler of the counts of an experiment."""

    def __init__(self, experiment: DesignedExperiment, cells: DesignedCells) -> None:
        self.experiment, self.cells = experiment, cells
        self.model, self.seed = experiment.model, experiment.design.seed
        self.depth = experiment.samples["depth_factor"].to_numpy()
        self.condition = experiment.samples["condition"].to_numpy()
        ambient = experiment.design.ambient
        self.ambient = experiment.ambient_profiles.to_numpy() if ambient.share else None
        self.planted = cache(lambda population: planted_genes(experiment.changes, population))
        self.observation = cache(self._observation)

    def block(self, chunk: Chunk) -> GeneratedBlock:
        """Sample the counts of the cells of a chunk."""
        portions = [self.portion(chunk.population, portion) for portion in portions_of(chunk)]
        counts = sp.vstack([sp.csr_matrix(droplets.counts) for droplets, _ in portions], format="csr")
        means = [droplets.mean for droplets, _ in portions] if self.experiment.design.expected else []
        expected = np.concatenate(means) if means else None
        return GeneratedBlock(counts, np.concatenate([latent for _, latent in portions]), expected=expected)

    def portion(self, population: str, portion: Portion) -> tuple[Droplets, np.ndarray]:
        """Sample the droplets of a portion; returns droplets and latents of first cells."""
        first = self.cells.first.get(population, 0) + portion.start
        rows = np.arange(first, first + portion.n_cells)
        group = CellGroup(population, self.cells.sample[rows], self.cells.response[rows], (portion.start,))
        at = portion.select(self.experiment.inputs[population])
        x = self.experiment.with_donors.moved(portion.padded, population, at)
        droplets = self.singlets(x, at, group)
        self.add_partners(droplets, rows, group, at)
        if self.ambient is not None:
            generator = numpy_generator(self.seed, "ambient", population, *group.key)
            for features in (modality.features for modality in self.experiment.modalities):
                part = Droplets(droplets.counts[:, features], droplets.mean[:, features])
                profile = self.ambient[:, features].cumsum(axis=1)[group.sample]
                add_ambient(part, self.experiment.design.ambient.share, profile, generator)
        return droplets, portion.without_padding(latents(self.model, x))

    def singlets(self, x: Tensor, at: pd.DataFrame, group: CellGroup) -> Droplets:
        """Sample single cells with the changes and the depth of their samples."""
        population, n_cells = group.population, len(group.sample)
        mean = expected_counts(self.experiment.with_donors, x, at, population)[:n_cells]
        observation = self.observation(population)
        generator = numpy_generator(self.seed, "counts", population, *group.key)  # the same counts as generated cells
        sampled = self.model.with_protein_levels(observation.sample(mean, generator), population, generator)
        droplets = Droplets(sampled.toarray(), mean)
        self.plant_changes(droplets, observation, group)
        depth = self.depth[group.sample][:, None]
        if (depth == 1).all():
            return droplets
        generator = numpy_generator(self.seed, "depth", population, *group.key)
        counts = observation.rescale(droplets.counts, droplets.mean, depth, generator)
        return Droplets(counts, droplets.mean * depth.astype(np.float32))

    def plant_changes(self, droplets: Droplets, observation: ObservationModel, group: CellGroup) -> None:
        """Apply planted changes in place; unaffected counts stay the same."""
        (genes, log2_fold_change), counts, mean = self.planted(group.population), droplets.counts, droplets.mean
        factor = 2.0 ** (group.response @ log2_fold_change)
        if (factor != 1).any():
            generator = numpy_generator(self.seed, "changes", group.population, *group.key)
            changed = observation.of_genes(genes)
            counts[:, genes] = changed.rescale(counts[:, genes], mean[:, genes], factor, generator)
            mean[:, genes] *= factor

    def add_partners(self, droplets: Droplets, rows: np.ndarray, group: CellGroup, at: pd.DataFrame) -> None:
        """Add the counts of second cells to doublets in place, at the positions of first cells."""
        positions = at[[name for name in at if self.model.space is not None and name in self.model.space.inputs]]
        partner_population = self.cells.partner_population[rows]
        for code in np.unique(partner_population[self.cells.doublet[rows]]):
            doublets = np.flatnonzero(partner_population == code)
            population, sample = self.model.populations[code], group.sample[doublets]
            key = ("partner of", group.population, *group.key)
            changes = self.experiment.changes
            generator = numpy_generator(self.seed, "partner responds", population, *key)
            uniform = generator.random((len(sample), len(changes)))
            response = mark_responding_cells(changes, population, self.condition[sample], uniform, rows[doublets])
            partners = CellGroup(population, sample, response, key)
            reference = self.experiment.reference_cells(
                population, self.cells.partner[rows[doublets]], sample, positions.iloc[doublets]
            )
            added = self.singlets(*reference, partners)
            droplets.counts[doublets] += added.counts
            droplets.mean[doublets] += added.mean

    def _observation(self, population: str) -> ObservationModel:
        return generated_noise(self.experiment.with_donors, population, self.experiment.inputs[population])


def add_ambient(droplets: Droplets, share: float, cumulative: np.ndarray, generator: np.random.Generator) -> None:
    """Replace a share of the counts by ambient RNA in place.

    ``cumulative`` are profiles, summed over genes up to each (droplets x genes).
    """
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
    droplets.mean[:] = (1 - share) * droplets.mean + share * size * profile


def design_record(design: Design) -> dict[str, Any]:
    """Convert a design to the content of its file, as a record."""

    def content(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key).rstrip("_"): content(item) for key, item in value.items() if item is not None}
        return [content(item) for item in value] if isinstance(value, list | tuple) else value

    return dict(content(asdict(design)))
