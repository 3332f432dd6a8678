"""A design for a model: its samples, numbers of cells, changes and donors, and what each cell is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pandas as pd
from torch import Tensor

from bdm._core.seeds import derive, numpy_generator, to_tensor, torch_generator
from bdm.data.modalities import Modality
from bdm.design.changes import Plant, mean_factors, plants_of, rows_by_population, strengths
from bdm.design.samples import (
    GivenValues,
    IndependentDonors,
    donors_of,
    given_values,
    request_of,
    table_of_samples,
)
from bdm.design.settings import Design
from bdm.donors.draw import NewDonors
from bdm.generation.at import covariate_names, drawn_values
from bdm.generation.generate import MAX_CHUNK
from bdm.generation.request import Request
from bdm.model.model import BranchedModel, expected_counts

NO_PARTNER = -1
FEW_CELLS = 128  # of a population, whose means are compared between donors


Given = GivenValues | None  # values of covariates


@dataclass(frozen=True)
class ReferenceCells:
    """Cells of each population that stand for all, sampled once: the other cells of doublets, and expectations.

    They have values of covariates as training cells have, or as a sample has (``given``).
    """

    whitened: Callable[[str], Tensor]  # from a population to cells x dimensions
    values: Callable[[str, Given], np.ndarray | None]  # of their covariates, cells x covariates
    # Mean expected counts by population, batch, given values, number of cells
    of_cells: Callable[[str, str | None, Given, int], np.ndarray]

    @classmethod
    def of(cls, model: BranchedModel, *, seed: int) -> "ReferenceCells":
        """Make them for a model; each is computed when it is first needed."""
        sampler = model.sampler()

        @cache
        def whitened(population: str) -> Tensor:
            return sampler.sample(population, MAX_CHUNK, torch_generator(seed, "reference", population))

        @cache
        def values(population: str, given: Given) -> np.ndarray | None:
            table = pd.DataFrame({"sub_population": [population] * MAX_CHUNK, "n_cells": 1})
            if given is not None:
                table[list(covariate_names(model))] = given.values(population, (np.arange(MAX_CHUNK) + 0.5) / MAX_CHUNK)
            return drawn_values(model, table, derive(seed, "reference")).get(population)

        @cache
        def of_cells(population: str, batch: str | None, given: Given, n_cells: int) -> np.ndarray:
            x = model.at_covariates(whitened(population), population, values(population, given))[:n_cells]
            batches = None if batch is None else np.full(len(x), batch)
            expected = expected_counts(model, x, batches, population)
            return np.asarray(expected.mean(axis=0, dtype=np.float64))

        return cls(whitened, values, of_cells)

    def expression(self, population: str, batch: str | None, given: Given = None) -> np.ndarray:
        """Average the expected counts of all cells of a population."""
        return self.of_cells(population, batch, given, MAX_CHUNK)


@dataclass(frozen=True)
class DesignedExperiment:
    """A design for a model."""

    model: BranchedModel
    design: Design
    # Table of samples with ``donor``, ``condition``, ``batch``, and the factor of their library sizes, ``depth_factor``
    samples: pd.DataFrame
    given: dict[str, GivenValues]  # of each sample whose covariates have given values
    request: Request  # numbers of cells by population and sample
    plants: tuple[Plant, ...]
    donors: NewDonors | IndependentDonors | None  # None where donors do not differ
    reference: ReferenceCells  # cells that stand for those of each population

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.model.autoencoder.genes)

    @property
    def modalities(self) -> list[Modality]:
        """Modalities of the genes."""
        return self.model.autoencoder.modalities

    def mean_expression(self, sample: str, populations: Sequence[str]) -> pd.DataFrame:
        """Compute expected counts of populations (rows) in a sample: of its donor, with its changes, at depth 1."""
        condition, number = self.samples.loc[sample, "condition"], self.samples.index.get_loc(sample)
        factors = mean_factors(self.plants, self.model.populations, condition, self.n_genes)
        rows = {name: self.expression(name, number) * factors[name] for name in populations}
        return pd.DataFrame.from_dict(rows, orient="index", columns=self.model.autoencoder.genes.index)

    def expression(self, population: str, sample: int) -> np.ndarray:
        """Mean expected counts of a population in a sample, by its donor as a few cells show it, before changes."""
        batch, given = self.samples["batch"].iloc[sample], self.given_in(sample)
        mean = self.reference.expression(population, batch, given)
        if self.donors is None:
            return mean
        samples = np.full(FEW_CELLS, sample)
        x = self.reference_cells(population, np.arange(FEW_CELLS), samples)
        expected = self.expected(x, population, samples)
        without_donor = self.reference.of_cells(population, batch, given, FEW_CELLS)
        return np.asarray(mean * expected.mean(axis=0, dtype=np.float64) / without_donor)

    def reference_cells(self, population: str, rows: np.ndarray, sample: np.ndarray) -> Tensor:
        """Select reference cells by their rows, and move them to the donors and covariates of their samples."""
        x = self.of_donors(self.reference.whitened(population)[to_tensor(rows)], population, sample)
        if self.model.covariates is None:
            return x
        values = [self.reference.values(population, self.given_in(number)) for number in sample]
        own = [part[row] for part, row in zip(values, rows, strict=True) if part is not None]
        return self.model.at_covariates(x, population, np.stack(own))

    def given_in(self, sample: int) -> Given:
        """Return the given values of covariates of a sample, by its row."""
        return self.given.get(str(self.samples.index[sample]))

    def of_donors(self, x: Tensor, population: str, sample: np.ndarray) -> Tensor:
        """Move whitened cells of a population to the donors of their samples, given by row."""
        return x if self.donors is None else self.donors.within(population, x, self.donor[sample])

    def expected(self, x: Tensor, population: str, sample: np.ndarray) -> np.ndarray:
        """Compute expected counts of cells of their donors and batches, before changes and depth, cells x genes."""
        return expected_counts(
            self.model,
            x,
            self.samples["batch"].to_numpy()[sample] if self.model.autoencoder.batches else None,
            population,
            offset=None if self.donors is None else self.offsets(population)[to_tensor(self.donor[sample])],
        )

    @cached_property
    def donor(self) -> np.ndarray:
        """Index of the donor of each sample."""
        return np.asarray(pd.factorize(self.samples["donor"])[0])

    @cached_property
    def offsets(self) -> Callable[[str], Tensor]:
        """Function that returns the offsets of log expression in a population, donors x genes, if donors differ."""
        donors = self.donors
        assert donors is not None
        return cache(lambda population: to_tensor(donors.log_expression(population).astype(np.float32)))

    @cached_property
    def ambient_profiles(self) -> pd.DataFrame:
        """Share of each gene (columns) in the ambient RNA of each sample (rows); so for proteins and peaks."""
        samples, genes = self.samples.index, self.model.autoencoder.genes.index
        n_cells = self.request.table.groupby(["sample", "sub_population"])["n_cells"].sum()
        rows = [n_cells[sample] @ self.mean_expression(sample, list(n_cells[sample].index)) for sample in samples]
        counts = pd.DataFrame(rows, index=samples, columns=genes)
        by_modality = [counts.iloc[:, modality.features] for modality in self.modalities]
        return pd.concat([part.div(part.sum(axis=1), axis=0) for part in by_modality], axis=1)


def compile_design(model: BranchedModel, design: Design) -> DesignedExperiment:
    """Bring a design to a model, and draw its samples and changes."""
    reference = ReferenceCells.of(model, seed=design.seed)
    samples = table_of_samples(model, design)
    donors = tuple(samples["donor"].unique())
    given = given_values(model, design, samples)
    request = request_of(model, design, samples, donors, given)

    def expression(population: str) -> np.ndarray:
        of_batches = [reference.expression(population, batch) for batch in samples["batch"].unique()]
        return np.asarray(np.mean(of_batches, axis=0))

    plants = plants_of(model, design, expression)
    factor = design.depth.factor
    samples["depth_factor"] = [
        float(factor.get(name, 1.0) if isinstance(factor, dict) else factor) for name in samples["condition"]
    ]
    of_donors = donors_of(model, design, donors)
    return DesignedExperiment(model, design, samples, given, request, plants, of_donors, reference)


# ---- what each cell is


@dataclass(frozen=True)
class DesignedCells:
    """What each cell of an experiment is, by population, then sample."""

    sample: np.ndarray  # row of its sample in the table of samples
    population: pd.Series  # name of its population
    first: dict[str, int]  # row of the first cell of each population
    strength: np.ndarray  # whether the cell responds to each change (1 or 0), cells x changes
    partner_population: np.ndarray  # index of the population of the other cell of a doublet; -1 for singlets
    partner: np.ndarray  # row of this cell among the reference cells; -1 for singlets

    @property
    def doublet(self) -> np.ndarray:
        """Whether a second cell is in the droplet of each cell."""
        return np.asarray(self.partner != NO_PARTNER)


def cells_of(experiment: DesignedExperiment) -> DesignedCells:
    """Draw what each cell of an experiment is; a cell's random numbers depend on its population and number alone."""
    table = experiment.request.table
    table = table.loc[table.index.repeat(table["n_cells"])]
    sample = experiment.samples.index.get_indexer(table["sample"])
    population = table["sub_population"].reset_index(drop=True)
    condition = experiment.samples["condition"].to_numpy()[sample]
    seed = experiment.design.seed
    rows, plants = rows_by_population(population), experiment.plants
    strength = np.zeros((len(population), len(plants)), dtype=np.float32)
    for name, span in rows.items():
        uniform = np.empty((span.stop - span.start, len(plants)))
        for i, plant in enumerate(plants):
            uniform[:, i] = numpy_generator(seed, "responds", plant.change.name, name).random(len(uniform))
        strength[span] = strengths(plants, name, condition[span], uniform)
    partners = draw_partners(experiment, sample, rows)
    return DesignedCells(sample, population, {name: span.start for name, span in rows.items()}, strength, *partners)


def draw_partners(
    experiment: DesignedExperiment, sample: np.ndarray, rows: dict[str, slice]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the second cell of each doublet: its population and row among the reference cells; -1 for singlets."""
    doublets, populations = experiment.design.doublets, list(experiment.model.populations)
    partner_population = np.full(len(sample), NO_PARTNER, dtype=np.int32)
    partner = partner_population.copy()
    if not doublets.rate:
        return partner_population, partner
    n_cells = experiment.request.table.pivot_table(
        index="sample", columns="sub_population", values="n_cells", aggfunc="sum"
    )
    n_cells = n_cells.reindex(index=experiment.samples.index, columns=populations).fillna(0).to_numpy()
    cell_type = np.array([experiment.model.cell_type_of[name] for name in populations])
    for population, span in rows.items():
        uniform = numpy_generator(experiment.design.seed, "doublets", population).random((span.stop - span.start, 4))
        same = cell_type == experiment.model.cell_type_of[population]
        for row in np.flatnonzero(uniform[:, 0] < doublets.rate):
            weights = n_cells[sample[span.start + row]]
            if doublets.within is not None:
                chosen = weights * (same if uniform[row, 1] < doublets.within else ~same)
                weights = chosen if chosen.any() else weights
            position = np.searchsorted(weights.cumsum(), uniform[row, 2] * weights.sum(), side="right")
            partner_population[span.start + row] = position
            partner[span.start + row] = int(uniform[row, 3] * MAX_CHUNK)
    return partner_population, partner
