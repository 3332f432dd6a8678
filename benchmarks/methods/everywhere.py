"""Ablation: the network on all branches, trained for all steps."""

from dataclasses import dataclass
from typing import Any

import ablation

from bdm.prior.base import FittedPrior, PriorData
from bdm.prior.diffusion import DiffusionPrior
from bdm.settings import TrainSettings


@dataclass(frozen=True, eq=False)
class EverywherePrior(DiffusionPrior, name="everywhere"):
    """The diffusion prior with its network on all branches."""

    @classmethod
    def fit(cls, data: PriorData, settings: TrainSettings, **options: Any) -> FittedPrior:
        """Train the network for all steps and keep it on all branches."""
        return super().fit(data, settings, everywhere=True, **options)


if __name__ == "__main__":
    ablation.run(prior=EverywherePrior.name)
