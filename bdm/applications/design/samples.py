"""Samples of a designed experiment: donors, batches, proportions and covariates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import pandas as pd

from bdm._core.errors import InputError, abbreviated, error_prefix
from bdm._core.seeds import derive, numpy_generator
from bdm.applications.design.design import LEARNED, NONE, Composition, Design
from bdm.data.space import SECTION
from bdm.effects.donors import DonorInput, DonorModel, NewDonors
from bdm.effects.space import LOCAL_SEED
from bdm.generation.covariate_values import CovariateValues, limit_range, require_covariates, spread_evenly
from bdm.generation.request import Request, divide_type, require_positions
from bdm.model.model import BranchedModel

N_SHOWN = 12  # names listed in a message
PERMIT = "samples.extrapolate: true"  # remedy in messages about covariates outside the range
N_STEPS = 512  # resolution of covariate ranges
SHARED = 0.5  # fraction of the variance between donors that cell types share


def resolve_populations(model: BranchedModel, names: Sequence[str]) -> tuple[str, ...]:
    """Return the populations of cell types, sub-populations or clades; all by default."""
    populations: set[str] = set()
    for name in names or (model.hierarchy.root.name,):
        if name in model.cell_types:
            populations |= set(model.autoencoder.populations_of(name))
        elif name in model.hierarchy.by_name:
            populations |= set(model.hierarchy.leaves(name))
        else:
            nodes = (branch for branch, children in model.hierarchy.children.items() if children)
            clades = [branch for branch in nodes if branch not in model.cell_types]
            raise InputError(
                f"the model has no cell type or clade {name!r}; its types are "
                f"{abbreviated(model.cell_types, n_shown=N_SHOWN)}, and its clades "
                f"{abbreviated(clades, n_shown=N_SHOWN)}."
            )
    return tuple(name for name in model.populations if name in populations)


def sample_table(model: BranchedModel, design: Design) -> pd.DataFrame:
    """Tabulate samples: ``donor``, ``condition``, ``batch``, with positions ``section``, and covariates of donors."""
    samples, rows, n_before = design.samples, [], 0
    for condition in samples.conditions:
        n_donors = samples.donors_in(condition)
        for number in range(n_donors):
            rows.append((f"donor-{n_before + number + 1}", condition))
        n_before += 0 if samples.paired else n_donors
    table = pd.DataFrame(rows, columns=["donor", "condition"])
    table.index = pd.Index(samples.names, name="sample")
    with error_prefix("samples"):
        table["batch"] = draw_batches(model, design, table)
        if samples.positions:
            table["section"] = draw_sections(model, design, table)
            if model.autoencoder.batches and model.preparation["batch_key"] == model.preparation["section_key"]:
                if samples.batches:
                    raise InputError("batches has no effect, as sections are the batches of the model; use section.")
                table["batch"] = table["section"]
    if model.covariates is not None:
        donors = table["donor"].unique()
        values = model.covariates.sample_donors(len(donors), numpy_generator(design.seed, "covariates of donors"))
        table = table.join(values.set_index(donors), on="donor")
    return table


def draw_sections(model: BranchedModel, design: Design, table: pd.DataFrame) -> list[str]:
    """Return the tissue section of each sample: designed, or as frequent as in training cells."""
    space = require_positions(model)
    sections = []
    for sample, condition in table["condition"].items():
        name = design.samples.section_in(condition, str(sample))
        if name is None:
            place = space.tissue.sample(1, numpy_generator(design.seed, "section", str(sample)))
            name = space.sections[int(place.section[0])]
        elif name not in space.sections:
            known = abbreviated(space.sections, n_shown=N_SHOWN)
            raise InputError(f"section: the model has no section {name!r}; its sections are {known}.")
        sections.append(name)
    return sections


def draw_batches(model: BranchedModel, design: Design, table: pd.DataFrame) -> list[str | None]:
    """Draw the batch of each sample; conditions with the same batches and number of donors have the same sequence."""
    known = model.autoencoder.batches
    if not known:
        if design.samples.batches:
            raise InputError("batches has no effect, as the model was fitted without batches; leave it out.")
        return [None] * len(table)
    n_cells = model.composition[list(known)].sum()
    drawn: list[str | None] = []
    for condition, part in table.groupby("condition", sort=False):
        for number, sample in enumerate(part.index):
            names = design.samples.batches_in(condition, sample)
            if unknown := [name for name in names if name not in known]:
                batches = abbreviated(known, n_shown=N_SHOWN)
                raise InputError(f"batches: the model has no batch {unknown[0]!r}; its batches are {batches}.")
            share = pd.Series(1, index=list(names)) if names else n_cells
            drawn.append(batch_sequence(share, len(part), design.seed)[number])
    return drawn


def batch_sequence(share: pd.Series, n_samples: int, seed: int) -> list[str]:
    """Draw batches by systematic sampling: each as often as its share, up to one sample."""
    generator = numpy_generator(seed, "batches")
    share = share.iloc[generator.permutation(len(share))]
    cumulative = share.cumsum().to_numpy() / share.sum()
    position = (np.arange(n_samples) + generator.random()) / n_samples
    return [str(name) for name in generator.permutation(share.index[np.searchsorted(cumulative, position)])]


def reference_proportions(model: BranchedModel, composition: Composition) -> pd.Series:
    """Return the expected proportions of populations in the reference condition."""
    if composition.proportions == LEARNED:
        if resolve_donor_setting(model, composition.concentration, "composition.concentration") == LEARNED:
            return mean_donor_proportions(model)
        n_cells = model.composition.sum(axis=1).reindex(list(model.populations))
        return n_cells / n_cells.sum()
    assert isinstance(composition.proportions, dict)
    return divide_by_population(model, composition.proportions, "composition.proportions")


def mean_donor_proportions(model: BranchedModel) -> pd.Series:
    """Return the expected proportions of populations in a learned donor."""
    composition = require_donors(model, "composition.concentration").composition
    shares = {
        name: composition.cell_types[cell_type] / composition.concentration * parameter / sum(populations.values())
        for cell_type, populations in composition.populations.items()
        for name, parameter in populations.items()
    }
    return pd.Series(shares).reindex(list(model.populations), fill_value=0.0)


def divide_by_population(model: BranchedModel, numbers: Mapping[str, float], place: str) -> pd.Series:
    """Divide numbers by cell type over populations, in the proportions of training cells."""
    divided = pd.Series(0.0, index=list(model.populations))
    for name, number in numbers.items():
        if name not in {*model.cell_types, *model.populations}:
            types = abbreviated(model.cell_types, n_shown=N_SHOWN)
            raise InputError(f"{place}: the model has no cell type {name!r}; its types are {types}.")
        n_cells = model.n_training_cells(name)
        if (divided[n_cells.index] > 0).any():
            raise InputError(f"{place}: {name!r} is counted twice, by type and by sub-population; name either.")
        divided[n_cells.index] = number * n_cells / n_cells.sum()
    return divided


def expected_proportions(model: BranchedModel, design: Design) -> pd.DataFrame:
    """Return the expected proportions of populations, conditions x populations."""
    numbers = design.samples.cells
    if not isinstance(numbers, dict):
        weights = shift_factors(model, design) * reference_proportions(model, design.composition)
        return weights.div(weights.sum(axis=1), axis=0)
    shares = divide_by_population(model, numbers, "samples.cells")
    return pd.DataFrame([shares / shares.sum()] * len(design.samples.conditions), index=list(design.samples.conditions))


def shift_factors(model: BranchedModel, design: Design) -> pd.DataFrame:
    """Return the factors of population weights, conditions x populations."""
    factors = pd.DataFrame(1.0, index=list(design.samples.conditions), columns=list(model.populations))
    reference = reference_proportions(model, design.composition)
    for shift in design.composition.shifts:
        with error_prefix("composition.shifts"):
            populations = list(resolve_populations(model, shift.in_))
            if not reference[populations].sum():
                raise InputError(f"the design has no cells of {', '.join(shift.in_)}; add them, or remove the shift.")
            factors.loc[shift.condition, populations] *= np.exp(shift.log_odds)
    return factors


@dataclass(frozen=True, eq=False)
class DesignedCovariates:
    """Distribution of covariates that a design sets for samples of a condition."""

    model: BranchedModel
    steps: dict[str, np.ndarray]  # by cell type: equally likely values, steps x covariates; NaN if not set
    fixed_types: frozenset[str]  # types with designed sub-population proportions, which covariates do not change
    expected: pd.Series  # mean weights of populations in the condition

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the covariates."""
        return require_covariates(self.model).names

    def shares(self, cell_type: str, weights: pd.Series) -> pd.DataFrame:
        """Return the proportions of a type's populations at each step, given mean weights."""
        weight, steps = weights[list(self.model.autoencoder.populations_of(cell_type))], self.steps[cell_type]
        if cell_type in self.fixed_types:
            steps = np.full_like(steps, np.nan)
        effects = require_covariates(self.model)
        return pd.DataFrame(effects.shares(cell_type, weight.to_dict(), steps), columns=weight.index)

    def reweighted(self, weights: pd.Series) -> pd.Series:
        """Adjust population weights within each type to the covariates."""
        adjusted = weights.copy()
        for cell_type in self.steps:
            share = self.shares(cell_type, weights).mean()
            adjusted[share.index] = share * weights[share.index].sum()
        return adjusted

    def values(self, population: str, quantile: np.ndarray, weights: pd.Series | None = None) -> np.ndarray:
        """Return covariates of cells (cells x covariates) at quantiles in [0, 1]."""
        cell_type = self.model.cell_type_of[population]
        if cell_type not in self.steps:
            return np.full((len(quantile), len(self.names)), np.nan)
        shares = self.shares(cell_type, self.expected if weights is None else weights)
        cumulative = shares[population].to_numpy().cumsum()
        step = np.searchsorted(cumulative, quantile * cumulative[-1], side="right")
        return np.asarray(self.steps[cell_type][np.minimum(step, N_STEPS - 1)])


def designed_covariates(
    model: BranchedModel, design: Design, condition: pd.Series, of_donors: pd.DataFrame
) -> dict[str, DesignedCovariates]:
    """Return the designed covariates by sample; samples with equal values share an object.

    ``of_donors`` has values for what the design does not set, samples x covariates.
    """
    by_sample: dict[str, DesignedCovariates] = {}
    by_values: dict[tuple[object, ...], DesignedCovariates] = {}
    for sample, name in condition.items():
        values, known = design.samples.values_in(name, sample), of_donors.loc[sample].to_dict()
        if values or known:
            key = (name, *values.items(), *known.items())
            with error_prefix("samples.covariates"):
                if key not in by_values:
                    by_values[key] = spread_covariates(model, design, name, values, known)
            by_sample[sample] = by_values[key]
    return by_sample


def spread_covariates(
    model: BranchedModel, design: Design, condition: str, values: CovariateValues, known: Mapping[str, float]
) -> DesignedCovariates:
    """Spread covariates evenly over their ranges in each cell type of a condition; ``known`` ones have one value."""
    effects, allowed = require_covariates(model, list(values)), design.samples.extrapolate
    expected = expected_proportions(model, design).loc[condition]
    n_cells = expected.groupby(model.cell_type_of).sum()
    types = [name for name in model.cell_types if n_cells[name] > 0]
    constant = [known.get(name, np.nan) for name in effects.names]
    steps = {name: np.tile(np.array(constant, dtype=float), (N_STEPS, 1)) for name in types}
    for name, value in values.items():
        limited = limit_range(effects, types, name, value, extrapolate=allowed, permit=PERMIT)
        for cell_type, (low, high) in limited.items():
            steps[cell_type][:, effects.names.index(name)] = spread_evenly(low, high, N_STEPS, name, effects)
    tables = [table for table in (design.samples.cells, design.composition.proportions) if isinstance(table, dict)]
    fixed_types = {model.cell_type_of[name] for table in tables for name in table if name not in model.cell_types}
    return DesignedCovariates(model, steps, frozenset(fixed_types), expected)


def draw_request(
    model: BranchedModel,
    design: Design,
    samples: pd.DataFrame,
    donors: Sequence[str],
    covariates: dict[str, DesignedCovariates],
) -> Request:
    """Draw the number of cells of each sample and population, and their designed covariates."""
    weights = draw_proportions(model, design, donors).loc[samples["donor"]].set_axis(samples.index)
    weights *= shift_factors(model, design).loc[samples["condition"]].set_axis(samples.index)
    adjusted = weights.apply(
        lambda row: covariates[row.name].reweighted(row) if row.name in covariates else row, axis=1
    )
    numbers = draw_cell_numbers(model, design, samples, donors, adjusted, depend_on_covariates=bool(covariates))
    table = numbers.rename_axis(index="sample", columns="sub_population").T.stack().rename("n_cells").reset_index()
    table = table[table["n_cells"] > 0].reset_index(drop=True)
    table.insert(0, "cell_type", table["sub_population"].map(model.cell_type_of))
    table["donor"] = table["sample"].map(samples["donor"])
    if model.autoencoder.batches:
        table["batch"] = table["sample"].map(samples["batch"])
    request = Request(add_covariates(table, weights, covariates, design.seed) if covariates else table)
    return with_places(model, request, samples, design.seed) if design.samples.positions else request


def with_places(model: BranchedModel, request: Request, samples: pd.DataFrame, seed: int) -> Request:
    """Draw the position of each cell, for a row per cell."""
    space, table = require_positions(model), request.table
    table = table.loc[table.index.repeat(table["n_cells"])].assign(n_cells=1).reset_index(drop=True)
    positions = np.empty((len(table), space.n_coordinates))
    for sample, rows in table.groupby("sample", sort=False).indices.items():
        number = space.sections.index(samples.loc[sample, "section"])
        generator = numpy_generator(seed, "positions", str(sample))
        population = table["sub_population"].to_numpy(dtype=object)[rows]
        positions[rows] = space.sample_places(population, number, generator).positions * space.unit
    table[space.coordinates] = positions
    table[SECTION] = table["sample"].map(samples["section"])
    table[LOCAL_SEED] = table["sample"].map({name: derive(seed, "local", name) for name in samples.index})
    return replace(request, table=table)


def add_covariates(
    table: pd.DataFrame, weights: pd.DataFrame, covariates: dict[str, DesignedCovariates], seed: int
) -> pd.DataFrame:
    """Add designed covariates to a table of cells, a row per value."""
    parts = []
    for row in table.to_dict("records"):
        sample, population = row["sample"], row["sub_population"]
        part = pd.DataFrame({**row, "n_cells": 1}, index=range(row["n_cells"]))
        if sample in covariates:
            quantile = numpy_generator(seed, "given values", sample, population).random(len(part))
            values = covariates[sample].values(population, quantile, weights.loc[sample])
            part[list(covariates[sample].names)] = values
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    keys = [name for name in table if name != "n_cells"]
    return table.groupby(keys, sort=False, dropna=False, as_index=False)["n_cells"].sum()


def draw_cell_numbers(
    model: BranchedModel,
    design: Design,
    samples: pd.DataFrame,
    donors: Sequence[str],
    weights: pd.DataFrame,
    *,
    depend_on_covariates: bool,
) -> pd.DataFrame:
    """Draw numbers of cells, samples x populations, by their weights."""
    setting = design.samples.cells
    if isinstance(setting, dict):
        return exact_numbers(model, design, setting, weights, drawn=depend_on_covariates)
    if setting == LEARNED:
        learned = sample_donors(require_donors(model, "samples.cells"), len(donors), design.seed)
        n_cells = dict(zip(donors, learned.n_cells.tolist(), strict=True))
    else:
        n_cells = dict.fromkeys(donors, int(setting))
    rows = {}
    for sample, row in samples.iterrows():
        share = weights.loc[sample] / weights.loc[sample].sum()
        generator = numpy_generator(design.seed, "numbers of cells", str(sample))
        rows[sample] = generator.multinomial(n_cells[row["donor"]], share.to_numpy())
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(model.populations))


def exact_numbers(
    model: BranchedModel, design: Design, type_numbers: dict[str, int], weights: pd.DataFrame, *, drawn: bool
) -> pd.DataFrame:
    """Divide exact numbers by cell type over sub-populations, samples x populations: drawn, or in proportion."""
    divide_by_population(model, type_numbers, "samples.cells")  # rejects unknown types
    numbers = pd.DataFrame(0, index=weights.index, columns=list(model.populations))
    drawn |= resolve_donor_setting(model, design.composition.concentration, "composition.concentration") == LEARNED
    for sample, row in weights.iterrows():
        generator = numpy_generator(design.seed, "numbers of cells", str(sample))
        for name, number in type_numbers.items():
            populations = list(model.autoencoder.populations_of(name))
            weight = row[populations]
            if drawn and weight.sum() > 0:
                numbers.loc[sample, populations] = generator.multinomial(number, weight / weight.sum())
            else:
                divided = divide_type(model, name, number)
                numbers.loc[sample, divided.index] = divided.to_numpy()
    return numbers


def draw_proportions(model: BranchedModel, design: Design, donors: Sequence[str]) -> pd.DataFrame:
    """Draw proportions, donors x populations: learned, or Dirichlet around the expectation."""
    composition, expected = design.composition, reference_proportions(model, design.composition)
    concentration = resolve_donor_setting(model, composition.concentration, "composition.concentration")
    if concentration == LEARNED:
        learned = require_donors(model, "composition.concentration")
        if composition.proportions == LEARNED:
            proportions = sample_donors(learned, len(donors), design.seed).proportions
            return proportions.set_axis(list(donors)).reindex(columns=expected.index, fill_value=0.0)
        concentration = learned.composition.concentration
    if concentration == NONE:
        return pd.DataFrame([expected] * len(donors), index=list(donors))
    rows = []
    for donor in donors:
        generator = numpy_generator(design.seed, "composition", donor)
        weight = generator.standard_gamma(float(concentration) * expected.to_numpy())
        rows.append(weight / weight.sum() if weight.sum() else expected.to_numpy())
    return pd.DataFrame(rows, index=list(donors), columns=expected.index)


@dataclass(frozen=True, eq=False)
class IndependentDonors(DonorInput):
    """Donors with independent normal effects on each gene; replaces :class:`NewDonors`.

    Cell types share the fraction ``SHARED`` of the variance.
    """

    cell_type_of: dict[str, str]  # by population; populations of a type have the same effects
    n_genes: int
    variation: float  # standard deviation of log expression between donors, in addition to that in the noise of counts
    seed: int

    def log_expression(self, population: str) -> np.ndarray:
        """Return offsets of log expression, donors x genes."""
        keys = ("all",), ("type", self.cell_type_of[population])
        generators = [numpy_generator(self.seed, "donors", *key) for key in keys]
        shared, own = (generator.standard_normal((len(self.names), self.n_genes)) for generator in generators)
        return self.variation * (sqrt(SHARED) * shared + sqrt(1 - SHARED) * own)


def sample_donors(donors: DonorModel, n_donors: int, seed: int) -> NewDonors:
    """Sample the donors of a design as learned from the data."""
    return donors.sample(n_donors, numpy_generator(seed, "donors"))


def require_donors(model: BranchedModel, key: str) -> DonorModel:
    """Return the learned donors, which the setting ``key`` needs."""
    if model.donors is None:
        raise InputError(
            f"{key} is learned, but the model has learned no donors; fit it with `donor_key=`, or give a number."
        )
    return model.donors


def make_donors(model: BranchedModel, design: Design, names: Sequence[str]) -> DonorInput | None:
    """Return the donors of a design; None if they do not differ in expression."""
    variation = resolve_donor_setting(model, design.samples.variation, "samples.variation")
    if variation == LEARNED:
        sampled = sample_donors(require_donors(model, "samples.variation"), len(names), design.seed)
        return replace(sampled, names=tuple(names))
    if variation in (NONE, 0):
        return None
    n_genes = len(model.autoencoder.genes)
    return IndependentDonors(tuple(names), model.cell_type_of, n_genes, float(variation), design.seed)


def resolve_donor_setting(model: BranchedModel, value: str | float | None, key: str) -> str | float:
    """Resolve a setting of donors; the default is learned, or none without learned donors."""
    if value == LEARNED:
        require_donors(model, key)
    return (NONE if model.donors is None else LEARNED) if value is None else value
