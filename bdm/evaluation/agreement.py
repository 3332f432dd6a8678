from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Values of the same things in judged and in test cells, and how well they agree."""

    judged: np.ndarray
    test: np.ndarray

    @classmethod
    def pooled(cls, agreements: Iterable[Agreement]) -> Agreement:
        """Join the values of several."""
        agreements = list(agreements)
        return cls(
            judged=np.concatenate([agreement.judged for agreement in agreements]),
            test=np.concatenate([agreement.test for agreement in agreements]),
        )

    @property
    def correlation(self) -> float:
        """Pearson correlation; NaN where either is constant."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.corrcoef(self.test, self.judged)[0, 1])

    @property
    def slope(self) -> float:
        """Slope of the least-squares line of judged on test; NaN where test is constant."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.cov(self.test, self.judged)[0, 1] / np.var(self.test, ddof=1))

    @property
    def rmse(self) -> float:
        """Root of the mean squared difference."""
        return float(np.sqrt(np.mean((self.judged - self.test) ** 2)))

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference."""
        return float(np.mean(np.abs(self.judged - self.test)))
