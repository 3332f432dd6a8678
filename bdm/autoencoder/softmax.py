"""Softmax link of linear decoders: likelihood of latents, and Newton steps for adapters."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bdm.autoencoder.observation import ObservationModel

CURVATURE = 1.5  # factor on the curvature, which is approximated by a mean cell; larger steps would diverge
MAX_STEP = 3  # of a gene's loadings, in prior standard deviations
OWN_MEAN_SCALE = 10  # factor on the prior scale of loadings without a softmax: log means of proteins span a wide range
MAX_LOG_STEP = 0.5  # of log expression and noise parameters

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks of features, one per modality (genes, proteins, peaks).

    In a normalised block, means are library size x softmax(logits). In other blocks, the mean of each feature is
    exp(logit): a few proteins have most of the counts, and their noise would enter the shares of all.
    """

    n_features: tuple[int, ...] = ()  # per block; empty for a single normalised block
    normalised: tuple[bool, ...] = (True,)  # whether each block has a softmax and a library size

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split values (... x features) by block."""
        return values.split(self.n_features, dim=-1) if self.n_features else (values,)

    def sums(self, values: Tensor) -> Tensor:
        """Sum values (... x features) over each normalised block; ... x normalised blocks."""
        return joined([part.sum(dim=-1, keepdim=True) for part in self.normalised_parts(values)])

    def spread(self, values: Tensor, *, others: float) -> Tensor:
        """Expand values (... x normalised blocks) to features.

        Features of blocks that are not normalised get the value ``others``. With a single block, values are returned
        as they are, to be broadcast.
        """
        if not self.n_features:
            return values
        columns = iter(values.split(1, dim=-1))
        parts = [
            (next(columns) if normalised else torch.full_like(values[..., :1], others)).expand(*values.shape[:-1], n)
            for n, normalised in zip(self.n_features, self.normalised, strict=True)
        ]
        return joined(parts)

    def expression(self, logits: Tensor) -> Tensor:
        """Return the mean of each feature at library size 1."""
        parts = zip(self.split(logits), self.normalised, strict=True)
        return joined([torch.softmax(part, dim=-1) if normalised else part.exp() for part, normalised in parts])

    def log_expression(self, logits: Tensor) -> Tensor:
        """Return the logarithm of :meth:`expression`."""
        parts = zip(self.split(logits), self.normalised, strict=True)
        return joined([torch.log_softmax(part, dim=-1) if normalised else part for part, normalised in parts])

    def loading_scale(self, like: Tensor) -> Tensor:
        """Return the prior scale of loadings relative to a normalised block, features x 1."""
        return self.spread(like.new_ones(sum(self.normalised)), others=OWN_MEAN_SCALE)[:, None]

    def normalised_parts(self, values: Tensor) -> list[Tensor]:
        """Split values (... x features) by block, and drop blocks that are not normalised."""
        return [part for part, is_share in zip(self.split(values), self.normalised, strict=True) if is_share]


ONE_BLOCK = Blocks()


def joined(parts: list[Tensor]) -> Tensor:
    """Join parts along the last axis."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Loadings:
    """Loadings and their pairwise products, which speed up Fisher information."""

    weight: Tensor  # genes x latent dimensions
    products: Tensor  # products of pairs of loadings, genes x pairs
    pair: Tensor  # column of `products` for each element of the flattened information matrix

    @classmethod
    def from_weight(cls, weight: Tensor) -> Loadings:
        """Compute the pairwise products of loadings (genes x latent dimensions)."""
        n_latent = weight.shape[1]
        row, column = torch.triu_indices(n_latent, n_latent, device=weight.device)
        by_dimension = weight.T.contiguous()  # selecting rows is three times as fast as columns
        pair = torch.empty(n_latent, n_latent, dtype=torch.long, device=weight.device)
        pair[row, column] = pair[column, row] = torch.arange(len(row), device=weight.device)
        return cls(weight, (by_dimension[row] * by_dimension[column]).T, pair.flatten())


@dataclass(frozen=True)
class SoftmaxEvidence:
    """Likelihood of latents given counts with means size x softmax(loadings z + offset)."""

    counts: Tensor  # cells x genes
    size: Tensor  # library sizes, cells x normalised blocks
    offset: Tensor  # cells x genes
    observation: ObservationModel
    loadings: Loadings
    blocks: Blocks = ONE_BLOCK

    def select(self, cells: Tensor | slice) -> SoftmaxEvidence:
        """Select a subset of the cells."""
        return replace(
            self,
            counts=self.counts[cells],
            size=self.size[cells],
            offset=self.offset[cells],
            observation=self.observation.select(cells),
        )

    def derivatives(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient with respect to latents, and the Fisher information."""
        loadings, n_latent = self.loadings.weight, self.loadings.weight.shape[1]
        expression = self.blocks.expression((latent @ loadings.T).add_(self.offset))
        residual, weight = self.observation.derivatives(
            self.counts, self.blocks.spread(self.size, others=1) * expression
        )
        # Chain rule through the softmax
        residual -= expression * self.blocks.spread(self.blocks.sums(residual), others=0)
        information: Tensor = (weight @ self.loadings.products)[:, self.loadings.pair].view(-1, n_latent, n_latent)
        parts = (self.blocks.normalised_parts(values) for values in (weight, expression, loadings.T))
        for weights, shares, transposed in zip(*parts, strict=True):
            by_weight, by_expression = weights @ transposed.T, shares @ transposed.T
            cross = by_weight[:, :, None] * by_expression[:, None, :]
            square = by_expression[:, :, None] * by_expression[:, None, :]
            information -= cross
            information -= cross.transpose(1, 2)
            information += weights.sum(dim=1)[:, None, None] * square
        return residual @ loadings, information


@dataclass(frozen=True)
class AdapterSettings:
    """Priors and steps of the fit of type-specific decoders.

    Scales are prior standard deviations of changes relative to the decoder at the start.
    """

    loading_scale: float = 0.1
    expression_scale: float = 1.0  # of log expression at the mean latent
    noise_scale: float = 3.5  # of noise parameters, such as the log inverse dispersion
    n_rounds: int = 2  # each encodes the cells again
    n_steps: int = 5  # Newton steps per round


@dataclass(frozen=True)
class PaddedCells:
    """Training cells of several populations, padded to the same number by cells without counts.

    Padding lets tensors stack the cells of all populations; it contributes nothing to the fit.
    """

    observation_model: type[ObservationModel]
    counts: Tensor  # populations x cells x genes
    size: Tensor  # library sizes, populations x cells x normalised blocks
    present: Tensor  # 1 for cells, 0 for padding, populations x cells x 1
    batch_offset: Tensor  # populations x cells x genes, or 1 x 1 x genes if all cells share a batch
    blocks: Blocks = ONE_BLOCK

    def evidence(self, parameters: Parameters) -> list[SoftmaxEvidence]:
        """Return likelihoods by population, or a single one if they share loadings."""
        loadings = parameters["loadings"]
        offset = (parameters["offset"][:, None] + self.batch_offset).expand_as(self.counts)
        noise = self._noise(parameters)
        parts = [self.counts, self.size, offset, *(value.expand_as(self.counts) for value in noise.values())]
        if (loadings == loadings[0]).all():  # at the start, all populations have the shared loadings
            loadings, parts = loadings[:1], [part.flatten(0, 1)[None] for part in parts]
        return [
            SoftmaxEvidence(
                counts,
                size,
                part_offset,
                self.observation_model.from_parameters(dict(zip(noise, noise_parts, strict=True))),
                Loadings.from_weight(weight),
                self.blocks,
            )
            for weight, counts, size, part_offset, *noise_parts in zip(loadings, *parts, strict=True)
        ]

    def improve_means(
        self, parameters: Parameters, start: Parameters, prior_mean: Tensor, latent: Tensor, settings: AdapterSettings
    ) -> Parameters:
        """Improve loadings and offsets by one approximate Newton step at fixed latents.

        The information matrix of a gene's loadings is approximated by ``precision I + weight * Z' Z``, where Z are
        latents centred at the prior mean: as if all cells had the same weight. It is diagonal in the principal axes of
        Z, which are the same for all genes of a population.

        ``start`` has the prior means of the parameters, see :meth:`Decoder.stacked`. ``prior_mean`` is populations x
        latent dimensions, and ``latent`` populations x cells x latent dimensions.
        """
        loadings, offset = parameters["loadings"], parameters["offset"]
        centre = prior_mean[:, :, None]
        centred = (latent - prior_mean[:, None]) * self.present
        observation, mean = self._distribution(parameters, latent)
        residual, information = observation.derivatives(self.counts, mean)
        # Chain rule through the softmax
        residual = residual - mean * self.blocks.spread(self.blocks.sums(residual) / self.size.clamp(min=1), others=0)
        weight = CURVATURE * information.sum(dim=1)
        change = loadings - start["loadings"]
        # Loadings
        relative = self.blocks.loading_scale(loadings)
        variance, axes = torch.linalg.eigh(centred.mT @ centred / self.present.sum(dim=1, keepdim=True))
        loading_precision = settings.loading_scale**-2 / relative**2
        gradient = residual.mT @ centred - loading_precision * change
        step = (gradient @ axes / (loading_precision + weight[:, :, None] * variance[:, None])) @ axes.mT
        step = step * (MAX_STEP * settings.loading_scale * relative / step.norm(dim=2, keepdim=True)).clamp(max=1)
        # Log expression at the mean latent
        precision = settings.expression_scale**-2
        gradient = residual.sum(dim=1) - precision * (offset - start["offset"] + (change @ centre).squeeze(2))
        log_change = (gradient / (precision + weight)).clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
        return {"loadings": loadings + step, "offset": offset + log_change - (step @ centre).squeeze(2)}

    def improve_noise(
        self, parameters: Parameters, start: Parameters, latent: Tensor, settings: AdapterSettings
    ) -> Parameters:
        """Improve the parameters of the noise by one step at fixed latents, see :func:`noise_step`."""
        observation, mean = self._distribution(parameters, latent)
        precision, improved = settings.noise_scale**-2, {}
        for name, gradients in observation.parameter_gradients(self.counts, mean).items():
            improved[name] = parameters[name] + noise_step(gradients, parameters[name] - start[name], precision)
        return improved

    def _distribution(self, parameters: Parameters, latent: Tensor) -> tuple[ObservationModel, Tensor]:
        """Return the observation model and mean of counts given latents."""
        logits = latent @ parameters["loadings"].mT + parameters["offset"][:, None] + self.batch_offset
        # Means of padding are 0, as are its counts, so that it contributes nothing to sums over cells
        mean = self.present * self.blocks.spread(self.size, others=1) * self.blocks.expression(logits)
        return self.observation_model.from_parameters(self._noise(parameters)), mean

    def _noise(self, parameters: Parameters) -> Parameters:
        """Select the parameters of the noise, populations x 1 x genes."""
        return {entry.name: parameters[entry.name][:, None] for entry in fields(self.observation_model)}


def noise_step(gradients: Tensor, change: Tensor, precision: float) -> Tensor:
    """Return a Newton step of noise parameters, with a normal prior.

    The information is approximated by the sum of squared gradients over cells (BHHH, Berndt et al. 1974). ``gradients``
    are of the log likelihood of each count, ... x cells x genes. ``change`` is the difference of the parameters from
    their prior means, ... x genes.
    """
    step = (gradients.sum(dim=-2) - precision * change) / (precision + (gradients**2).sum(dim=-2))
    return step.clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
