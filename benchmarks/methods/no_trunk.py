"""Ablation: `bdm` with a separate denoiser for every branch, in place of the trunk that all branches share.

Hierarchy, transport and the number of training steps and of cells in each are the same. A branch learns from as many
cells as with the trunk, but from no others.
"""

from dataclasses import replace

import ablation
import torch
from torch import Tensor, nn

from bdm.diffusion.denoiser import BranchedDenoiser, DenoiserShape
from bdm.latent.moments import Normal


class SeparateDenoisers(nn.Module):
    """Denoiser of all branches, made of one `BranchedDenoiser` for each."""

    def __init__(self, shape: DenoiserShape):
        super().__init__()
        self.shape = shape
        alone = replace(shape, n_branches=1)
        self.of_branch = nn.ModuleList(BranchedDenoiser(alone) for _ in range(shape.n_branches))

    def set_populations(self, mean: Tensor, covariance: Tensor) -> None:
        """Set the moments of the branches' populations, as `BranchedDenoiser` does."""
        for number, denoiser in enumerate(self.of_branch):
            denoiser.set_populations(mean[number, None], covariance[number, None])

    def population(self, branch: int) -> Normal:
        """Moments of a branch's cells, as of `BranchedDenoiser`."""
        return self.of_branch[branch].population(0)

    def forward(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoised x; the arguments as for `BranchedDenoiser`."""
        sigma, branch = sigma.expand(len(x)), branch.expand(len(x))
        denoised = torch.empty_like(x)
        for number in branch.unique().tolist():
            on = branch == number
            denoised[on] = self.of_branch[number](x[on], sigma[on], torch.zeros_like(branch[on]))
        return denoised


if __name__ == "__main__":
    ablation.run(denoiser=SeparateDenoisers)
