"""Fit models to public cells, and to donors with differential privacy, and attack and compare the cells of each."""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from anndata import AnnData
from audit_scores import kept_deviation
from opacus.optimizers import DPOptimizer
from privacy_attacks import attacks_on, fidelity
from privacy_divisions import divide
from privacy_table import DELTA, gaussian_scale

from bdm.arrays import to_tensor
from bdm.audit.folds import MEMBERS, NON_MEMBERS, REFERENCE, Fold, members_by_type, training_cells
from bdm.autoencoder.fit import FittedAutoencoder, Objective, fit_autoencoder
from bdm.autoencoder.fit_adapters import N_ITERATIONS
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.data.matrix import take_cells
from bdm.data.prepare import read_prepared
from bdm.evaluation.cells import FLOOR, Cells
from bdm.files import atomic_write
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.hierarchy.build import build_hierarchy
from bdm.latent.cells import encode, latent_cells
from bdm.latent.moments import Whitening, fit_whitening
from bdm.model.fit import fit_model
from bdm.model.model import BranchedModel
from bdm.provenance import preparation, provenance
from bdm.seeds import derive, numpy_generator, torch_generator
from bdm.settings import AutoencoderSettings, FitSettings, GenerationSettings
from bdm.threads import using_threads

# One network for all cells, so that it is all that is trained
SETTINGS = FitSettings(autoencoder=AutoencoderSettings(sub_populations="none", shared_decoder=True))
PER_DONOR = 64  # cells of a donor in a step
TRAINED = ("loadings.weight", "loadings.bias", "paced_dispersion", "type_dispersion")


@dataclass(frozen=True)
class Fit:
    """An autoencoder with the cells that the rest of a model is fitted to.

    Attributes
    ----------
    cells
        Prepared cells.
    fitted
        Autoencoder, of these cells or of others with the same cell types.
    """

    cells: AnnData
    fitted: FittedAutoencoder
    seed: int

    @classmethod
    def to(cls, cells: AnnData, *, seed: int) -> "Fit":
        """Fit an autoencoder to cells."""
        return cls(cells, fit_autoencoder(cells, SETTINGS.autoencoder, seed=seed), seed)

    @cached_property
    def autoencoder(self) -> GeneAutoencoder:
        """Autoencoder with its genes."""
        record = provenance(seed=self.seed, settings=asdict(SETTINGS.autoencoder), **preparation(self.cells))
        return GeneAutoencoder.of(self.fitted, self.cells.var, record)

    @cached_property
    def latent(self) -> AnnData:
        """Posteriors of the cells."""
        return encode(self.cells, self.autoencoder)

    def model(self, latent: AnnData | None = None) -> BranchedModel:
        """Fit a model to the latents of the cells, or to others."""
        latent = self.latent if latent is None else latent
        hierarchy = build_hierarchy(latent_cells(latent), SETTINGS.hierarchy, seed=self.seed)
        record = provenance(seed=self.seed, settings=asdict(SETTINGS.denoiser))
        model, _ = fit_model(latent, self.autoencoder, hierarchy, SETTINGS.denoiser, seed=self.seed, provenance=record)
        return model


@dataclass(frozen=True)
class Plan:
    """Sizes of epsilon of each mechanism; steps and learning rates of training."""

    epsilons: tuple[float, ...]
    steps: int
    learning_rates: tuple[float, ...]


def deviations(latent: AnnData, whitening: Whitening, means: pd.DataFrame) -> np.ndarray:
    """Find how far the means of each donor's cells are from those of all; 0 in cell types that a donor lacks.

    Parameters
    ----------
    means
        Cell types x dimensions of the whitened latent space.

    Returns
    -------
    Donors x (cell types x dimensions).
    """
    by_donor = means_by(latent, whitening, ["donor", "cell_type"])
    donors = by_donor.index.unique("donor")
    rows = [(by_donor.loc[donor] - means).reindex(means.index).fillna(0).to_numpy().ravel() for donor in donors]
    return np.stack(rows)


def means_by(latent: AnnData, whitening: Whitening, keys: list[str]) -> pd.DataFrame:
    """Average whitened latents by columns of ``obs``."""
    x = whitening(to_tensor(np.asarray(latent.X))).double().numpy()
    return pd.DataFrame(x).groupby([latent.obs[key].astype(str).to_numpy() for key in keys]).mean().rename_axis(keys)


def with_private_means(public: Fit, latent_of_members: AnnData, *, epsilon: float, seed: int) -> AnnData:
    """Move public latents such that the means of cell types are those of the members, by the Gaussian mechanism.

    The deviation of each donor from the public means is clipped to the median norm of the public donors. The average
    over the members, whose number is public, with the noise of the mechanism is added to public latents, so all that is
    computed from these latents has the guarantee for adding or removing a donor.

    Parameters
    ----------
    latent_of_members
        Posteriors of the members' cells under the public autoencoder.
    """
    whitening = fit_whitening(latent_cells(public.latent))
    means = means_by(public.latent, whitening, ["cell_type"])
    bound = np.median(np.linalg.norm(deviations(public.latent, whitening, means), axis=1))
    of_members = deviations(latent_of_members, whitening, means)
    clipped = of_members * np.minimum(1, bound / np.linalg.norm(of_members, axis=1))[:, None]
    noise = numpy_generator(seed, "means", str(epsilon)).standard_normal(clipped.shape[1])
    mean = clipped.mean(axis=0) + noise * noise_multiplier(epsilon, steps=1) * bound / len(clipped)
    of_type = pd.DataFrame(mean.reshape(means.shape), index=means.index)
    x = whitening(to_tensor(np.asarray(public.latent.X)))
    moved = x + to_tensor(of_type.loc[public.latent.obs["cell_type"].astype(str)].to_numpy()).to(x)
    latent = public.latent.copy()
    latent.X = whitening.inverse(moved).numpy()
    return latent


def noise_multiplier(epsilon: float, *, steps: int) -> float:
    """Find the noise of each of several steps in clipping norms, which is that of a single step times their root."""
    return 0.0 if np.isinf(epsilon) else gaussian_scale(epsilon, DELTA) * float(np.sqrt(steps))


def by_donor(cells: AnnData, *, seed: int) -> list[Objective]:
    """Make an objective of each donor's cells, all of them for training: a split would depend on other donors."""
    settings = replace(SETTINGS.autoencoder, batch_size=PER_DONOR)
    rows = pd.Series(np.arange(cells.n_obs)).groupby(cells.obs["donor"].astype(str).to_numpy())
    of_donors = [take_cells(cells, of.to_numpy()) for _, of in rows]
    for of in of_donors:
        of.obs = of.obs.assign(split="train")
    return [Objective.of_types(of, settings, seed=seed) for of in of_donors]


@using_threads()
def trained_privately(
    public: Fit, members: AnnData, *, epsilon: float, steps: int, learning_rate: float, seed: int
) -> CountAutoencoder:
    """Train a public network further by DP-SGD: noisy sums of the clipped gradients of all donors, in steps of Adam.

    Gradients are clipped to the median norm of those of the public donors before training. Prior means stay public.

    References
    ----------
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://doi.org/10.1145/2976749.2978318
    """
    network, generator = copy.deepcopy(public.fitted.network).train(), torch_generator(seed, "steps", str(epsilon))
    trained = [parameter for name, parameter in network.named_parameters() if name in TRAINED]
    of_public, of_members = (by_donor(cells, seed=seed) for cells in (public.cells, members))

    def gradients(donors: list[Objective]) -> list[torch.Tensor]:
        """Compute the gradient of the mean loss of each donor's cells; donors in the first dimension."""
        losses = (
            network(*donor.minibatch(network, generator), n_iterations=N_ITERATIONS)[0].mean() for donor in donors
        )
        return [torch.stack(of) for of in zip(*(torch.autograd.grad(loss, trained) for loss in losses), strict=True)]

    norms = torch.stack([of.flatten(1).norm(dim=1) for of in gradients(of_public)]).norm(dim=0)
    optimizer = DPOptimizer(
        torch.optim.Adam(trained, lr=learning_rate),
        noise_multiplier=noise_multiplier(epsilon, steps=steps),
        max_grad_norm=float(norms.median()),
        expected_batch_size=len(of_members),
        generator=generator,
    )
    for _ in range(steps):
        for parameter, of_donors in zip(trained, gradients(of_members), strict=True):
            parameter.grad_sample = of_donors
        optimizer.step()
        optimizer.zero_grad()
    return CountAutoencoder.of_state(network.shape, {name: of.detach() for name, of in network.state_dict().items()})


def models(
    prepared: AnnData, fold: Fold, plan: Plan, *, seed: int
) -> Iterator[tuple[dict[str, object], BranchedModel]]:
    """Yield what each model is, and the model: of public cells, of the members, and with each mechanism."""
    seed = derive(seed, "fold", fold.number)
    members, reference = (training_cells(prepared, fold, part, seed=seed) for part in (MEMBERS, REFERENCE))
    public = Fit.to(reference, seed=seed)
    yield {"set": "public"}, public.model()
    yield {"set": "members"}, Fit.to(members, seed=seed).model()
    latent = encode(members, public.autoencoder)
    for epsilon in plan.epsilons:
        moved = with_private_means(public, latent, epsilon=epsilon, seed=seed)
        yield {"set": "means", "epsilon": epsilon}, public.model(moved)
    for learning_rate in plan.learning_rates:
        for epsilon in plan.epsilons:
            how = {"epsilon": epsilon, "learning_rate": learning_rate}
            network = trained_privately(public, members, steps=plan.steps, seed=seed, **how)
            further = replace(public, fitted=replace(public.fitted, network=network))
            yield {"set": "training", **how}, further.model()


def rows(prepared: AnnData, fold: Fold, plan: Plan, *, seed: int) -> Iterator[dict[str, object]]:
    """Yield the scores of the cells of each model, after the floor: cells of the members."""
    cells = Cells.from_anndata(prepared)
    parts = [cells[fold.rows(part)] for part in (MEMBERS, NON_MEMBERS, REFERENCE)]
    donor, n_members = fold.unit[fold.rows(REFERENCE)], members_by_type(prepared.obs, fold)
    yield {"set": FLOOR, **fidelity(parts[0], parts[1], seed=0)}
    for what, model in models(prepared, fold, plan, seed=seed):
        generated = Cells.from_anndata(
            generate_cells(model, request_cells(model, n_members), GenerationSettings(), seed=seed)
        )
        found = attacks_on(prepared, fold, generated, None, None)
        kept = kept_deviation(generated, *parts, donor)
        yield what | found | fidelity(generated, parts[1], seed=0) | {"kept_deviation": kept}


def main(
    prepared: Path,
    out: Path,
    *,
    number: Annotated[int, typer.Option()],
    epsilon: Annotated[list[float], typer.Option()],
    steps: Annotated[int, typer.Option()],
    learning_rate: Annotated[list[float], typer.Option()],
    seed: int = 0,
) -> None:
    """Write a row for each model of one fold of an audit, by its number."""
    read = read_prepared(prepared)
    fold = divide(read, f"thirds-{number}", n_others=0, seed=seed)
    plan = Plan(tuple(epsilon), steps, tuple(learning_rate))
    table = pd.DataFrame(rows(read, fold, plan, seed=seed))
    with atomic_write(out) as path:
        table.to_csv(path, index=False, float_format="%.5f")


if __name__ == "__main__":
    typer.run(main)
