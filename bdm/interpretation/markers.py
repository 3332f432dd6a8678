"""Marker genes of cell types, the genes that users give, and the enrichment of gene sets."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import gseapy
import numpy as np
import pandas as pd

from bdm._core.files import reading
from bdm._core.seeds import derive
from bdm.data.genes import GeneSets, merge_pairs, read_gmt
from bdm.data.symbols import GeneNames
from bdm.errors import InputError
from bdm.evaluation.cells import Cells
from bdm.evaluation.genes import marker_genes
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.ancestral_states import AncestralStates
from bdm.interpretation.contrasts import Contrast, Differences

N_CANDIDATES = 50  # markers of a type among which those not taken by another type are sought
MIN_GENES = 3  # of a set that the model has; marker lists are short
MAX_SETS = 50  # beyond these, those of cell types elsewhere in the tree are left out
N_PERMUTATIONS = 1000
COLUMNS = {
    "Term": "gene_set",
    "NES": "normalised_score",
    "ES": "score",
    "NOM p-val": "p",
    "FDR q-val": "q",
    "Lead_genes": "leading_genes",
}


@dataclass(frozen=True)
class Dots:
    """Expression of genes in cell types or branches, in rows, by gene."""

    mean: pd.DataFrame  # of log1p(CP10k)
    fraction: pd.DataFrame  # share of cells with counts


@dataclass(frozen=True)
class Markers:
    """Marker genes in cell types and down the tree."""

    genes: GeneSets  # by cell type, or the user's names; each gene marks one
    real: Dots  # training cells by cell type; where there is one type, by population
    generated: Dots
    clades: Dots  # training cells below each branch
    ancestral_states: Dots


def markers_of(
    chosen: GeneSets,
    training: Cells,
    generated: Cells,
    genes: pd.Index,
    hierarchy: Hierarchy,
    states: AncestralStates,
) -> Markers:
    """Compute markers in real and generated cells, and by branch; a gene that marks two types counts for the first."""
    first = {gene: cell_type for cell_type, members in reversed(chosen.items()) for gene in reversed(members)}
    chosen = {
        cell_type: tuple(gene for gene in members if first[gene] == cell_type) for cell_type, members in chosen.items()
    }
    columns = genes.get_indexer([gene for members in chosen.values() for gene in members])
    by_type = members_of_types(hierarchy)
    by_branch = {branch.name: tuple(hierarchy.leaves(branch.name)) for branch in hierarchy.branches}
    return Markers(
        chosen,
        real=compute_dots(training, columns, genes, by_type),
        generated=compute_dots(generated, columns, genes, by_type),
        clades=compute_dots(training, columns, genes, by_branch),
        ancestral_states=Dots(np.log1p(states.expression.iloc[columns].T), states.detected.iloc[columns].T),
    )


def members_of_types(hierarchy: Hierarchy) -> dict[str, tuple[str, ...]]:
    """List what markers are sought of, with its populations: cell types; of one type alone, the populations."""
    cell_types = hierarchy.cell_types
    if len(cell_types) == 1:
        return {name: (name,) for name in hierarchy.populations}
    return {cell_type: hierarchy.populations_of(cell_type) for cell_type in cell_types}


def by_members(cells: Cells, members: dict[str, tuple[str, ...]]) -> Cells:
    """Give cells of populations the names that these are members of."""
    name_of = {member: name for name, found in members.items() for member in found}
    return replace(cells, cell_type=np.array([name_of[name] for name in cells.cell_type], dtype=str))


def candidate_markers(training: Cells, genes: pd.Index) -> GeneSets:
    """Genes that mark each type against all others in real training cells, 50 of each, the best first."""
    return {cell_type: tuple(genes[found]) for cell_type, found in marker_genes(training, n_genes=N_CANDIDATES).items()}


def distinct_markers(
    candidates: GeneSets, training: Cells, genes: pd.Index, cell_types: tuple[str, ...], *, n_genes: int
) -> GeneSets:
    """Choose among the candidates of each type the ones that stand out most from any other type, each gene once."""
    every = np.arange(len(genes))
    mean = compute_dots(training, every, genes, {cell_type: (cell_type,) for cell_type in cell_types}).mean
    chosen: GeneSets = {}
    taken: set[str] = set()
    for cell_type in cell_types:
        ahead = mean.loc[cell_type] - mean.drop(index=cell_type).max()
        free = [gene for gene in candidates.get(cell_type, ()) if gene not in taken]
        chosen[cell_type] = tuple(sorted(free, key=lambda gene: -ahead[gene])[:n_genes])
        taken.update(chosen[cell_type])
    return chosen


def compute_dots(cells: Cells, columns: np.ndarray, genes: pd.Index, rows: dict[str, tuple[str, ...]]) -> Dots:
    """Mean and share of cells with counts of the genes in ``columns``, by row of populations."""
    expression = cells.expression[:, columns]
    mean, fraction = np.full((2, len(rows), len(columns)), np.nan)
    for number, populations in enumerate(rows.values()):
        of_row = expression[np.isin(cells.cell_type, populations)]
        if n_cells := of_row.shape[0]:
            mean[number] = of_row.mean(axis=0).A1
            fraction[number] = (of_row > 0).sum(axis=0).A1 / n_cells
    frame = {"index": list(rows), "columns": genes[columns]}
    return Dots(pd.DataFrame(mean, **frame), pd.DataFrame(fraction, **frame))


@dataclass(frozen=True)
class UserGenes:
    """Genes in a user's lists that the model has, by the name of a cell type or a set."""

    markers: GeneSets = field(default_factory=dict)  # by cell type; the types need not be the model's
    sets: GeneSets = field(default_factory=dict)


def read_user_genes(markers: Path | None, gene_sets: Path | None, names: GeneNames) -> UserGenes:
    """Read a list of markers and a file of gene sets, if there are any, with genes by name or symbol."""
    of_types: GeneSets = {}
    if markers is not None:
        with reading(markers, "a CSV table"):
            table = pd.read_csv(markers, dtype=str, keep_default_na=False)
        if not {"type", "gene"} <= set(table):
            raise InputError(f"{markers} is no list of markers: it needs the columns type and gene, one gene a row.")
        pairs = merge_pairs(table[["type", "gene"]].itertuples(index=False))
        of_types = restrict_to_genes(pairs, names, markers)
    return UserGenes(of_types, {} if gene_sets is None else restrict_to_genes(read_gmt(gene_sets), names, gene_sets))


def restrict_to_genes(sets: GeneSets, names: GeneNames, path: Path) -> GeneSets:
    """Keep the genes that the model has, by the names of the data, and the sets that have any."""
    found = names.find({gene for members in sets.values() for gene in members})
    kept = {
        name: tuple(dict.fromkeys(gene for member in members for gene in found[member]))
        for name, members in sets.items()
    }
    kept = {name: members for name, members in kept.items() if members}
    if not kept:
        raise InputError(
            f"{path} names none of the model's {len(names.index)} genes, such as {names.example()}; name genes as the "
            "data do."
        )
    return kept


def enrichment(
    branches: Iterable[tuple[Contrast, Differences]], genes: pd.Index, sets: GeneSets, *, seed: int
) -> pd.DataFrame:
    """Gene sets that the sides of each contrast differ in, by gene set enrichment analysis of the ranked genes.

    Scores are above 0 where the set is higher inside, and ``q`` is the false discovery rate over the sets of a
    contrast; a p-value of 0 is one below 1 / ``N_PERMUTATIONS``. ``p`` and ``q`` are NaN where the differences have
    none: sets of highly expressed genes differ between the halves of one population. Where there are more than 50 sets,
    those with the name of a cell type are left out at nodes that the type is not below. Subramanian et al. 2005,
    https://doi.org/10.1073/pnas.0506580102; GSEApy, Fang et al. 2023, https://doi.org/10.1093/bioinformatics/btac757.
    """
    tested = {name: list(members) for name, members in sets.items() if MIN_GENES <= len(members) < len(genes)}
    tables = [pd.DataFrame(columns=["node", "level", "child", "cell_types", *COLUMNS.values(), "n_genes"])]
    branches = list(branches) if tested else []
    cell_types = {name for contrast, _ in branches for name in (*contrast.names_inside, *contrast.names_outside)}
    for contrast, differences in branches:
        elsewhere = (
            cell_types.difference(contrast.names_inside, contrast.names_outside) if len(tested) > MAX_SETS else ()
        )
        near = {name: members for name, members in tested.items() if name not in elsewhere}
        if not near:
            continue
        found = enrichment_of_ranking(
            pd.Series(differences.score, index=genes), near, seed=derive(seed, contrast.child) % 2**31
        )
        if not differences.has_p:
            found[["p", "q"]] = np.nan
        found["n_genes"] = found["gene_set"].map({name: len(members) for name, members in tested.items()})
        names = {"node": contrast.node, "level": contrast.level, "child": contrast.child}
        tables.append(found.assign(**names, cell_types="; ".join(contrast.names_inside))[list(tables[0])])
    return pd.concat(tables[1:] or tables, ignore_index=True)


def enrichment_of_ranking(score: pd.Series, sets: dict[str, list[str]], *, seed: int) -> pd.DataFrame:
    """Enrichment of each set in a ranking of genes, the highest first."""
    result = gseapy.prerank(
        rnk=score.sort_values(ascending=False, kind="stable"),
        gene_sets=sets,
        min_size=MIN_GENES,
        max_size=len(score),
        permutation_num=N_PERMUTATIONS,
        threads=1,
        seed=seed,
        outdir=None,
    ).res2d
    found = result[list(COLUMNS)].rename(columns=COLUMNS)
    numbers = ["score", "normalised_score", "p", "q"]
    found[numbers] = found[numbers].astype(float).replace([np.inf, -np.inf], np.nan)
    return found.sort_values(["normalised_score", "gene_set"], ascending=[False, True], ignore_index=True)
