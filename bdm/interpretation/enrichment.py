from collections.abc import Iterable

import gseapy
import numpy as np
import pandas as pd

from bdm.interpretation.contrasts import Contrast
from bdm.interpretation.differences import Differences
from bdm.interpretation.gene_sets import GeneSets
from bdm.seeds import derive

FEWEST_GENES = 3  # of a set that the model has; marker lists are short
MOST_SETS = 50  # beyond these, those of cell types elsewhere in the tree are left out
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

    Genes are ranked by the differences' score, and sets are judged against random sets of as many of the model's
    genes. Of 1,000 permutations, a p-value of 0 is one below 0.001. Where there are more than 50 sets, those with the
    name of a cell type are left out at nodes that the type is not below.

    Parameters
    ----------
    branches
        Contrasts and the differences by which genes are ranked.

    Returns
    -------
    Table of contrasts and sets of three genes or more, best first: ``score`` and ``normalised_score`` are above 0 where
    the set is higher inside, ``q`` is the false discovery rate over the sets of a contrast.

    References
    ----------
    Subramanian et al. 2005, https://doi.org/10.1073/pnas.0506580102; GSEApy, Fang et al. 2023,
    https://doi.org/10.1093/bioinformatics/btac757
    """
    sets = {name: list(members) for name, members in sets.items() if FEWEST_GENES <= len(members) < len(genes)}
    tables = [pd.DataFrame(columns=["node", "level", "child", "cell_types", *COLUMNS.values(), "n_genes"])]
    branches = list(branches) if sets else []
    cell_types = {name for contrast, _ in branches for name in (*contrast.inside, *contrast.outside)}
    for contrast, differences in branches:
        elsewhere = cell_types.difference(contrast.inside, contrast.outside) if len(sets) > MOST_SETS else ()
        near = {name: members for name, members in sets.items() if name not in elsewhere}
        if not near:
            continue
        found = of_ranking(pd.Series(differences.score, index=genes), near, seed=derive(seed, contrast.child) % 2**31)
        found["n_genes"] = found["gene_set"].map({name: len(members) for name, members in sets.items()})
        names = {"node": contrast.node, "level": contrast.level, "child": contrast.child}
        tables.append(found.assign(**names, cell_types="; ".join(contrast.inside))[list(tables[0])])
    return pd.concat(tables[1:] or tables, ignore_index=True)


def of_ranking(score: pd.Series, sets: dict[str, list[str]], *, seed: int) -> pd.DataFrame:
    """Enrichment of each set in a ranking of genes, the highest first."""
    result = gseapy.prerank(
        rnk=score.sort_values(ascending=False, kind="stable"),
        gene_sets=sets,
        min_size=FEWEST_GENES,
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
