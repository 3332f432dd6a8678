"""Tables of the report page: populations, branches with a network, marker genes of each node, and attacks."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from bdm.audit.attacks import ATTACKS, SETS
from bdm.audit.results import Audit
from bdm.data.symbols import display_names
from bdm.evaluation.cells import FLOOR, GENERATED
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.contrasts import fewest_names
from bdm.report.results import BRANCH_COLUMNS, Results
from bdm.report.settings import setting
from bdm.settings import AutoencoderSettings

SCORES = ("relative_energy", "forest_auc")
SHARES = ("test", FLOOR, GENERATED)
N_GENES = 5  # of each branch


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


def branch_losses(results: Results) -> list[dict[str, Any]]:
    """List the losses of validation cells by branch, with the largest gain of the network first.

    Returns
    -------
    Rows of the table that ``bdm train`` writes; none if there is no table.
    """
    table = results.branches
    if table is None:
        return []
    table = table.assign(kept=table["kept"].astype(bool), branch=table["branch"].astype(str))
    table = table.sort_values(["kept", "gain"], ascending=False, na_position="last", kind="stable")
    return list(table[list(BRANCH_COLUMNS)].to_dict("records"))


@dataclass(frozen=True)
class Node:
    """A node, and the marker genes of the branches below it.

    Attributes
    ----------
    sides
        Names of each branch's populations, with its genes, the best first.
    agreement, floor
        Correlation of all fold changes with the fold changes in test cells, in the model and in as many training cells.
    words
        All names of the node, to search for.
    """

    name: str
    level: float
    sides: tuple[tuple[str, list[str]], ...]
    agreement: float
    floor: float
    words: str


def nodes(results: Results) -> list[Node]:
    """Collect the marker genes of each node, from the root on."""
    table = results.interpretation.get("branch_genes")
    if table is None:
        return []
    agreement = results.interpretation.get("agreement", pd.DataFrame(columns=["node"])).set_index("node")
    hierarchy, genes = results.model.hierarchy, genes_by_branch(results)
    return [node(name, rows, agreement, hierarchy, genes) for name, rows in table.groupby("node", sort=False)]


def node(
    name: str, rows: pd.DataFrame, agreement: pd.DataFrame, hierarchy: Hierarchy, genes: dict[str, list[str]]
) -> Node:
    """Collect the marker genes of one node."""
    children = rows["child"].unique()
    names = (first_names(fewest_names(tuple(hierarchy.leaves(child)), hierarchy)) for child in children)
    scores = agreement.loc[name] if name in agreement.index else pd.Series(dtype=float)
    markers = [gene for _, of_child in rows.groupby("child", sort=False) for gene in top_markers(of_child)["gene"]]
    shown = [gene for child in children for gene in genes[child]]
    words = dict.fromkeys([name, *hierarchy.types_below(name), *hierarchy.leaves(name), *shown, *markers])
    return Node(
        name=name,
        level=float(rows["level"].iloc[0]),
        sides=tuple((label, genes[child]) for label, child in zip(names, children, strict=True)),
        agreement=float(scores.get("pearson", float("nan"))),
        floor=float(scores.get("pearson_equal", float("nan"))),
        words=" ".join(words).lower(),
    )


def first_names(names: tuple[str, ...], *, most: int = 3) -> str:
    """List the first cell types or sub-populations, and the number of the others."""
    others = f" +{len(names) - most}" if len(names) > most else ""
    return ", ".join(names[:most]) + others


def top_markers(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the genes that are highest in a branch in the model, the best first."""
    up = rows[rows["model_log2_fold_change"].astype(float) > 0]
    return up.sort_values("model_rank").head(N_GENES)


def genes_by_branch(results: Results) -> dict[str, list[str]]:
    """List the top marker genes of each branch."""
    table = results.interpretation.get("branch_genes")
    if table is None:
        return {}
    return {child: display_names(top_markers(rows)).tolist() for child, rows in table.groupby("child", sort=False)}


def attack_rows(audit: Audit) -> Iterator[dict[str, Any]]:
    """Yield the areas of each attack on units, the highest first."""
    table = audit.attacks_on_units
    for finding in audit.verdict.findings:
        areas = {name: table["auc"].get((name, finding.attack)) for name in SETS}
        generated = table.loc[(GENERATED, finding.attack)]
        interval = {name: generated[name] for name in ("low", "high", "true_positives")}
        yield {"name": ATTACKS[finding.attack], "finding": finding, **areas, **interval}


def audited_types(audit: Audit) -> Iterator[dict[str, Any]]:
    """Yield the highest area of any attack on generated cells for each cell type."""
    for name, attack, auc, limit in audit.best_by_type(on_model=True):
        yield {"name": name, "attack": ATTACKS[attack], "auc": auc, "limit": limit}
