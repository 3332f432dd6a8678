"""What scores of attacks amount to: ROC curves of cells and of units, and what chance makes of them."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import rankdata
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

    All scores of a unit stay together, so that the areas of several attacks depend on each other as they do.

    Returns
    -------
    Permutations x scores: means over folds.
    """
    rng = np.random.default_rng(seed)
    folds = [of for _, of in units.groupby("fold", sort=True)]
    areas = np.zeros((n_permutations, len(columns)))
    for of in folds:
        ranks = np.stack([rankdata(of[name].fillna(of[name].mean())) for name in columns], axis=1)
        member = of["member"].to_numpy() > 0
        n_members = int(member.sum())
        n_others = len(member) - n_members
        for row in range(n_permutations):
            chosen = rng.permutation(len(member))[:n_members]
            total = ranks[chosen].sum(axis=0)
            areas[row] += (total - n_members * (n_members + 1) / 2) / (n_members * n_others)
    return areas / len(folds)


def spread_of_auc(n_members: int, n_others: int) -> float:
    """Compute the standard deviation, by chance, of the area under the ROC curve of independent units without ties."""
    return float(np.sqrt((n_members + n_others + 1) / (12 * n_members * n_others))) if n_members * n_others else np.nan
