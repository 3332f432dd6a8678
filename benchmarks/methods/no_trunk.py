"""Ablation: `bdm` with a separate denoiser for every branch, in place of the trunk that all branches share.

Hierarchy, transport and the number of training steps and of cells in each are the same. A branch learns from as many
cells as with the trunk, but from no others.
"""

from dataclasses import replace

import ablation
import torch
from torch import Tensor, nn

from bdm.diffusion.denoiser import BranchedDenoiser, DenoiserShape


class SeparateDenoisers(BranchedDenoiser):
    """Denoiser of all branches whose network is that of one `BranchedDenoiser` for each."""

    def __init__(self, shape: DenoiserShape):
        super().__init__(shape)
        alone = replace(shape, n_branches=1)
        self.of_branch = nn.ModuleList(BranchedDenoiser(alone) for _ in range(shape.n_branches))

    def network(self, x: Tensor, c_noise: Tensor, branch: Tensor) -> Tensor:
        """Remainder from standardised x; the arguments as for `BranchedDenoiser`."""
        c_noise, branch = c_noise.expand(len(x), 1), branch.expand(len(x))
        learned = torch.empty_like(x)
        for number in branch.unique().tolist():
            on = branch == number
            learned[on] = self.of_branch[number].network(x[on], c_noise[on], torch.zeros_like(branch[on]))
        return learned


if __name__ == "__main__":
    ablation.run(denoiser=SeparateDenoisers)
