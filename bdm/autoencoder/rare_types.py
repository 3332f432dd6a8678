"""Decoders of cell types with few cells: empirical Bayes, gene by gene."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bdm._core.parallel import threads
from bdm._core.seeds import to_tensor, torch_generator
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.decoder import NegativeBinomialDecoder
from bdm.autoencoder.inputs import batch_codes, batch_names, type_names
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.observation import NegativeBinomial

MAX_CELLS = 100  # types with fewer training cells are improved
SCALES = (0.1, 0.25, 0.6, 1.5, 3.5)  # hypotheses: standard deviation of log expression around a reference
DISPERSIONS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0)  # hypotheses: dispersion relative to the mean over types
N_GRID = 61  # values of log expression per gene
MARGIN = 1.0  # log expression on the grid beyond the references and the population's own mean
N_ITERATIONS = 50  # of expectation maximisation
N_DRAWS = 1000  # latents to compute the mean expression of a decoder
N_CENTRINGS = 3  # Newton steps of the prior mean
N_PSEUDOCOUNTS = 100  # counts with the pooled expression that are added to a reference


@torch.no_grad()
def fit_rare_types(
    network: CountAutoencoder, populations: tuple[str, ...], adata: ad.AnnData, adapters: Adapters, *, seed: int
) -> Adapters:
    """Improve the decoders of undivided cell types with few training cells.

    The decoder describes genes together and may fit the noise of its cells; :func:`shrink_expression` describes each
    gene alone, relative to other populations. Their errors differ, so the offsets change to the mean of both in log
    expression. The dispersions are from :func:`shrink_expression`. Types without adapters start from the shared
    decoder. Only for RNA with negative binomial counts. Other arguments are as in
    :func:`bdm.autoencoder.adapters.fit_adapters`.
    """
    decoder = network.decoder
    training = adata[adata.obs["split"] == "train"]
    population = training.obs["sub_population"].to_numpy()
    rows = {name: np.flatnonzero(population == name) for name in np.unique(population)}
    rare = [name for name in type_names(adata) if len(rows.get(name, ())) in range(1, MAX_CELLS)]
    if len(rows) < 2 or network.shape.blocks or not isinstance(decoder, NegativeBinomialDecoder):
        return adapters
    batch, factor = batch_codes(training, batch_names(adata)), (decoder.batch_offset - decoder.mean_batch()).exp()
    size = to_tensor(np.asarray(training.X.sum(axis=1)).ravel())
    size_by_batch = one_hot(batch, len(factor)) * size[:, None]
    observed = {name: to_tensor(np.asarray(training.X[cells].sum(axis=0)).ravel()) for name, cells in rows.items()}
    exposure = {name: size_by_batch[cells].sum(dim=0) @ factor for name, cells in rows.items()}
    log_r = decoder.noise(torch.arange(network.shape.n_types))["log_inverse_dispersion"].mean(dim=0)

    def fit(name: str) -> Adapters:
        start = adapters if name in adapters else Adapters.from_shared(network, (name,), (populations.index(name),))
        start, cells = start.subset([name]), rows[name]
        counts = to_tensor(training.X[cells].toarray())
        known_names = [key for key in rows if key != name]
        references = reference_expression(
            [observed[key] for key in known_names], [exposure[key] for key in known_names]
        )
        mean, dispersion = shrink_expression(counts, size[cells, None] * factor[batch[cells]], references, -log_r)
        known, codes = start.network(name, network), torch.zeros(len(cells), dtype=torch.long)
        centre = known.encode(counts, codes, batch[cells]).mean.mean(dim=0)
        # Latents have unit variance within a population
        latent = centre + torch.randn(N_DRAWS, len(centre), generator=torch_generator(seed, "rare type", name))
        change = ((mean / mean.sum()).log() - known.decoder.decode(latent).exp().mean(dim=0).log()) / 2
        noise = NegativeBinomial(-dispersion.log()).within(start.parameters["loadings"][0].square().sum(dim=1))
        changed = {
            "offset": start.parameters["offset"] + change,
            "log_inverse_dispersion": noise.log_inverse_dispersion[None],
        }
        fitted = replace(start, parameters=start.parameters | {key: value.float() for key, value in changed.items()})
        # The cells' own noise would move their latents, and with them the population; the prior mean makes up for it
        for _ in range(N_CENTRINGS):
            posterior = fitted.network(name, network).encode(counts, codes, batch[cells])
            step = (centre - posterior.mean.mean(dim=0)) / posterior.scale.square().mean(dim=0)
            fitted = replace(fitted, prior_mean=fitted.prior_mean + step)
        return fitted

    with threads() as run:
        return adapters.updated(*run(fit, rare))


def reference_expression(observed: list[Tensor], exposure: list[Tensor]) -> Tensor:
    """Return references of log expression, references x genes.

    References are each population, all of them together, and the mean over populations. ``observed`` and ``exposure``
    are sums over the cells of each population, by gene.
    """
    counts, sizes = torch.stack(observed), torch.stack(exposure)
    pooled = (counts.sum(dim=0) + 0.5) / sizes.sum(dim=0)
    added = N_PSEUDOCOUNTS * sizes.mean(dim=0) / sizes.mean()
    expression = ((counts + added * pooled) / (sizes + added)).log()
    return torch.cat([expression, pooled.log()[None], expression.mean(dim=0, keepdim=True)])


def shrink_expression(
    counts: Tensor, exposure: Tensor, references: Tensor, log_dispersion: Tensor
) -> tuple[Tensor, Tensor]:
    """Estimate the expression and dispersion of genes in few cells by empirical Bayes.

    Counts are negative binomial. The prior of a gene's log expression is a mixture of normals of several scales around
    its ``references``, the log expression in other populations (references x genes). The prior of its dispersion is a
    mixture of multiples of the typical one. Both have the same weights for all genes, which maximise the marginal
    likelihood. ``exposure`` is the expected count at expression 1, such as library sizes, cells x genes or cells x 1.

    Returns the posterior mean of the expression, and the geometric posterior mean of the dispersion, of each gene.
    """
    counts, exposure, references = counts.double(), exposure.double(), references.double()
    own = ((counts.sum(dim=0) + 0.5) / exposure.expand_as(counts).sum(dim=0)).log()
    low = torch.minimum(references.amin(dim=0), own) - MARGIN
    high = torch.maximum(references.amax(dim=0), own) + MARGIN
    step = (high - low) / (N_GRID - 1)
    grid = low[:, None] + step[:, None] * torch.arange(N_GRID, dtype=torch.float64)  # genes x grid
    dispersions = (torch.tensor(DISPERSIONS, dtype=torch.float64)[:, None] * log_dispersion.double().exp()).clamp(
        1e-2, 1e3
    )
    likelihood = torch.stack([grid_likelihood(counts, exposure, grid, 1 / row) for row in dispersions], dim=1)
    likelihood = (likelihood - likelihood.amax(dim=(1, 2), keepdim=True)).exp()  # genes x dispersions x grid

    def prior(reference: Tensor) -> Tensor:
        scale = torch.maximum(torch.tensor(SCALES, dtype=torch.float64), step[:, None])[:, None]
        return torch.softmax(-(((grid - reference[:, None])[:, :, None] / scale) ** 2) / 2, dim=1)

    # Marginal likelihood of each gene under each hypothesis, genes x dispersions x (references, scales)
    marginal = torch.cat([likelihood @ prior(reference) for reference in references], dim=2)
    weight = torch.full(marginal.shape[1:], 1 / marginal[0].numel(), dtype=torch.float64)
    for _ in range(N_ITERATIONS):
        share = marginal.mul(weight)
        share = (share / share.sum(dim=(1, 2), keepdim=True)).mean(dim=0)
        weight = share.sum(dim=1, keepdim=True) * share.sum(dim=0)
    by_scale = weight.sum(dim=0).view(len(references), len(SCALES))
    density = sum(prior(reference) @ row for reference, row in zip(references, by_scale, strict=True))
    posterior = likelihood * density[:, None] * weight.sum(dim=1)[:, None]
    posterior = posterior / posterior.sum(dim=(1, 2), keepdim=True)
    expression = (posterior.sum(dim=1) * grid.exp()).sum(dim=1)
    return expression, (posterior.sum(dim=2) * dispersions.T.log()).sum(dim=1).exp()


def grid_likelihood(counts: Tensor, exposure: Tensor, grid: Tensor, r: Tensor) -> Tensor:
    """Return the negative binomial log likelihood on the grid, genes x grid."""
    total = torch.zeros_like(grid)
    for x, size in zip(counts, exposure.expand_as(counts), strict=True):
        log_mean, log_r = grid + size.log()[:, None], r.log()[:, None]
        log_total = torch.logaddexp(log_mean, log_r)
        constant = torch.lgamma(x + r) - torch.lgamma(r)
        total += constant[:, None] + x[:, None] * (log_mean - log_total) + r[:, None] * (log_r - log_total)
    return total
