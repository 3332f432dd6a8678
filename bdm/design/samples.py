"""The samples of a designed experiment, how their donors differ, and their cells by population, with given values."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import pandas as pd
from torch import Tensor

from bdm._core.errors import InputError, abbreviated, at
from bdm._core.seeds import numpy_generator
from bdm.autoencoder.observation import ObservationModel
from bdm.design.settings import LEARNED, NONE, Composition, Design
from bdm.donors.draw import NewDonors
from bdm.generation.at import At, ends_of, known_covariates, spread_evenly, within
from bdm.generation.request import Request, spread_over_populations
from bdm.model.model import BranchedModel

N_SHOWN = 12  # names in a message
PERMIT = "samples.extrapolate: true"
N_STEPS = 512  # of equal probability, in which given values of covariates are spread over ranges
SHARED = 0.5  # share of the variance between donors that all cell types have in common


def populations_named(model: BranchedModel, names: Sequence[str]) -> tuple[str, ...]:
    """Find the populations of cell types, sub-populations and clades; all if there are no names."""
    found: dict[str, None] = {}
    for name in names or (model.hierarchy.root.name,):
        if name in model.cell_types:
            found |= dict.fromkeys(model.autoencoder.populations_of(name))
        elif name in model.hierarchy.by_name:
            found |= dict.fromkeys(model.hierarchy.leaves(name))
        else:
            nodes = (branch for branch, children in model.hierarchy.children.items() if children)
            clades = [branch for branch in nodes if branch not in model.cell_types]
            raise InputError(
                f"the model has no cell type or clade {name!r}; its types are "
                f"{abbreviated(model.cell_types, n_shown=N_SHOWN)}, and its clades "
                f"{abbreviated(clades, n_shown=N_SHOWN)}."
            )
    return tuple(name for name in model.populations if name in found)


def table_of_samples(model: BranchedModel, design: Design) -> pd.DataFrame:
    """Lay out samples by condition, then donor: ``donor``, ``condition`` and ``batch`` (None without batches)."""
    samples, rows, n_before = design.samples, [], 0
    for condition in samples.conditions:
        n_donors = samples.donors_in(condition)
        for number in range(n_donors):
            rows.append((f"donor-{n_before + number + 1}", condition))
        n_before += 0 if samples.paired else n_donors
    table = pd.DataFrame(rows, columns=["donor", "condition"])
    table["batch"] = batches_of_donors(model, table, design.seed)
    table.index = pd.Index(samples.names, name="sample")
    return table


def batches_of_donors(model: BranchedModel, table: pd.DataFrame, seed: int) -> Sequence[str | None]:
    """Draw the batch of each donor, in the shares of the training cells."""
    known = model.autoencoder.batches
    if not known:
        return [None] * len(table)
    share = model.composition[list(known)].sum().to_numpy(dtype=float)
    donors = table["donor"].unique()
    drawn = numpy_generator(seed, "batches").choice(known, size=len(donors), p=share / share.sum())
    return [str(batch) for batch in table["donor"].map(dict(zip(donors, drawn, strict=True)))]


def base_proportions(model: BranchedModel, composition: Composition) -> pd.Series:
    """Compute the expected shares of all populations in the reference."""
    if composition.proportions == LEARNED:
        if resolved(model, composition.concentration, "composition.concentration") == LEARNED:
            return mean_of_donors(model)
        n_cells = model.composition.sum(axis=1).reindex(list(model.populations))
        return n_cells / n_cells.sum()
    given = composition.proportions
    assert isinstance(given, dict)
    return spread(model, given, "composition.proportions")


def mean_of_donors(model: BranchedModel) -> pd.Series:
    """Compute the expected shares of populations in a donor like those of the data."""
    assert model.donors is not None
    composition = model.donors.composition
    shares = {
        name: composition.cell_types[cell_type] / composition.concentration * parameter / sum(populations.values())
        for cell_type, populations in composition.populations.items()
        for name, parameter in populations.items()
    }
    return pd.Series(shares).reindex(list(model.populations), fill_value=0.0)


def spread(model: BranchedModel, numbers: dict[str, float], place: str) -> pd.Series:
    """Divide numbers by cell type over the populations, in the shares of the training cells; those without are 0."""
    found = pd.Series(0.0, index=list(model.populations))
    for name, number in numbers.items():
        with at(place):
            populations = populations_of_type(model, name)
        if (found[list(populations)] > 0).any():
            raise InputError(f"{place}: {name!r} is named with its own sub-populations; name either.")
        n_cells = model.composition.loc[list(populations)].sum(axis=1)
        found[list(populations)] = number * n_cells / n_cells.sum()
    return found


def populations_of_type(model: BranchedModel, name: str) -> tuple[str, ...]:
    """Find the populations of a cell type or sub-population, and reject any other name."""
    if name not in {*model.cell_types, *model.populations}:
        types = abbreviated(model.cell_types, n_shown=N_SHOWN)
        raise InputError(f"the model has no cell type {name!r}; its types are {types}.")
    return populations_named(model, [name])


def proportions_of(model: BranchedModel, design: Design) -> pd.DataFrame:
    """Shares of all populations (columns) in each condition (rows): expected with the shifts, or of exact numbers."""
    given = design.samples.cells
    if not isinstance(given, dict):
        weights = shift_factors(model, design) * base_proportions(model, design.composition)
        return weights.div(weights.sum(axis=1), axis=0)
    shares = spread(model, {name: float(number) for name, number in given.items()}, "samples.cells")
    return pd.DataFrame([shares / shares.sum()] * len(design.samples.conditions), index=list(design.samples.conditions))


def shift_factors(model: BranchedModel, design: Design) -> pd.DataFrame:
    """Factor by which the weight of each population (columns) differs in each condition (rows)."""
    factors = pd.DataFrame(1.0, index=list(design.samples.conditions), columns=list(model.populations))
    base = base_proportions(model, design.composition)
    for shift in design.composition.shifts:
        with at("composition.shifts"):
            named = list(populations_named(model, shift.in_))
            if not base[named].sum():
                raise InputError(f"the design has no cells of {', '.join(shift.in_)}, whose share is to differ.")
            factors.loc[shift.condition, named] *= np.exp(shift.log_odds)
    return factors


@dataclass(frozen=True, eq=False)
class GivenValues:
    """Values of covariates that a design gives for the cells of samples of a condition."""

    model: BranchedModel
    steps: dict[str, np.ndarray]  # by cell type: values of equal probability, steps x covariates; NaN if not given
    as_named: frozenset[str]  # cell types whose sub-populations have the shares that the design gives, at all values
    expected: pd.Series  # weights of populations in the condition, whatever the values

    def shares(self, cell_type: str, weights: pd.Series) -> pd.DataFrame:
        """Shares of the populations of a type at each step (rows), from their weights whatever the values."""
        weight, steps = weights[list(self.model.autoencoder.populations_of(cell_type))], self.steps[cell_type]
        if cell_type in self.as_named:
            steps = np.full_like(steps, np.nan)
        effects = known_covariates(self.model, [])
        return pd.DataFrame(effects.shares(cell_type, weight.to_dict(), steps), columns=weight.index)

    def placed(self, weights: pd.Series) -> pd.Series:
        """Divide the weights of types over their populations as at the values."""
        placed = weights.copy()
        for cell_type in self.steps:
            share = self.shares(cell_type, weights).mean()
            placed[share.index] = share * weights[share.index].sum()
        return placed

    def values(self, population: str, level: np.ndarray, weights: pd.Series | None = None) -> np.ndarray:
        """Values of cells of a population at levels from 0 to 1 of their distribution, cells x covariates."""
        cell_type = self.model.cell_type_of[population]
        if cell_type not in self.steps:
            return np.full((len(level), len(known_covariates(self.model, []).names)), np.nan)
        shares = self.shares(cell_type, self.expected if weights is None else weights)
        cumulative = shares[population].to_numpy().cumsum()
        step = np.searchsorted(cumulative, level * cumulative[-1], side="right")
        return np.asarray(self.steps[cell_type][np.minimum(step, N_STEPS - 1)])


def given_values(model: BranchedModel, design: Design, samples: pd.DataFrame) -> dict[str, GivenValues]:
    """Give the values of covariates of each sample that has any; samples with the same ones share them."""
    found: dict[str, GivenValues] = {}
    known: dict[tuple[object, ...], GivenValues] = {}
    for sample, condition in samples["condition"].items():
        if values := design.samples.values_in(condition, sample):
            key = (condition, *values.items())
            with at("samples.covariates"):
                known[key] = known[key] if key in known else given_at(model, design, condition, values)
            found[sample] = known[key]
    return found


def given_at(model: BranchedModel, design: Design, condition: str, values: At) -> GivenValues:
    """Spread given values over the ranges of the types that the design has in a condition."""
    effects, allowed = known_covariates(model, list(values)), design.samples.extrapolate
    expected = proportions_of(model, design).loc[condition]
    n_cells = expected.groupby(model.cell_type_of).sum()
    types = [name for name in model.cell_types if n_cells[name] > 0]
    steps = {name: np.full((N_STEPS, len(effects.names)), np.nan) for name in types}
    for name, ends in values.items():
        limited = within(effects, types, name, ends_of(name, ends), named=True, extrapolate=allowed, permit=PERMIT)
        for cell_type, (low, high) in limited.items():
            steps[cell_type][:, effects.names.index(name)] = spread_evenly(low, high, N_STEPS, name, effects)
    named = [part for part in (design.samples.cells, design.composition.proportions) if isinstance(part, dict)]
    as_named = {model.cell_type_of[name] for part in named for name in part if name not in model.cell_types}
    return GivenValues(model, steps, frozenset(as_named), expected)


def request_of(
    model: BranchedModel,
    design: Design,
    samples: pd.DataFrame,
    donors: Sequence[str],
    given: dict[str, GivenValues],
) -> Request:
    """Draw how many cells of each population each sample has, with a column ``sample``, and their given values."""
    weights = donor_proportions(model, design, donors).loc[samples["donor"]].set_axis(samples.index)
    weights *= shift_factors(model, design).loc[samples["condition"]].set_axis(samples.index)
    placed = weights.apply(lambda row: given[row.name].placed(row) if row.name in given else row, axis=1)
    numbers = numbers_of_cells(model, design, samples, donors, placed)
    table = numbers.rename_axis(index="sample", columns="sub_population").T.stack().rename("n_cells").reset_index()
    table = table[table["n_cells"] > 0].reset_index(drop=True)
    table.insert(0, "cell_type", table["sub_population"].map(model.cell_type_of))
    if model.autoencoder.batches:
        table["batch"] = table["sample"].map(samples["batch"])
    return Request(with_given_values(table, weights, given, design.seed) if given else table)


def with_given_values(
    table: pd.DataFrame, weights: pd.DataFrame, given: dict[str, GivenValues], seed: int
) -> pd.DataFrame:
    """Add the given values of covariates to a table of cells, with a row for each value."""
    parts = []
    for row in table.to_dict("records"):
        sample, population = row["sample"], row["sub_population"]
        part = pd.DataFrame({**row, "n_cells": 1}, index=range(row["n_cells"]))
        if sample in given:
            level = numpy_generator(seed, "given values", sample, population).random(len(part))
            values = given[sample].values(population, level, weights.loc[sample])
            part[list(known_covariates(given[sample].model, []).names)] = values
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    by = [name for name in table if name != "n_cells"]
    return table.groupby(by, sort=False, dropna=False, as_index=False)["n_cells"].sum()


def numbers_of_cells(
    model: BranchedModel, design: Design, samples: pd.DataFrame, donors: Sequence[str], weights: pd.DataFrame
) -> pd.DataFrame:
    """Draw the number of cells of each sample (rows) and population (columns) by their weights."""
    given = design.samples.cells
    if isinstance(given, dict):
        return exact_numbers(model, design, given, weights)
    if given == LEARNED:
        known = learned_donors(model, len(donors), design.seed)
        if known is None:
            raise InputError("samples.cells is learned, but the model has learned no donors; give a number.")
        n_cells = dict(zip(donors, known.n_cells.tolist(), strict=True))
    else:
        n_cells = dict.fromkeys(donors, int(given))
    rows = {}
    for sample, row in samples.iterrows():
        share = weights.loc[sample] / weights.loc[sample].sum()
        generator = numpy_generator(design.seed, "numbers of cells", str(sample))
        rows[sample] = generator.multinomial(n_cells[row["donor"]], share.to_numpy())
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(model.populations))


def exact_numbers(model: BranchedModel, design: Design, given: dict[str, int], weights: pd.DataFrame) -> pd.DataFrame:
    """Give samples the same numbers by type, spread over sub-populations by weights, or as training cells are."""
    spread(model, {name: float(number) for name, number in given.items()}, "samples.cells")
    numbers = pd.DataFrame(0, index=weights.index, columns=list(model.populations))
    learned = resolved(model, design.composition.concentration, "composition.concentration") == LEARNED
    for sample, row in weights.iterrows():
        generator = numpy_generator(design.seed, "numbers of cells", str(sample))
        for name, number in given.items():
            populations = list(populations_of_type(model, name))
            weight = row[populations]
            if (learned or design.samples.covariates) and weight.sum() > 0:
                numbers.loc[sample, populations] = generator.multinomial(number, weight / weight.sum())
            else:
                spread_out = spread_over_populations(model, {"cell_type": name, "n_cells": number})
                numbers.loc[sample, spread_out["sub_population"]] = spread_out["n_cells"].to_numpy()
    return numbers


def donor_proportions(model: BranchedModel, design: Design, donors: Sequence[str]) -> pd.DataFrame:
    """Draw shares of populations (columns) by donor (rows): as learned, or Dirichlet around the expected shares."""
    composition, base = design.composition, base_proportions(model, design.composition)
    concentration = resolved(model, composition.concentration, "composition.concentration")
    if concentration == LEARNED:
        known = learned_donors(model, len(donors), design.seed)
        if known is not None and composition.proportions == LEARNED:
            return known.proportions.set_axis(list(donors)).reindex(columns=base.index, fill_value=0.0)
        concentration = NONE if model.donors is None else model.donors.concentration
    if concentration == NONE:
        return pd.DataFrame([base] * len(donors), index=list(donors))
    rows = []
    for donor in donors:
        generator = numpy_generator(design.seed, "composition", donor)
        weight = generator.standard_gamma(float(concentration) * base.to_numpy())
        rows.append(weight / weight.sum() if weight.sum() else base.to_numpy())
    return pd.DataFrame(rows, index=list(donors), columns=base.index)


@dataclass(frozen=True)
class IndependentDonors:
    """Donors of normal log expression, half of whose variance is common to all types, in place of ``NewDonors``."""

    names: tuple[str, ...]
    cell_type_of: dict[str, str]  # cell type of each population; the populations of a type have the same offsets
    n_genes: int
    variation: float  # standard deviation of natural log expression between donors
    seed: int

    def within(self, population: str, x: Tensor, donor: np.ndarray) -> Tensor:
        """Return the cells as they are."""
        return x

    def log_expression(self, population: str) -> np.ndarray:
        """Offsets of natural log expression, donors x genes."""
        keys = ("all",), ("type", self.cell_type_of[population])
        generators = [numpy_generator(self.seed, "donors", *key) for key in keys]
        shared, own = (generator.standard_normal((len(self.names), self.n_genes)) for generator in generators)
        return self.variation * (sqrt(SHARED) * shared + sqrt(1 - SHARED) * own)

    def observation(self, population: str, model: ObservationModel) -> ObservationModel:
        """Return the observation model as it is: the variation is in addition to what the cells have."""
        return model


def learned_donors(model: BranchedModel, n_donors: int, seed: int) -> NewDonors | None:
    """Draw donors that differ as those of the data do; None if the model has not learned how they differ."""
    return None if model.donors is None else model.donors.sample(n_donors, numpy_generator(seed, "donors"))


def donors_of(model: BranchedModel, design: Design, names: Sequence[str]) -> NewDonors | IndependentDonors | None:
    """Make the donors of a design; None where their expression does not differ."""
    variation = resolved(model, design.samples.variation, "samples.variation")
    if variation == LEARNED:
        return learned_donors(model, len(names), design.seed)
    if variation in (NONE, 0):
        return None
    n_genes = len(model.autoencoder.genes)
    return IndependentDonors(tuple(names), model.cell_type_of, n_genes, float(variation), design.seed)


def resolved(model: BranchedModel, value: str | float | None, key: str) -> str | float:
    """Resolve how much donors vary, if the design does not say: as learned, or not at all."""
    if value == LEARNED and model.donors is None:
        raise InputError(
            f"{key} is learned, but the model has learned no donors; fit it with `donor_key=`, or give a number."
        )
    return (NONE if model.donors is None else LEARNED) if value is None else value
