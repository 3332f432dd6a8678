from dataclasses import dataclass

import numpy as np

MIN_FOLD_CHANGE = 1.0  # log2
MAX_P = 0.05
PSEUDOCOUNT = 1.0  # CP10k


@dataclass(frozen=True)
class Differences:
    """How genes differ between the two sides of a contrast; positive where higher inside. All arrays are by gene.

    Attributes
    ----------
    log2_fold_change
        Of mean expression in CP10k, with 1 CP10k added to both means.
    score
        What genes are ranked by: the z of a Wilcoxon test in real cells, a standardised difference in the model.
    p_adjusted
        Of real cells' test, by Benjamini and Hochberg.
    """

    log2_fold_change: np.ndarray
    score: np.ndarray
    p_adjusted: np.ndarray | None = None

    @property
    def rank(self) -> np.ndarray:
        """Rank of each gene by score, from 1 for the gene that marks the inside most."""
        rank = np.empty(len(self.score), dtype=int)
        rank[np.argsort(-self.score, kind="stable")] = np.arange(1, len(self.score) + 1)
        return rank

    @property
    def significant(self) -> np.ndarray:
        """Genes that are significantly, and at least twofold, higher inside."""
        return (self.p_adjusted < MAX_P) & (self.log2_fold_change > MIN_FOLD_CHANGE)
