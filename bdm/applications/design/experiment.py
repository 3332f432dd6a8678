"""Compile a design for a model: samples, cells, donors and planted changes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import pandas as pd
from torch import Tensor

from bdm._core.errors import error_prefix
from bdm._core.seeds import derive, numpy_generator, to_tensor, torch_generator
from bdm.applications.design.changes import (
    PlantedChange,
    mark_responding_cells,
    mean_factors,
    plan_changes,
    with_region,
)
from bdm.applications.design.design import Design
from bdm.applications.design.samples import (
    DesignedCovariates,
    designed_covariates,
    draw_request,
    make_donors,
    sample_table,
)
from bdm.data.modalities import Modality
from bdm.generation.generate import MAX_CHUNK
from bdm.generation.request import Request, complete_inputs
from bdm.model.model import BranchedModel, expected_counts

NO_PARTNER = -1
N_DONOR_CELLS = 128  # reference cells that donors are compared on, per population

Covariates = DesignedCovariates | None  # None: distributed as in training cells


@dataclass(frozen=True)
class ReferenceCells:
    """Cells of each population, sampled once, for expected counts and as partners in doublets."""

    whitened: Callable[[str], Tensor]  # whitened cells of a population, cells x dimensions
    inputs: Callable[[str, Covariates], pd.DataFrame]  # covariates of these cells, if the model has them
    # mean expected counts of a population, given batch, covariates and number of cells
    mean_counts: Callable[[str, str | None, Covariates, int], np.ndarray]

    @classmethod
    def from_model(cls, model: BranchedModel, *, seed: int) -> "ReferenceCells":
        """Sample reference cells from a model lazily."""
        sampler = model.sampler()

        @cache
        def whitened(population: str) -> Tensor:
            return sampler.sample(population, MAX_CHUNK, torch_generator(seed, "reference", population))

        @cache
        def inputs(population: str, covariates: Covariates) -> pd.DataFrame:
            table = pd.DataFrame({"sub_population": [population] * MAX_CHUNK, "n_cells": 1})
            if covariates is not None:
                quantile = (np.arange(MAX_CHUNK) + 0.5) / MAX_CHUNK
                table[list(covariates.names)] = covariates.values(population, quantile)
            return complete_inputs(model, table, derive(seed, "reference"))[population]

        @cache
        def mean_counts(population: str, batch: str | None, covariates: Covariates, n_cells: int) -> np.ndarray:
            at = inputs(population, covariates).assign(**({} if batch is None else {"batch": batch}))
            x = model.moved(whitened(population), population, at)[:n_cells]
            expected = expected_counts(model, x, at[:n_cells], population)
            return np.asarray(expected.mean(axis=0, dtype=np.float64))

        return cls(whitened, inputs, mean_counts)

    def expression(self, population: str, batch: str | None, covariates: Covariates = None) -> np.ndarray:
        """Return the mean expected counts of a population."""
        return self.mean_counts(population, batch, covariates, MAX_CHUNK)


@dataclass(frozen=True)
class DesignedExperiment:
    """Design, compiled for a model by :func:`compile_design`."""

    model: BranchedModel
    design: Design
    samples: pd.DataFrame  # columns donor, condition, batch, section (of positions), depth_factor (of library sizes)
    designed: dict[str, DesignedCovariates]  # covariates by sample, if the design sets them
    covariates: dict[str, DesignedCovariates]  # covariates by sample, if the design sets them or donors have them
    request: Request  # numbers of cells by population and sample
    changes: tuple[PlantedChange, ...]
    reference: ReferenceCells
    with_donors: BranchedModel  # model with effects of the donors of the design

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.model.autoencoder.genes)

    @property
    def modalities(self) -> list[Modality]:
        """Modalities of the model."""
        return self.model.autoencoder.modalities

    def expression(self, population: str, sample: int) -> np.ndarray:
        """Return the mean expected counts of a population in a sample (row) before changes.

        The effect of the donor is estimated from ``N_DONOR_CELLS`` cells.
        """
        batch, covariates = self.samples["batch"].iloc[sample], self.covariates_in(sample)
        mean = self.reference.expression(population, batch, covariates)
        if self.with_donors is self.model:
            return mean
        x, at = self.reference_cells(population, np.arange(N_DONOR_CELLS), np.full(N_DONOR_CELLS, sample))
        expected = expected_counts(self.with_donors, x, at, population)
        without_donor = self.reference.mean_counts(population, batch, covariates, N_DONOR_CELLS)
        return np.asarray(mean * expected.mean(axis=0, dtype=np.float64) / without_donor)

    def reference_cells(
        self, population: str, rows: np.ndarray, sample: np.ndarray, places: pd.DataFrame | None = None
    ) -> tuple[Tensor, pd.DataFrame]:
        """Return reference cells by row at inputs, and these: of samples (rows), at ``places`` of other cells."""
        parts = []
        for number in np.unique(sample):
            cells = np.flatnonzero(sample == number)
            inputs = self.reference.inputs(population, self.covariates_in(number))
            parts.append(inputs.iloc[rows[cells]].set_axis(cells))
        at = self.in_samples(pd.concat(parts).sort_index(), sample)
        if places is not None:
            at = at.assign(**{name: places[name].to_numpy() for name in places})
        return self.with_donors.moved(self.reference.whitened(population)[to_tensor(rows)], population, at), at

    def in_samples(self, at: pd.DataFrame, sample: np.ndarray) -> pd.DataFrame:
        """Add batches, if the model has them, and donors of samples (rows) to the inputs of cells."""
        names = ["batch", "donor"] if self.model.autoencoder.batches else ["donor"]
        return at.assign(**{name: self.samples[name].to_numpy()[sample] for name in names})

    def covariates_in(self, sample: int) -> Covariates:
        """Return the covariates of a sample (row) that the design sets or its donor has."""
        return self.covariates.get(str(self.samples.index[sample]))

    @cached_property
    def by_cell(self) -> pd.DataFrame:
        """Inputs of all cells, in their order."""
        return pd.concat(self.inputs.values(), ignore_index=True)

    @cached_property
    def inputs(self) -> dict[str, pd.DataFrame]:
        """Inputs of all cells, by population."""
        return complete_inputs(self.with_donors, self.request.table, self.design.seed)

    @cached_property
    def ambient_profiles(self) -> pd.DataFrame:
        """Composition of ambient RNA, samples x genes; each modality sums to 1."""
        n_cells, rows = self.request.table.groupby(["sample", "sub_population"])["n_cells"].sum(), []
        for number, (sample, condition) in enumerate(self.samples["condition"].items()):
            factors = mean_factors(self.changes, self.model.populations, condition, self.n_genes)
            names = n_cells[sample].index
            rows.append(n_cells[sample] @ np.stack([self.expression(name, number) * factors[name] for name in names]))
        counts = pd.DataFrame(rows, index=self.samples.index, columns=self.model.autoencoder.genes.index)
        blocks = [counts.iloc[:, modality.features] for modality in self.modalities]
        return pd.concat([block.div(block.sum(axis=1), axis=0) for block in blocks], axis=1)


def compile_design(model: BranchedModel, design: Design) -> DesignedExperiment:
    """Compile a design for a model: draw samples, donors, numbers of cells and changes."""
    reference = ReferenceCells.from_model(model, seed=design.seed)
    samples = sample_table(model, design)
    donors = tuple(samples["donor"].unique())
    of_donors = samples[[name for name in samples if name in model.input_names]]
    designed = designed_covariates(model, design, samples["condition"], of_donors[[]])
    covariates = designed_covariates(model, design, samples["condition"], of_donors)
    request = draw_request(model, design, samples, donors, covariates)

    def expression(population: str) -> np.ndarray:
        by_batch = [reference.expression(population, batch) for batch in samples["batch"].unique()]
        return np.asarray(np.mean(by_batch, axis=0))

    changes = []
    for planted in plan_changes(model, design, expression):
        with error_prefix(f"changes.{planted.change.name}"):
            changes.append(with_region(planted, model, request, samples))
    factor = design.depth.factor
    samples["depth_factor"] = [
        float(factor.get(name, 1.0) if isinstance(factor, dict) else factor) for name in samples["condition"]
    ]
    differing = make_donors(model, design, donors)
    with_donors = model if differing is None else replace(model, effects={**model.effects, "donors": differing})
    return DesignedExperiment(
        model, design, samples, designed, covariates, request, tuple(changes), reference, with_donors
    )


# ---- cells


@dataclass(frozen=True)
class DesignedCells:
    """Properties of the cells of an experiment, sorted by population, then sample."""

    sample: np.ndarray  # row in the table of samples
    population: pd.Series  # name
    first: dict[str, int]  # row of the first cell of each population
    response: np.ndarray  # whether cells respond to each change (1 or 0), cells x changes
    partner_population: np.ndarray  # index of the partner's population in a doublet; -1 for singlets
    partner: np.ndarray  # row of the partner among reference cells; -1 for singlets

    @property
    def doublet(self) -> np.ndarray:
        """Mask of doublets."""
        return np.asarray(self.partner != NO_PARTNER)


def draw_cells(experiment: DesignedExperiment) -> DesignedCells:
    """Draw the properties of all cells.

    The random numbers of a cell depend on its population and number alone.
    """
    table = experiment.request.table
    table = table.loc[table.index.repeat(table["n_cells"])]
    sample = experiment.samples.index.get_indexer(table["sample"])
    population = table["sub_population"].reset_index(drop=True)
    condition = experiment.samples["condition"].to_numpy()[sample]
    seed = experiment.design.seed
    rows, changes = population.groupby(population, sort=False).indices, experiment.changes
    response = np.zeros((len(population), len(changes)), dtype=np.float32)
    for name, span in rows.items():
        uniform = np.empty((len(span), len(changes)))
        for i, planted in enumerate(changes):
            uniform[:, i] = numpy_generator(seed, "responds", planted.change.name, name).random(len(uniform))
        response[span] = mark_responding_cells(changes, name, condition[span], uniform, span)
    partners = draw_partners(experiment, sample, rows)
    return DesignedCells(sample, population, {name: int(span[0]) for name, span in rows.items()}, response, *partners)


def draw_partners(
    experiment: DesignedExperiment, sample: np.ndarray, rows: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the partner of each doublet: population and row among reference cells."""
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
        uniform = numpy_generator(experiment.design.seed, "doublets", population).random((len(span), 4))
        same = cell_type == experiment.model.cell_type_of[population]
        for row in np.flatnonzero(uniform[:, 0] < doublets.rate):
            weights = n_cells[sample[span[row]]]
            if doublets.within is not None:
                chosen = weights * (same if uniform[row, 1] < doublets.within else ~same)
                weights = chosen if chosen.any() else weights
            position = np.searchsorted(weights.cumsum(), uniform[row, 2] * weights.sum(), side="right")
            partner_population[span[row]] = position
            partner[span[row]] = int(uniform[row, 3] * MAX_CHUNK)
    return partner_population, partner
