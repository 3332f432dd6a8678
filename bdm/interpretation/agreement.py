"""The genes of one contrast in the model and in real cells, and how well these agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from bdm.evaluation.metrics import Agreement
from bdm.interpretation.commitment import Commitment
from bdm.interpretation.contrasts import Contrast, Differences

QUERIES = ("model", "training", "equal")
Z_95 = 1.96


@dataclass(frozen=True)
class ContrastGenes:
    """The genes of one contrast, in the model and in real cells; None where there are too few cells.

    Attributes
    ----------
    training
        In the training cells.
    equal
        In as many training cells of each type as there are test cells.
    test
        In the test cells, with which the others are compared.
    """

    contrast: Contrast
    model: Differences
    commitment: Commitment
    training: Differences | None
    equal: Differences | None
    test: Differences | None

    def agreement(self, query: str, *, n_genes: int) -> BranchAgreement | None:
        """Agreement with the test cells of one of ``QUERIES``."""
        differences = getattr(self, query)
        return BranchAgreement.of(differences, self.test, n_genes=n_genes) if differences and self.test else None


def without_mirrored(contrasts: tuple[ContrastGenes, ...]) -> list[ContrastGenes]:
    """Leave out the second contrast of nodes with two children, which mirrors the first."""
    nodes = [list(group) for _, group in groupby(contrasts, key=lambda of: of.contrast.node)]
    return [of for node in nodes for of in (node[:1] if len(node) == 2 else node)]


@dataclass(frozen=True)
class BranchAgreement:
    """How well the differences of a query agree with the differences in test cells; 1 is perfect.

    Attributes
    ----------
    pearson, spearman, slope
        Of log fold changes, over genes; the slope is of query on test.
    top_shared
        Share of the top genes by score that are the same.
    auprc
        Area under the precision-recall curve (average precision) of the query's score, for finding genes that are
        significantly higher in test cells; NaN where there are none. By chance it is the share of these genes.
    coverage
        Share of genes whose fold changes differ by no more than their joint 95% interval; 0.95 where the two
        differ by the sampling of cells alone.
    """

    pearson: float
    spearman: float
    slope: float
    top_shared: float
    auprc: float
    coverage: float

    @classmethod
    def of(cls, query: Differences, test: Differences, *, n_genes: int) -> BranchAgreement:
        """Compare the differences of one contrast."""
        n_genes = min(n_genes, len(test.score))
        ours, theirs = query.fold_change, test.fold_change
        changes = Agreement(ours.log2, theirs.log2)
        error = np.hypot(ours.standard_error, theirs.standard_error)
        positive = test.significant
        return cls(
            pearson=changes.correlation,
            spearman=float(spearmanr(ours.log2, theirs.log2).statistic),
            slope=changes.slope,
            top_shared=float(np.mean(query.rank[test.rank <= n_genes] <= n_genes)),
            auprc=float(average_precision_score(positive, query.score)) if positive.any() else np.nan,
            coverage=float(np.mean(np.abs(ours.log2 - theirs.log2) <= Z_95 * error)),
        )


def mean_agreement(agreements: Iterable[BranchAgreement]) -> pd.Series:
    """Mean of each measure where it is known; NaN where it never is."""
    return pd.DataFrame([asdict(a) for a in agreements], columns=list(BranchAgreement.__dataclass_fields__)).mean()


def column_of(measure: str, query: str) -> str:
    """Name the column of a measure."""
    return measure if query == "model" else f"{measure}_{query}"
