"""The samples of a designed experiment, and their numbers of cells by population."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from bdm.design.read import at
from bdm.design.settings import LEARNED, NONE, Composition, Design, Samples
from bdm.errors import InputError
from bdm.generation.request import Request, spread_over_populations
from bdm.model.model import BranchedModel
from bdm.seeds import numpy_generator
from bdm.text import abbreviated

N_SHOWN = 12  # names in a message


def populations_named(model: BranchedModel, names: Sequence[str]) -> tuple[str, ...]:
    """Find the populations of cell types, sub-populations and clades; all if there are no names.

    Raises
    ------
    InputError
        If the model has none of a name.
    """
    found: dict[str, None] = {}
    for name in names or (model.hierarchy.root.name,):
        if name in model.cell_types:
            found |= dict.fromkeys(model.autoencoder.populations_of(name))
        elif name in model.hierarchy.by_name:
            found |= dict.fromkeys(model.hierarchy.leaves(name))
        else:
            clades = [
                branch
                for branch, children in model.hierarchy.children.items()
                if children and branch not in model.cell_types
            ]
            raise InputError(
                f"the model has no cell type or clade {name!r}; its types are "
                f"{abbreviated(model.cell_types, n_shown=N_SHOWN)}, and its clades "
                f"{abbreviated(clades, n_shown=N_SHOWN)}."
            )
    return tuple(name for name in model.populations if name in found)


def table_of_samples(model: BranchedModel, design: Design) -> pd.DataFrame:
    """Lay out the samples of a design: by condition, then donor.

    Returns
    -------
    Table with an index ``sample`` and the columns ``donor``, ``condition`` and ``batch``, which is empty text where the
    model has no batches.

    Raises
    ------
    InputError
        If the model lacks a batch.
    """
    samples, rows, n_before = design.samples, [], 0
    for condition in samples.conditions:
        n_donors = samples.donors_in(condition)
        for number in range(n_donors):
            rows.append((f"donor-{n_before + number + 1}", condition, number))
        n_before += 0 if samples.paired else n_donors
    table = pd.DataFrame(rows, columns=["donor", "condition", "number"])
    table["batch"] = batches_of_donors(model, samples, table, design.seed)
    table.index = pd.Index([f"sample-{number}" for number in range(1, len(table) + 1)], name="sample")
    return table.drop(columns="number")


def batches_of_donors(model: BranchedModel, samples: Samples, table: pd.DataFrame, seed: int) -> list[str]:
    """Choose the batch of each donor: the given ones in turn in each condition, or by chance as in the training cells.

    Parameters
    ----------
    table
        Columns ``donor`` and ``number``, the donor's number in the condition.
    """
    known = model.autoencoder.batches
    for name in samples.batches:
        if name not in known:
            names = abbreviated(known, n_shown=N_SHOWN) or "none (it was fitted without a batch column)"
            raise InputError(f"samples.batches: the model has no batch {name!r}; its batches: {names}.")
    if samples.batches:
        return [samples.batches[number % len(samples.batches)] for number in table["number"]]
    if not known:
        return [""] * len(table)
    share = model.composition[list(known)].sum().to_numpy(dtype=float)
    donors = table["donor"].unique()
    drawn = numpy_generator(seed, "batches").choice(known, size=len(donors), p=share / share.sum())
    return [str(batch) for batch in table["donor"].map(dict(zip(donors, drawn, strict=True)))]


def base_proportions(model: BranchedModel, composition: Composition) -> pd.Series:
    """Compute the expected shares of all populations in the reference.

    Raises
    ------
    InputError
        If the model lacks a cell type, or one is named beside its own sub-population.
    """
    if composition.proportions == LEARNED:
        n_cells = model.composition.sum(axis=1).reindex(list(model.populations))
        return n_cells / n_cells.sum()
    given = composition.proportions
    assert isinstance(given, dict)
    return spread(model, given, "composition.proportions")


def spread(model: BranchedModel, numbers: dict[str, float], place: str) -> pd.Series:
    """Divide numbers by cell type over the populations, in the shares of the training cells; those without are 0."""
    found = pd.Series(0.0, index=list(model.populations))
    for name, number in numbers.items():
        with at(place):
            populations = populations_of_type(model, name)
        if (found[list(populations)] > 0).any():
            raise InputError(f"{place}: {name!r} is named beside its own sub-populations; name either.")
        n_cells = model.composition.loc[list(populations)].sum(axis=1)
        found[list(populations)] = number * n_cells / n_cells.sum()
    return found


def populations_of_type(model: BranchedModel, name: str) -> tuple[str, ...]:
    """Find the populations of a cell type or sub-population, and reject any other name."""
    if name not in {*model.cell_types, *model.populations}:
        types = abbreviated(model.cell_types, n_shown=N_SHOWN)
        raise InputError(f"the model has no cell type {name!r}; its types are {types}.")
    return populations_named(model, [name])


def expected_proportions(model: BranchedModel, design: Design) -> pd.DataFrame:
    """Compute the expected shares of all populations (columns) in each condition (rows), with the shifts."""
    weights = shift_factors(model, design) * base_proportions(model, design.composition)
    return weights.div(weights.sum(axis=1), axis=0)


def shift_factors(model: BranchedModel, design: Design) -> pd.DataFrame:
    """Factor by which the weight of each population (columns) differs in each condition (rows)."""
    factors = pd.DataFrame(1.0, index=list(design.samples.conditions), columns=list(model.populations))
    for shift in design.composition.shifts:
        with at("composition.shifts"):
            factors.loc[shift.condition, list(populations_named(model, shift.in_))] *= np.exp(shift.log_odds)
    return factors


def request_of(
    model: BranchedModel,
    design: Design,
    samples: pd.DataFrame,
    donor_proportions: Callable[[pd.Series], pd.DataFrame],
) -> Request:
    """Draw how many cells of each population each sample has.

    Parameters
    ----------
    donor_proportions
        Function of the expected shares of populations, that gives them by donor (rows).

    Returns
    -------
    Request with a column ``sample``, by population, then sample.
    """
    numbers = numbers_of_cells(model, design, samples, donor_proportions)
    table = numbers.rename_axis(index="sample", columns="sub_population").T.stack().rename("n_cells").reset_index()
    table = table[table["n_cells"] > 0].reset_index(drop=True)
    table.insert(0, "cell_type", table["sub_population"].map(model.cell_type_of))
    if model.autoencoder.batches:
        table["batch"] = table["sample"].map(samples["batch"])
    return Request(table)


def numbers_of_cells(
    model: BranchedModel,
    design: Design,
    samples: pd.DataFrame,
    donor_proportions: Callable[[pd.Series], pd.DataFrame],
) -> pd.DataFrame:
    """Draw the number of cells of each sample (rows) and population (columns)."""
    given = design.samples.cells
    if isinstance(given, dict):
        return exact_numbers(model, given, samples)
    base, factor = base_proportions(model, design.composition), shift_factors(model, design)
    of_donors = donor_proportions(base)
    rows = {}
    for sample, row in samples.iterrows():
        weights = of_donors.loc[row["donor"]] * factor.loc[row["condition"]]
        generator = numpy_generator(design.seed, "numbers of cells", str(sample))
        rows[sample] = generator.multinomial(given, (weights / weights.sum()).to_numpy())
    return pd.DataFrame.from_dict(rows, orient="index", columns=base.index)


def exact_numbers(model: BranchedModel, given: dict[str, int], samples: pd.DataFrame) -> pd.DataFrame:
    """Give each sample the same numbers by cell type, spread over sub-populations as the training cells are."""
    spread(model, {name: float(number) for name, number in given.items()}, "samples.cells")
    rows = [
        spread_over_populations(model, {"cell_type": name, "n_cells": number})
        for name, number in given.items()
        if number
    ]
    numbers = pd.concat(rows).groupby("sub_population")["n_cells"].sum()
    numbers = numbers.reindex(list(model.populations), fill_value=0)
    return pd.DataFrame([numbers] * len(samples), index=samples.index)


def dirichlet_proportions(donors: Sequence[str], concentration: str | float, seed: int) -> Callable[..., pd.DataFrame]:
    """Return a function that draws the shares of populations of each donor from a Dirichlet distribution around a mean.

    Parameters
    ----------
    concentration
        Sum of the parameters of the distribution; ``none`` for donors with the same shares.
    """

    def draw(base: pd.Series) -> pd.DataFrame:
        if concentration == NONE:
            return pd.DataFrame([base] * len(donors), index=list(donors))
        rows = []
        for donor in donors:
            weight = numpy_generator(seed, "composition", donor).standard_gamma(float(concentration) * base.to_numpy())
            rows.append(weight / weight.sum() if weight.sum() else base.to_numpy())
        return pd.DataFrame(rows, index=list(donors), columns=base.index)

    return draw
