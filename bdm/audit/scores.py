"""What scores of attacks amount to: ROC curves of cells and of units, and what chance makes of them."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score, roc_curve

FALSE_POSITIVES = 0.01
KEYS = ["fold", "unit", "cell_type", "member"]
N_DRAWS = 20  # of cells of each donor, where not all are used


def score_columns(scores: pd.DataFrame) -> list[str]:
    """Names of the columns that are scores."""
    return [name for name in scores if name not in KEYS]


def standardised(scores: pd.DataFrame) -> pd.DataFrame:
    """Standardise scores by fold and cell type, whose scores have different means and spreads.

    Members and non-members are standardised together.
    """
    columns = score_columns(scores)
    groups = scores.groupby(["fold", "cell_type"], sort=False)[columns]
    spread = groups.transform("std").replace(0, np.nan)
    values = (scores[columns] - groups.transform("mean")) / spread
    known = scores[columns].notna() & spread.isna()  # all cells of the type have the same score
    return scores[KEYS].join(values.mask(known, 0.0))


def of_units(cells: pd.DataFrame, *, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Average the scores of the cells of each unit in each fold, and by other columns."""
    keys = ["fold", *by, "unit"]
    columns = score_columns(cells)
    return cells.groupby(keys, sort=True)[["member", *columns]].mean().reset_index()


def some_cells(cells: pd.DataFrame, number: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draw at most ``number`` cells of each unit in each fold."""
    shuffled = cells.iloc[rng.permutation(len(cells))]
    rank = shuffled.groupby(["fold", "unit"]).cumcount()
    return shuffled[rank < number]


def curves(table: pd.DataFrame, columns: list[str]) -> Iterator[tuple[str, float, float]]:
    """Compute, for each score, the area under the ROC curve, and the share of members at 1% of non-members.

    Parameters
    ----------
    table
        Cells or units with ``member``, and their scores.
    """
    for name in columns:
        known = table[name].notna()
        member = table.loc[known, "member"] > 0
        if member.all() or not member.any():
            yield name, np.nan, np.nan
            continue
        score = table.loc[known, name]
        false, true, _ = roc_curve(member, score, drop_intermediate=False)
        yield name, float(roc_auc_score(member, score)), float(true[false <= FALSE_POSITIVES].max())


def null_of_units(units: pd.DataFrame, columns: list[str], *, n_permutations: int, seed: int) -> np.ndarray:
    """Compute areas under ROC curves after permutations of membership among the units of each fold.

    All scores of a unit stay together, so that the areas of several attacks depend on each other as they do. As in
    :func:`curves`, units without a score do not count.

    Returns
    -------
    Permutations x scores: means over the folds that have the score.
    """
    rng = np.random.default_rng(seed)
    folds = [of for _, of in units.groupby("fold", sort=True)]
    areas = np.full((len(folds), n_permutations, len(columns)), np.nan)
    for of, of_fold in zip(folds, areas, strict=True):
        known = of[columns].notna().to_numpy()
        ranks = of[columns].rank().fillna(0).to_numpy()
        n_members = int((of["member"] > 0).sum())
        for row in of_fold:
            chosen = rng.permutation(len(of))[:n_members]
            found = known[chosen].sum(axis=0)
            pairs = found * (known.sum(axis=0) - found)
            above = ranks[chosen].sum(axis=0) - found * (found + 1) / 2
            np.divide(above, pairs, out=row, where=pairs > 0)
    return np.asarray(np.nanmean(areas, axis=0))


def spread_of_auc(n_members: int, n_others: int) -> float:
    """Compute the standard deviation, by chance, of the area under the ROC curve of independent units without ties."""
    return float(np.sqrt((n_members + n_others + 1) / (12 * n_members * n_others))) if n_members * n_others else np.nan
