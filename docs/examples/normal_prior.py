"""A prior of one normal distribution for each population, without a tree."""

from dataclasses import dataclass, replace

import torch

from bdm.prior.base import FittedPrior, LatentPrior, Sampler


@dataclass(frozen=True, eq=False)
class NormalPrior(LatentPrior, name="normal"):
    """Mean and Cholesky factor of each population in whitened space."""

    names: tuple[str, ...]
    mean: torch.Tensor
    root: torch.Tensor

    @classmethod
    def fit(cls, data, settings, *, seed, device="auto"):
        """Use the moments of the populations; trained priors also use the other arguments."""
        moments = data.moments
        return FittedPrior(
            cls(data.hierarchy, moments.populations, moments.mean, torch.linalg.cholesky(moments.covariance))
        )

    def sampler(self):
        """Return a sampler."""
        return NormalSampler(self)

    def extended(self, hierarchy, tree, moments, state):
        """Add the normals of new populations."""
        kept = [row for row, name in enumerate(self.names) if name not in moments.populations]
        return replace(
            self,
            hierarchy=hierarchy,
            names=(*(self.names[row] for row in kept), *moments.populations),
            mean=torch.cat([self.mean[kept], moments.mean]),
            root=torch.cat([self.root[kept], torch.linalg.cholesky(moments.covariance)]),
        )


@dataclass(frozen=True, eq=False)
class NormalSampler(Sampler):
    """Samples cells from the normals of the populations."""

    name = "normal"
    prior: NormalPrior

    def sample(self, population, n_cells, generator):
        """Sample cells of a population."""
        row = self.prior.names.index(population)
        noise = torch.randn(n_cells, self.prior.mean.shape[1], generator=generator)
        return self.prior.mean[row] + noise @ self.prior.root[row].T
