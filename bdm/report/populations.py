"""The populations of each cell type, their scores, and the branches with a network, as the report page shows them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pandas as pd

from bdm.evaluation.cells import FLOOR, GENERATED
from bdm.report.results import BRANCH_COLUMNS, Results
from bdm.report.settings import setting
from bdm.settings import AutoencoderSettings


@dataclass(frozen=True)
class Population:
    """A sub-population of a cell type, or the type where it is one population.

    Attributes
    ----------
    n_cells
        Number of cells that the model was fitted to.
    share
        Share of the cells of its type.
    type_specific
        Whether it has a type-specific decoder.
    nearer_to
        Cell type that it is nearer to than to the other sub-populations of its own; None for all others.
    """

    name: str
    n_cells: int
    share: float
    type_specific: bool
    nearer_to: str | None


@dataclass(frozen=True)
class TypePopulations:
    """A cell type with its populations."""

    cell_type: str
    n_cells: int
    populations: tuple[Population, ...]

    @property
    def divided(self) -> bool:
        """Whether it has sub-populations."""
        return len(self.populations) > 1


@dataclass(frozen=True)
class Populations:
    """Populations of all cell types.

    Attributes
    ----------
    types
        The types with the most cells first.
    setting, fewest, min_donors
        Number of sub-populations, and least numbers of cells and of donors of each, that the settings ask for.
    """

    types: tuple[TypePopulations, ...]
    setting: str
    fewest: int
    min_donors: int

    @property
    def least(self) -> str:
        """Least size of a sub-population, in words."""
        donors = f" and {self.min_donors:,} effective donors" if self.min_donors > 1 else ""
        return f"{self.fewest:,} cells{donors} or more"

    @property
    def n_divided(self) -> int:
        """Number of cell types that have sub-populations."""
        return sum(of_type.divided for of_type in self.types)

    @property
    def n_populations(self) -> int:
        """Number of populations of all cell types."""
        return sum(len(of_type.populations) for of_type in self.types)

    @property
    def n_type_specific(self) -> int:
        """Number of populations that have a type-specific decoder."""
        return sum(population.type_specific for of_type in self.types for population in of_type.populations)

    @property
    def stray(self) -> tuple[tuple[str, Population], ...]:
        """Sub-populations that are nearer to another cell type, with their own."""
        return tuple(
            (of_type.cell_type, population)
            for of_type in self.types
            for population in of_type.populations
            if population.nearer_to
        )


def populations(results: Results) -> Populations:
    """Collect the populations of each cell type."""
    used = asdict(AutoencoderSettings()) | results.model.autoencoder.provenance.get("settings", {})
    types = sorted(types_of(results), key=lambda of_type: -of_type.n_cells)
    fewest, min_donors = used["min_cells_per_sub_population"], setting(results, "min_donors")
    return Populations(tuple(types), str(used["sub_populations"]), int(fewest), int(min_donors))


def types_of(results: Results) -> Iterator[TypePopulations]:
    """Collect the populations of each cell type, in the model's order."""
    model, hierarchy = results.model, results.model.hierarchy
    numbers = {name: hierarchy.by_name[name].n_cells for name in hierarchy.populations}
    for cell_type in hierarchy.cell_types:
        names = sorted(hierarchy.populations_of(cell_type), key=lambda name: -numbers[name])
        n_cells = sum(numbers[name] for name in names)
        yield TypePopulations(
            cell_type,
            n_cells,
            tuple(
                Population(
                    name,
                    numbers[name],
                    numbers[name] / n_cells,
                    name in model.autoencoder.adapters,
                    hierarchy.by_name[name].nearer_to,
                )
                for name in names
            ),
        )


SCORES = ("relative_energy", "forest_auc")
SHARES = ("test", FLOOR, GENERATED)


def population_scores(results: Results, shown: Populations) -> dict[str, pd.DataFrame]:
    """Collect the scores of each sub-population by cell type, in the order of the table of populations.

    Returns
    -------
    Tables of sub-populations x ``n_test``, the shares of the cells of the type (``share``, set) and the scores (score,
    set); none if the cells were evaluated without the model.
    """
    table = results.evaluation.by_population.set_index("sub_population")
    sets = {name: table[table["set"] == name] for name in (FLOOR, GENERATED)}
    tables = {}
    for of_type in shown.types:
        if of_type.divided and (sets[GENERATED]["cell_type"] == of_type.cell_type).any():
            found = {name: of_set.reindex([one.name for one in of_type.populations]) for name, of_set in sets.items()}
            numbers = pd.DataFrame({name: of_set["n_cells"] for name, of_set in found.items()})
            numbers["test"] = found[GENERATED]["n_test"]
            share = numbers.fillna(0) / numbers.sum().clip(lower=1)
            columns = {("share", name): share[name] for name in SHARES}
            columns |= {(score, name): found[name][score] for score in SCORES for name in found}
            tables[of_type.cell_type] = pd.DataFrame({("n_test", ""): numbers["test"], **columns})
    return tables


@dataclass(frozen=True)
class BranchLoss:
    """Loss of validation cells on a branch, by the exact mixture and with the network.

    Attributes
    ----------
    gain
        Of the network, in standard errors; NaN where it is unknown.
    """

    branch: str
    closed_form: float
    network: float
    gain: float
    kept: bool


def branch_losses(results: Results) -> list[BranchLoss]:
    """List the branches, those with the largest gain of the network first; none if they are not recorded."""
    table = results.branches
    if table is None:
        return []
    table = table.assign(kept=table["kept"].astype(bool), branch=table["branch"].astype(str))
    table = table.sort_values(["kept", "gain"], ascending=False, na_position="last", kind="stable")
    return [BranchLoss(*row) for row in table[list(BRANCH_COLUMNS)].itertuples(index=False)]
