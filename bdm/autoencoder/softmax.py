"""The softmax over features as link of linear decoders: what counts say about latents, and steps that fit decoders."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bdm.autoencoder.observation import ObservationModel

CURVATURE = 1.5  # times the curvature of a mean cell: cells differ, and steps that are too long diverge
MAX_STEP = 3  # of a gene's loadings, in standard deviations of their prior
OWN_MEAN_SCALE = 10  # times as large are loadings in blocks without a softmax: log means of proteins span units
MAX_LOG_STEP = 0.5  # of log expression and of the noise

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Blocks:
    """Blocks of features of a cell, one after the other: genes, or genes, proteins and peaks.

    The softmax over a block times a library size gives its means, so that features compete for counts. In a block that
    is not normalised, each feature has a mean of its own, the exponential of its logit: of few proteins, some have most
    counts, so that the noise of these would be in the shares of all.
    """

    n_features: tuple[int, ...] = ()  # of each block; empty where all features are one normalised block
    normalised: tuple[bool, ...] = (True,)  # whether a block has a softmax and a library size

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values of the features of each block; features are the last axis."""
        return values.split(self.n_features, dim=-1) if self.n_features else (values,)

    def sums(self, values: Tensor) -> Tensor:
        """Sum values over the features of each normalised block; these sums are the last axis."""
        return joined([part.sum(dim=-1, keepdim=True) for part in self.normalised_parts(values)])

    def spread(self, values: Tensor, *, others: float) -> Tensor:
        """Give each feature the value of its normalised block; ``others`` to features of other blocks.

        Values of one block are left to be broadcast.
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
        """Mean of each feature at library sizes of 1: its share of a normalised block."""
        parts = zip(self.split(logits), self.normalised, strict=True)
        return joined([torch.softmax(part, dim=-1) if normalised else part.exp() for part, normalised in parts])

    def log_expression(self, logits: Tensor) -> Tensor:
        """Logarithm of :meth:`expression`."""
        parts = zip(self.split(logits), self.normalised, strict=True)
        return joined([torch.log_softmax(part, dim=-1) if normalised else part for part, normalised in parts])

    def loading_scale(self, like: Tensor) -> Tensor:
        """Prior standard deviation of the loadings of each feature, relative to a normalised block; features x 1."""
        return self.spread(like.new_ones(sum(self.normalised)), others=OWN_MEAN_SCALE)[:, None]

    def normalised_parts(self, values: Tensor) -> list[Tensor]:
        """Values of the features of each normalised block."""
        return [part for part, is_share in zip(self.split(values), self.normalised, strict=True) if is_share]


ONE_BLOCK = Blocks()


def joined(parts: list[Tensor]) -> Tensor:
    """Join parts along the last axis."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Loadings:
    """Loadings, with what information matrices of cells are computed from in one product."""

    weight: Tensor  # genes x latent dimensions
    products: Tensor  # of each pair of loadings of a gene, genes x pairs
    pair: Tensor  # column of products for each element of a matrix of dimensions by dimensions

    @classmethod
    def from_weight(cls, weight: Tensor) -> Loadings:
        """Compute the products of loadings."""
        n_latent = weight.shape[1]
        row, column = torch.triu_indices(n_latent, n_latent, device=weight.device)
        by_dimension = weight.T.contiguous()  # selecting rows takes a third of the time
        pair = torch.empty(n_latent, n_latent, dtype=torch.long, device=weight.device)
        pair[row, column] = pair[column, row] = torch.arange(len(row), device=weight.device)
        return cls(weight, (by_dimension[row] * by_dimension[column]).T, pair.flatten())


@dataclass(frozen=True)
class SoftmaxEvidence:
    """What counts say about latents, with mean counts size x softmax(loadings z + offset)."""

    counts: Tensor  # cells x genes
    size: Tensor  # library sizes, cells x blocks
    offset: Tensor  # cells x genes
    observation: ObservationModel
    loadings: Loadings
    blocks: Blocks = ONE_BLOCK

    def select(self, cells: Tensor | slice) -> SoftmaxEvidence:
        """Evidence of a subset of the cells."""
        return replace(
            self,
            counts=self.counts[cells],
            size=self.size[cells],
            offset=self.offset[cells],
            observation=self.observation.select(cells),
        )

    def derivatives(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the log likelihood by the latent, and Fisher's information."""
        loadings, n_latent = self.loadings.weight, self.loadings.weight.shape[1]
        expression = self.blocks.expression((latent @ loadings.T).add_(self.offset))
        residual, weight = self.observation.derivatives(
            self.counts, self.blocks.spread(self.size, others=1) * expression
        )
        # Through the softmax
        residual -= expression * self.blocks.spread(self.blocks.sums(residual), others=0)
        information: Tensor = (weight @ self.loadings.products)[:, self.loadings.pair].view(-1, n_latent, n_latent)
        of_blocks = (self.blocks.normalised_parts(values) for values in (weight, expression, loadings.T))
        for weights, shares, transposed in zip(*of_blocks, strict=True):
            by_weight, by_expression = weights @ transposed.T, shares @ transposed.T
            cross = by_weight[:, :, None] * by_expression[:, None, :]
            square = by_expression[:, :, None] * by_expression[:, None, :]
            information -= cross
            information -= cross.transpose(1, 2)
            information += weights.sum(dim=1)[:, None, None] * square
        return residual @ loadings, information


@dataclass(frozen=True)
class AdapterSettings:
    """How far type-specific decoders move from those that they start from, and in how many steps."""

    loading_scale: float = 0.1  # prior standard deviation of the change in a loading
    expression_scale: float = 1.0  # the same, in a gene's log expression at the mean latent
    noise_scale: float = 3.5  # the same, in a parameter of its noise, such as the log dispersion
    n_rounds: int = 2  # times that cells are encoded anew
    n_steps: int = 5  # in each round


@dataclass(frozen=True)
class PaddedCells:
    """Training cells of populations, to fit a decoder to each; padded with cells without counts to one number."""

    observation_model: type[ObservationModel]
    counts: Tensor  # populations x cells x genes
    size: Tensor  # library sizes, populations x cells x blocks
    present: Tensor  # 1 for cells, 0 for padding, populations x cells x 1
    batch_offset: Tensor  # populations x cells x genes, or 1 x 1 x genes where all cells have the same
    blocks: Blocks = ONE_BLOCK

    def evidence(self, parameters: Parameters) -> list[SoftmaxEvidence]:
        """Evidence of the cells of each population; of all together where these are known to have the same loadings."""
        loadings = parameters["loadings"]
        offset = (parameters["offset"][:, None] + self.batch_offset).expand_as(self.counts)
        noise = self._noise(parameters)
        parts = [self.counts, self.size, offset, *(value.expand_as(self.counts) for value in noise.values())]
        if len(loadings) == 1 or loadings.stride(0) == 0:  # as at the start
            loadings, parts = loadings[:1], [part.flatten(0, 1)[None] for part in parts]
        return [
            SoftmaxEvidence(
                counts,
                size,
                at,
                self.observation_model.from_parameters(dict(zip(noise, of_noise, strict=True))),
                Loadings.from_weight(weight),
                self.blocks,
            )
            for weight, counts, size, at, *of_noise in zip(loadings, *parts, strict=True)
        ]

    def improve_means(
        self, parameters: Parameters, start: Parameters, prior_mean: Tensor, latent: Tensor, settings: AdapterSettings
    ) -> Parameters:
        """Take one step of Newton's method to the most probable loadings and offsets, with latents held; return these.

        The information matrix of a gene's loadings is taken to be ``precision I + weight * Z' Z`` with the latents Z
        (populations x cells x latent dimensions) around their prior mean, as if all cells had the same weight. It is
        diagonal in the principal axes of Z, which all genes of a population share. ``start`` has the means of the prior
        of parameters.
        """
        loadings, offset = parameters["loadings"], parameters["offset"]
        centre = prior_mean[:, :, None]
        centred = (latent - prior_mean[:, None]) * self.present
        observation, mean = self._distribution(parameters, latent)
        residual, information = observation.derivatives(self.counts, mean)
        # Through the softmax
        residual = residual - mean * self.blocks.spread(self.blocks.sums(residual) / self.size.clamp(min=1), others=0)
        weight = CURVATURE * information.sum(dim=1)
        change = loadings - start["loadings"]
        # Loadings
        relative = self.blocks.loading_scale(loadings)
        variance, axes = torch.linalg.eigh(centred.mT @ centred / self.present.sum(dim=1, keepdim=True))
        precisions = settings.loading_scale**-2 / relative**2
        gradient = residual.mT @ centred - precisions * change
        step = (gradient @ axes / (precisions + weight[:, :, None] * variance[:, None])) @ axes.mT
        step = step * (MAX_STEP * settings.loading_scale * relative / step.norm(dim=2, keepdim=True)).clamp(max=1)
        # Log expression at the mean latent
        precision = settings.expression_scale**-2
        gradient = residual.sum(dim=1) - precision * (offset - start["offset"] + (change @ centre).squeeze(2))
        raised = (gradient / (precision + weight)).clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
        return {"loadings": loadings + step, "offset": offset + raised - (step @ centre).squeeze(2)}

    def improve_noise(
        self, parameters: Parameters, start: Parameters, latent: Tensor, settings: AdapterSettings
    ) -> Parameters:
        """Take one step to the most probable noise, with latents held; return its parameters.

        The information is taken to be the sum of squares of the cells' gradients (Berndt et al. 1974).
        """
        observation, mean = self._distribution(parameters, latent)
        precision, improved = settings.noise_scale**-2, {}
        for name, of_cells in observation.parameter_gradients(self.counts, mean).items():
            change = parameters[name] - start[name]
            step = (of_cells.sum(dim=1) - precision * change) / (precision + (of_cells**2).sum(dim=1))
            improved[name] = parameters[name] + step.clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
        return improved

    def _distribution(self, parameters: Parameters, latent: Tensor) -> tuple[ObservationModel, Tensor]:
        """Observation model and mean of the counts of cells, from their latents."""
        logits = latent @ parameters["loadings"].mT + parameters["offset"][:, None] + self.batch_offset
        # Padding has neither counts nor means, so that no sum over cells includes it
        mean = self.present * self.blocks.spread(self.size, others=1) * self.blocks.expression(logits)
        return self.observation_model.from_parameters(self._noise(parameters)), mean

    def _noise(self, parameters: Parameters) -> Parameters:
        """Parameters of the noise, populations x 1 x genes."""
        return {entry.name: parameters[entry.name][:, None] for entry in fields(self.observation_model)}
