"""Stability of the nodes of a hierarchy."""

from collections import Counter

import numpy as np
import pandas as pd
import torch

from bdm._core.seeds import torch_generator
from bdm.hierarchy.build import MIN_LEVEL, MeasuredClade, measure_clade, merge_height
from bdm.hierarchy.clustering import MeasuredMeans, clades_of_populations
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import LatentCells
from bdm.latent.moments import Whitening, sampling_variance
from bdm.model.model import BranchedModel

THRESHOLDS = tuple(np.arange(0.55, 0.96, 0.05).round(2))
N_DRAWS = 100


def node_stability(model: BranchedModel, cells: LatentCells, *, seed: int) -> pd.DataFrame:
    """Measure how far each node depends on the cells, on their latents, and on the threshold.

    ``distance`` between populations of different children (root mean square, whitened); ``support``, the share of
    bootstrap resamples with this clade; ``latent_stability``, of draws of all latents from their posteriors, in place
    of other fits; ``threshold_stability``, the share of thresholds from 0.55 to 0.95 at which the branch of the node
    has a length.
    """
    hierarchy, means = model.hierarchy, MeasuredMeans.from_moments(model.moments)
    index = {population: i for i, population in enumerate(model.populations)}
    names = [branch.name for branch in hierarchy.branches if hierarchy.children[branch.name]]
    trees = [
        by_node(measure_clade(hierarchy.shape(hierarchy.root.name), means, index, threshold=threshold), hierarchy)
        for threshold in THRESHOLDS
    ]
    apart = {
        name: [of[name].level > MIN_LEVEL and (not above or of[name].level < of[above].level) for of in trees]
        for name, above in ((name, hierarchy.by_name[name].parent) for name in names)
    }
    heights = [merge_height(trees[0][name].children) for name in names]
    support = latent_support(cells, model.whitening, means, n_draws=N_DRAWS, seed=seed)
    return pd.DataFrame(
        {
            "distance": np.sqrt(heights),
            "support": [float("nan") if (s := hierarchy.by_name[name].support) is None else s for name in names],
            "latent_stability": [support.get(frozenset(trees[0][name].members), 0.0) for name in names],
            "threshold_stability": [float(np.mean(of_node)) for of_node in apart.values()],
        },
        index=pd.Index(names, name="node"),
    )


def latent_support(
    cells: LatentCells, whitening: Whitening, means: MeasuredMeans, *, n_draws: int, seed: int
) -> dict[frozenset[int], float]:
    """Share of draws of all cells from their posteriors in which each set of populations is a clade.

    The mean of n independent normals is normal, so the means of populations are sampled, not each cell; the noise of
    measured means and of draws is subtracted. Populations without cells keep their means.
    """
    generator = torch_generator(seed, "latent support")
    shape = len(cells.populations), cells.mean.shape[1]
    n_cells = cells.n_cells.clamp(min=1)[:, None].double()
    mean, variance = (
        torch.zeros(shape, dtype=torch.float64).index_add(0, cells.population, values.double()) / n_cells
        for values in (cells.mean, cells.scale**2)
    )
    scales = (cells.scale[cells.population == code] for code in range(len(cells.populations)))
    of_draws = [float(whitening.variance(scale).trace()) for scale in scales]
    sampling = sampling_variance(cells, whitening).double().numpy()
    absent = (cells.n_cells == 0).numpy()
    noise_variance = np.where(absent, means.variance, sampling + np.array(of_draws) / n_cells.squeeze(1).numpy())
    seen: Counter[frozenset[int]] = Counter()
    for _ in range(n_draws):
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        y = mean + (variance / n_cells).sqrt() * noise
        drawn = np.where(absent[:, None], means.mean, whitening(y.float()).double().numpy())
        seen.update(clades_of_populations(MeasuredMeans(drawn, noise_variance), cells.labels))
    return {clade: n / n_draws for clade, n in seen.items()}


def by_node(clade: MeasuredClade, hierarchy: Hierarchy) -> dict[str, MeasuredClade]:
    """Measured clades by the names of the hierarchy's nodes."""
    nodes, waiting = {}, [(clade, hierarchy.root.name)]
    while waiting:
        clade, name = waiting.pop()
        if clade.children:
            nodes[name] = clade
            waiting.extend(zip(clade.children, hierarchy.children[name], strict=True))
    return nodes
