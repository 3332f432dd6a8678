import copy

import pandas as pd
import torch
from torch import Tensor, nn

from bdm.diffusion.denoiser import BranchedDenoiser
from bdm.diffusion.fit import DenoiserSettings, denoising_losses, draw_noised
from bdm.latent.cells import LatentCells
from bdm.latent.whitening import Whitening
from bdm.seeds import derive
from bdm.training import Loop, train


def fit_embedding(
    denoiser: BranchedDenoiser,
    cells: LatentCells,
    whitening: Whitening,
    level: float,
    settings: DenoiserSettings,
    *,
    seed: int,
) -> tuple[Tensor, pd.DataFrame]:
    """Train the embedding of a denoiser's last branch, and nothing else.

    Parameters
    ----------
    cells
        Of the branch's cell type.
    level
        Noise level down from which the branch runs.
    """
    network = copy.deepcopy(denoiser).cpu().requires_grad_(False)
    network.branch.weight.requires_grad_(True)
    number = torch.tensor([network.shape.n_branches - 1])

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(cells.mean), (settings.batch_size,), generator=generator)
        x = whitening(cells.draw(index, generator))
        noised, sigma = draw_noised(x, settings, level, generator)
        return denoising_losses(network(noised, sigma, number), x, sigma).mean()

    what = f"the branch of type {cells.cell_types[0]!r}"
    loop = Loop(settings.n_steps, settings.learning_rate, seed=derive(seed, "embedding"), device="cpu", what=what)
    history = train(network, loss, loop)
    return network.branch.weight[-1].detach().clone(), history
