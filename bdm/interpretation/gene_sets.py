"""Marker genes and gene sets that users give, and their enrichment on branches."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import gseapy
import numpy as np
import pandas as pd

from bdm._core.files import reading
from bdm._core.seeds import derive
from bdm.data.genes import GeneSets, merge_pairs, read_gmt
from bdm.data.symbols import GeneNames
from bdm.errors import InputError
from bdm.interpretation.contrasts import Contrast, Differences


@dataclass(frozen=True)
class UserGenes:
    """Genes in a user's lists that the model has, by the name of a cell type or a set.

    Attributes
    ----------
    markers
        Marker genes, by cell type; the types need not be the model's.
    """

    markers: GeneSets = field(default_factory=dict)
    sets: GeneSets = field(default_factory=dict)


def read_user_genes(markers: Path | None, gene_sets: Path | None, names: GeneNames) -> UserGenes:
    """Read a list of markers and a file of gene sets, if there are any, with genes by name or symbol.

    Raises
    ------
    InputError
        If a file cannot be read, is of another form, or names none of the model's genes.
    """
    return UserGenes(
        {} if markers is None else restrict_to_genes(read_markers(markers), names, markers),
        {} if gene_sets is None else restrict_to_genes(read_gmt(gene_sets), names, gene_sets),
    )


def read_markers(path: Path) -> GeneSets:
    """Read a CSV table with the columns ``type`` and ``gene``."""
    with reading(path, "a CSV table"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if not {"type", "gene"} <= set(table):
        raise InputError(f"{path} is no list of markers: it needs the columns type and gene, one gene a row.")
    return merge_pairs(table[["type", "gene"]].itertuples(index=False))


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


def enrichment(
    branches: Iterable[tuple[Contrast, Differences]], genes: pd.Index, sets: GeneSets, *, seed: int
) -> pd.DataFrame:
    """Gene sets that the sides of each contrast differ in, by gene set enrichment analysis of the ranked genes.

    Genes are ranked by the score of the differences, and sets are compared with random sets of as many of the model's
    genes. Of 1,000 permutations, a p-value of 0 is one below 0.001. Where there are more than 50 sets, those with the
    name of a cell type are left out at nodes that the type is not below.

    Parameters
    ----------
    branches
        Contrasts and the differences by which genes are ranked.

    Returns
    -------
    Table of contrasts and sets of three genes or more, best first: ``score`` and ``normalised_score`` are above 0 where
    the set is higher inside, ``q`` is the false discovery rate over the sets of a contrast; ``p`` and ``q`` are NaN
    where the differences have no p-values: sets of highly expressed genes differ between the halves of one population.

    References
    ----------
    Subramanian et al. 2005, https://doi.org/10.1073/pnas.0506580102; GSEApy, Fang et al. 2023,
    https://doi.org/10.1093/bioinformatics/btac757
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
