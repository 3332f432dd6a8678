"""Measure what Tseng et al. (2024) claim for branched diffusion models, in the latents of one autoencoder.

Three priors of the cell types: the closed form of the mixtures; `branched`, a network along the tree that corrects
them; and `linear`, a conditional diffusion whose network learns each type from noise to cells, without a tree or
mixtures. Both networks have the same size and number of steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
import typer
from tidy import write_rows
from torch import Tensor

from bdm._core.seeds import derive, torch_generator
from bdm._core.training import TrainingPlan, train
from bdm.autoencoder.latent import LatentCells, latent_cells
from bdm.autoencoder.moments import PopulationMoments, Whitening, fit_whitening, population_moments
from bdm.evaluation.metrics import energy_distance, pair_distances
from bdm.hierarchy.build import attachment_point, build_hierarchy, with_new_type
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.model.fit_model import EncodedCells
from bdm.prior.base import LatentPrior, PriorData
from bdm.prior.diffusion import DiffusionPrior
from bdm.prior.mixture import GaussianMixturePrior, HierarchicalSampler
from bdm.prior.network import BranchNetwork, VelocityLoss
from bdm.prior.populations import BranchPopulations
from bdm.settings import HierarchySettings, TrainSettings

N_CELLS = 500  # generated of each type
MIN_HELD_OUT = 20  # held-out cells of a type that is scored
CPU = torch.device("cpu")
ALL = "all"  # cell types


class CountingSampler(HierarchicalSampler):
    """Sampler that counts the cells that its network denoises."""

    def solve(self, branch: int, x: Tensor, sigmas: list[float]) -> Tensor:
        """Solve the ODE, which evaluates the network once per step."""
        vars(self)["n_evaluations"] = self.n_evaluations + len(x) * (len(sigmas) - 1)
        return super().solve(branch, x, sigmas)

    @property
    def n_evaluations(self) -> int:
        """Number of cells denoised by a network so far."""
        return int(vars(self).get("n_evaluations", 0)) if self.prior.has_network else 0


# ---- priors


def data_of(cells: LatentCells, whitening: Whitening, *, seed: int) -> PriorData:
    """Gather what priors are fitted to, with the tree of the types; a single type has no tree."""
    if len(cells.populations) > 1:
        hierarchy = build_hierarchy(cells, HierarchySettings(n_bootstrap=0), seed=seed)
    else:
        hierarchy = Hierarchy((Branch(cells.populations[0], None, 0.0, len(cells.population)),), 1.0, 0.9)
    return PriorData(cells, whitening, population_moments(cells, whitening), hierarchy)


def flat(hierarchy: Hierarchy) -> Hierarchy:
    """Return a tree in which each type has a branch from noise to cells."""
    root = replace(hierarchy.root, level=hierarchy.sigma_max)
    leaves = (Branch(name, root.name, 0.0, hierarchy.by_name[name].n_cells) for name in hierarchy.populations)
    return Hierarchy((root, *leaves), hierarchy.sigma_max, hierarchy.threshold)


def standard(moments: PopulationMoments) -> PopulationMoments:
    """Return the moments of a standard normal for each population."""
    identity = torch.eye(moments.mean.shape[1]).expand_as(moments.covariance)
    return replace(moments, mean=torch.zeros_like(moments.mean), covariance=identity)


def trained(
    data: PriorData, settings: TrainSettings, *, seed: int, start: DiffusionPrior | None = None
) -> DiffusionPrior:
    """Train a network for all steps, from the network of ``start`` if given."""
    populations = BranchPopulations.from_moments(data.moments, data.hierarchy)
    network = BranchNetwork.initial(data, settings, seed=seed)
    if start is not None:
        network.load_state_dict(start.network.state_dict())
    loss = VelocityLoss(data, torch.arange(len(data.cells.population)), populations, CPU)
    plan = TrainingPlan(settings.n_steps, settings.learning_rate, seed=derive(seed, "steps"), device=CPU)
    train(network, loss, plan)
    return DiffusionPrior(data.hierarchy, populations, network.eval().requires_grad_(False))


def as_linear(data: PriorData) -> PriorData:
    """Return data for a linear diffusion."""
    return replace(data, hierarchy=flat(data.hierarchy), moments=standard(data.moments))


# ---- scores


@dataclass(frozen=True)
class Real:
    """Held-out and training cells of each type, whitened."""

    training: LatentCells
    held_out: LatentCells
    whitening: Whitening
    seed: int

    def sampled(self, cells: LatentCells, name: str) -> np.ndarray:
        """Sample the posteriors of the cells of a type."""
        members = torch.nonzero(cells.population == cells.populations.index(name)).squeeze(1)[:N_CELLS]
        part = "real" if cells is self.held_out else "training"
        return self.whitening(cells.sample(members, torch_generator(self.seed, part, name))).numpy()

    def energy(self, x: np.ndarray | Tensor, name: str) -> float:
        """Return the energy distance of cells to held-out cells of a type."""
        return energy_distance(pair_distances(np.asarray(x), self.sampled(self.held_out, name)), len(x))

    @property
    def types(self) -> list[str]:
        """Types with enough held-out cells."""
        numbers = zip(self.held_out.populations, self.held_out.n_cells.tolist(), strict=True)
        return [name for name, n_cells in numbers if n_cells >= MIN_HELD_OUT]


def energies(prior: LatentPrior, real: Real, types: list[str]) -> float:
    """Return the mean energy distance of generated cells over types."""
    draw = {name: prior.sampler().sample(name, N_CELLS, torch_generator(real.seed, name)) for name in types}
    return float(np.mean([real.energy(x, name) for name, x in draw.items()]))


def sampling(prior: GaussianMixturePrior, real: Real, *, shared: bool) -> dict[str, float]:
    """Measure evaluations of the network by cell, and milliseconds of processor by 1,000 cells."""
    sampler, names, start = CountingSampler(prior), prior.hierarchy.populations, process_time()
    if shared:
        cells = sampler.sample_shared(names, N_CELLS, real.seed)
    else:
        cells = {name: sampler.sample(name, N_CELLS, torch_generator(real.seed, name)) for name in names}
    seconds, n_cells = process_time() - start, N_CELLS * len(names)
    near = float(np.mean([real.energy(cells[name], name) for name in real.types]))
    return {"evaluations": sampler.n_evaluations / n_cells, "milliseconds": 1e6 * seconds / n_cells, "energy": near}


def extended(
    prior: GaussianMixturePrior, known: PriorData, new: PriorData, settings: TrainSettings, *, seed: int
) -> GaussianMixturePrior:
    """Add a type to a prior along its tree."""
    distances = ((known.moments.mean - new.moments.mean) ** 2).sum(dim=1).tolist()
    point = attachment_point(prior.hierarchy, dict(zip(known.moments.populations, distances, strict=True)))
    tree = Hierarchy((replace(new.hierarchy.root, level=0.0),), point.level, prior.hierarchy.threshold)
    state = prior.fit_added(replace(new, hierarchy=tree), point.branch, settings, seed=seed)
    hierarchy = with_new_type(prior.hierarchy, tree, point, row=prior.n_rows)
    return prior.extended(hierarchy, tree, new.moments, state)


def selected(real: Real, mask: Tensor, *, seed: int) -> PriorData:
    """Select training cells of some types, with their tree."""
    part = real.training.subset(torch.nonzero(mask).squeeze(1))
    codes, population = torch.unique(part.population, return_inverse=True)
    names = tuple(real.training.populations[code] for code in codes)
    return data_of(replace(part, population=population, populations=names, labels=names), real.whitening, seed=seed)


def extension(real: Real, new: str, settings: TrainSettings, *, seed: int) -> Iterator[dict[str, Any]]:
    """Add a type to priors of the others.

    Yields the distance of known types before and after, that of the new type, and processor seconds.
    """
    is_new = real.training.population == real.training.populations.index(new)
    known, added = (selected(real, mask, seed=seed) for mask in (~is_new, is_new))
    scored = [name for name in real.types if name != new]

    def row(method: str, before: LatentPrior, after: LatentPrior, start: float) -> dict[str, Any]:
        seconds = process_time() - start
        of_known = {"before": energies(before, real, scored), "after": energies(after, real, scored)}
        of_new = {"new": energies(after, real, [new]), "seconds": seconds}
        return {"method": method, "cell_type": new, **of_known, **of_new}

    mixture = GaussianMixturePrior.from_moments(known.moments, known.hierarchy)
    for method, prior in (("closed form", mixture), ("branched", trained(known, settings, seed=seed))):
        start = process_time()
        yield row(method, prior, extended(prior, known, added, settings, seed=seed), start)
    every = as_linear(data_of(real.training, real.whitening, seed=seed))
    of_known, of_new = (real.training.subset(torch.nonzero(mask).squeeze(1)) for mask in (~is_new, is_new))
    before = trained(replace(every, cells=of_known), settings, seed=seed)
    start = process_time()
    after = trained(replace(every, cells=of_new), settings, seed=seed, start=before)
    yield row("linear", before, after, start)


def by_type(cells: LatentCells) -> LatentCells:
    """Replace the populations of cells by their types."""
    names = tuple(dict.fromkeys(cells.labels))
    code = torch.tensor([names.index(label) for label in cells.labels])
    return replace(cells, population=code[cells.population], populations=names, labels=names)


def main(
    prepared: Path,
    autoencoder: Path,
    out: Path,
    *,
    n_steps: int = 1000,
    every: int = 4,
    seed: int = 0,
) -> None:
    """Write evaluations of the network and distances by prior, and what happens when a type is added.

    Half of the cells are held out. Every ``every``-th type is added.
    """
    cells = by_type(latent_cells(EncodedCells.load(autoencoder).latent, with_test=True))
    half = torch.rand(len(cells.population), generator=torch_generator(seed, "halves")) < 0.5
    training, held_out = (cells.subset(torch.nonzero(mask).squeeze(1)) for mask in (half, ~half))
    real = Real(training, held_out, fit_whitening(training), seed)
    data, settings, priors, rows = data_of(training, real.whitening, seed=seed), TrainSettings(n_steps=n_steps), {}, []
    for method, given in (("branched", data), ("linear", as_linear(data))):
        start = process_time()
        priors[method] = trained(given, settings, seed=seed)
        rows.append((method, ALL, "training_seconds", process_time() - start))
    floor = float(np.mean([real.energy(real.sampled(training, name), name) for name in real.types]))
    rows.append(("floor", ALL, "energy", floor))
    closed = GaussianMixturePrior.from_moments(data.moments, data.hierarchy)
    for method, prior in {"closed form": closed, **priors}.items():
        rows += [(method, ALL, *score) for score in sampling(prior, real, shared=False).items()]
    shared = sampling(priors["branched"], real, shared=True)
    rows += [("branched, shared ancestors", ALL, *score) for score in shared.items()]
    for new in real.types[::every]:
        for each in extension(real, new, settings, seed=seed):
            method, name = each.pop("method"), each.pop("cell_type")
            rows += [(method, name, *score) for score in each.items()]
    write_rows(pd.DataFrame(rows, columns=["method", "cell_type", "score", "value"]), out)


if __name__ == "__main__":
    typer.run(main)
