from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from bdm.evaluation.agreement import Agreement
from bdm.interpretation.differences import Differences

Z_95 = 1.96


@dataclass(frozen=True)
class BranchAgreement:
    """How well judged differences agree with those in real cells; 1 is perfect.

    Attributes
    ----------
    pearson, spearman, slope
        Of log fold changes, over genes; the slope is of judged on real.
    top_shared
        Share of the top genes by score that are the same.
    auprc
        Area under the precision-recall curve (average precision) of the judged score for finding genes significantly
        higher in real cells; NaN where there are none. By chance it is the share of these genes.
    coverage
        Share of genes whose fold changes differ by no more than their joint 95% interval; 0.95 where nothing but the
        numbers of cells parts the two.
    """

    pearson: float
    spearman: float
    slope: float
    top_shared: float
    auprc: float
    coverage: float

    @classmethod
    def of(cls, judged: Differences, real: Differences, *, n_genes: int) -> BranchAgreement:
        """Compare the differences of one contrast."""
        n_genes = min(n_genes, len(real.score))
        ours, theirs = judged.fold_change, real.fold_change
        changes = Agreement(ours.log2, theirs.log2)
        error = np.hypot(ours.standard_error, theirs.standard_error)
        positive = real.significant
        return cls(
            pearson=changes.correlation,
            spearman=float(spearmanr(ours.log2, theirs.log2).statistic),
            slope=changes.slope,
            top_shared=float(np.mean(judged.rank[real.rank <= n_genes] <= n_genes)),
            auprc=float(average_precision_score(positive, judged.score)) if positive.any() else np.nan,
            coverage=float(np.mean(np.abs(ours.log2 - theirs.log2) <= Z_95 * error)),
        )


def mean_agreement(agreements: Iterable[BranchAgreement]) -> pd.Series:
    """Mean of each measure where it is known; NaN where it never is."""
    return pd.DataFrame([asdict(a) for a in agreements], columns=list(BranchAgreement.__dataclass_fields__)).mean()
