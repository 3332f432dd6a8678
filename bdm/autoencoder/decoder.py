"""Decoders: the distribution of one matrix of a cell given its latent, which only they specify; here linear ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bdm._core.kinds import DECODERS
from bdm.autoencoder.observation import NegativeBinomial, ObservationModel
from bdm.autoencoder.softmax import Blocks, Loadings, PaddedCells, Parameters, SoftmaxEvidence

DISPERSION_PACE = 5  # log dispersions change by several units in training, loadings by much less
TYPE_DISPERSION_SCALE = 0.5  # prior standard deviation of a type's log dispersion around the gene's
BATCH_OFFSET_SCALE = 0.5  # prior standard deviation of a batch's offset of log expression
N_PRIOR = 5.0  # counts of each gene that the mean offset of known batches weighs as much as, for a new batch


@dataclass(frozen=True)
class AutoencoderShape:
    """What fixes an autoencoder's parameters."""

    n_genes: int
    n_types: int
    n_latent: int = 30
    n_batches: int = 0  # 0 where no batch enters
    likelihood: str = "negative_binomial"  # name of the decoder
    # Number of features of each modality, which together are the genes, and whether they are normalised; one such block
    # for RNA alone
    blocks: tuple[int, ...] = ()
    normalised: tuple[bool, ...] = (True,)


class Decoder(nn.Module):
    """Distribution of one matrix of a cell given its latent: link, likelihood, parameters and their prior, size factor.

    The decoder is linear, so that gene loadings can be interpreted: expression is the softmax over genes of
    ``loadings z + offset[batch]``. Counts have the mean expression x library size, and are distributed around it by an
    observation model, whose fields are the parameters of the noise. Where cells have several modalities, their features
    are one block of genes each, see :class:`bdm.autoencoder.softmax.Blocks`.

    A subclass has an observation model, and the name by which the setting ``likelihood`` and files know it; an
    installed package makes it known by an entry point of the group ``bdm.decoders``. Where the observation model has
    parameters, the subclass defines ``noise``, ``noise_penalty`` and ``noise_state``; for another link, ``decode``,
    ``evidence``, ``directions`` and ``padded_cells``.

    ::

        class PoissonDecoder(Decoder, name="poisson"):
            observation_model = Poisson

    Attributes
    ----------
    by_type
        Names of the tensors in the state that have cell types as their first axis.
    """

    observation_model: ClassVar[type[ObservationModel]]
    by_type: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, name: str) -> None:
        super().__init_subclass__()
        DECODERS.registered[name] = cls

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        self.shape, self.blocks = shape, Blocks(shape.blocks, shape.normalised)
        self.loadings = nn.Linear(shape.n_latent, shape.n_genes)
        self.batch_offset = nn.Parameter(torch.zeros(max(shape.n_batches, 1), shape.n_genes))

    def noise(self, cell_type: Tensor) -> Parameters:
        """Parameters of the observation model by name, cells x genes, from the index of each cell's type."""
        return {}

    def noise_penalty(self) -> Tensor | float:
        """Twice the negative log prior of the noise."""
        return 0.0

    def noise_state(self, noise: Parameters) -> Parameters:
        """State of the noise of a decoder, from the parameters of its types, types x genes."""
        return {}

    # ---- distribution

    def size(self, counts: Tensor) -> Tensor:
        """Size factors of each cell, cells x normalised blocks: its library sizes."""
        return self.blocks.sums(counts)

    def decode(
        self,
        latent: Tensor,
        batch: Tensor | None = None,
        *,
        log_size: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        """Log mean of each count, cells x genes; log expression, without size factors.

        Parameters
        ----------
        latent
            Cells x latent dimensions.
        batch
            Index of each cell's batch; None for the mean batch, which is all that there is without batches.
        log_size
            Log size factors, cells x normalised blocks.
        offset
            Additional offsets of log expression before the normalisation, cells x genes or one per gene.
        """
        logits = self.loadings(latent) + (self.mean_batch() if batch is None else self.batch_offset[batch])
        log_expression = self.blocks.log_expression(logits if offset is None else logits + offset)
        return log_expression if log_size is None else log_expression + self.blocks.spread(log_size, others=0)

    def observation(self, cell_type: Tensor) -> ObservationModel:
        """Observation model of counts, cells x genes, from the index of each cell's type."""
        return self.observation_model.from_parameters(self.noise(cell_type))

    def log_likelihood(self, counts: Tensor, latent: Tensor, cell_type: Tensor, batch: Tensor) -> Tensor:
        """Log likelihood of the counts of each cell, in nats."""
        log_mean = self.decode(latent, batch, log_size=self.size(counts).log())
        return self.observation(cell_type).log_likelihood(counts, log_mean)

    def evidence(self, counts: Tensor, cell_type: Tensor, batch: Tensor) -> SoftmaxEvidence:
        """Return what counts (cells x genes) say about the latents of their cells."""
        offset, loadings = self.loadings.bias + self.batch_offset[batch], Loadings.from_weight(self.loadings.weight)
        return SoftmaxEvidence(counts, self.size(counts), offset, self.observation(cell_type), loadings, self.blocks)

    def directions(self, expression: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
        """Gradient of each gene's log expression by the latent, genes x latent dimensions.

        It is the loadings less their mean over genes, weighted by expression: the gradient of log sum exp. This mean
        changes with expression, by one amount for all genes.

        Parameters
        ----------
        expression
            Share of each gene in expression where the gradient is taken; sums to 1 in each normalised block.
        axes
            Latent dimensions x axes, for the gradient along these axes.
        """
        loadings = self.loadings.weight.detach().double().numpy()
        along = loadings if axes is None else loadings @ axes
        ends = np.cumsum(self.shape.blocks[:-1], dtype=int)
        of_blocks = zip(np.split(expression, ends), np.split(along, ends), self.blocks.normalised, strict=True)
        return np.concatenate([part - shares @ part if is_share else part for shares, part, is_share in of_blocks])

    # ---- parameters

    def initialise(self, counts: Tensor, axes: Tensor) -> None:
        """Initialise from counts (cells x genes), and the change in log1p(CP10k) with each latent (genes x latent)."""
        total = counts.sum(dim=0) + 0.5
        self.loadings.bias.copy_((total / self.blocks.spread(self.blocks.sums(total), others=len(counts))).log())
        self.loadings.weight.copy_(axes / 2)  # log1p(CP10k) changes about twice as much as log expression

    def penalty(self, *, loading_scale: float) -> Tensor:
        """Negative log prior of the parameters: loadings, noise, and offsets of batches.

        Without batches, the single offset is a part of the mean expression, which has no prior.

        Parameters
        ----------
        loading_scale
            Standard deviation of a loading: change in log expression of a gene per unit of the latent. In blocks
            without a softmax, as of proteins, ``OWN_MEAN_SCALE`` times as much.
        """
        relative = self.blocks.loading_scale(self.loadings.weight)
        loadings = ((self.loadings.weight / relative) ** 2).sum() / loading_scale**2
        offsets = (self.batch_offset**2).sum() / BATCH_OFFSET_SCALE**2 if self.shape.n_batches else 0.0
        return (loadings + self.noise_penalty() + offsets) / 2

    def rotate(self, axes: Tensor) -> Tensor:
        """Rotate the latent space to orthogonal axes, latent dimensions x axes.

        Returns
        -------
        The axes, with the signs by which the largest loading of each is positive.
        """
        rotated = self.loadings.weight @ axes
        sign = rotated.gather(0, rotated.abs().argmax(dim=0, keepdim=True)).sign()
        self.loadings.weight.copy_(rotated * sign)
        return axes * sign

    def mean_of_types(self, weight: Tensor) -> Self:
        """Copy the decoder with means of its types in place of them, by their weights, means x types."""
        state = self.state_dict()
        shape = replace(self.shape, n_types=len(weight))
        return self._copied(shape, {name: weight @ state[name] for name in self.by_type})

    def _copied(self, shape: AutoencoderShape, state: Parameters) -> Self:
        """Copy the decoder with another shape and tensors in its state; torch's random generator is left alone."""
        with torch.device("meta"):  # where a decoder has no values yet, and so draws none
            decoder = type(self)(shape)
        values = {name: value.detach().clone() for name, value in (self.state_dict() | state).items()}
        decoder.load_state_dict(values, assign=True)
        return decoder.eval().requires_grad_(False)

    def of_block(self, number: int) -> Self:
        """Copy the decoder of one block of features, such as genes without proteins."""
        start = sum(self.shape.blocks[:number])
        features = slice(start, start + self.shape.blocks[number])
        state = {
            name: value[features] if name == "loadings.weight" else value[..., features]
            for name, value in self.state_dict().items()
        }
        shape = replace(
            self.shape, n_genes=self.shape.blocks[number], blocks=(), normalised=(self.blocks.normalised[number],)
        )
        return self._copied(shape, state)

    # ---- batches

    def batch_factors(self) -> np.ndarray:
        """Factor of each batch on the expression of each gene, batches x genes, of geometric mean 1."""
        offset = self.batch_offset.detach().double().numpy()
        return np.asarray(np.exp(offset - offset.mean(axis=0)))

    def mean_batch(self) -> Tensor:
        """Mean offsets of all batches, one per gene; of a batch of which nothing is known."""
        return self.batch_offset.detach().mean(dim=0)

    def improve_batch(self, offset: Tensor, observed: Tensor, expected: Tensor) -> Tensor:
        """Improve the offsets of a new batch, by its counts of each gene and the counts that are expected with them.

        The offset of a gene is the mean offset plus the log ratio of observed counts to those that are expected with
        this mean, both with ``N_PRIOR`` counts more, so that genes with few counts keep the mean.
        """
        mean = self.mean_batch()
        return mean + ((observed + N_PRIOR) / (expected / (offset - mean).exp() + N_PRIOR)).log()

    def with_batches(self, offsets: Tensor) -> Self:
        """Copy the decoder with additional batches, by their offsets (batches x genes)."""
        all_offsets = torch.cat([self.batch_offset.detach(), offsets])
        shape = replace(self.shape, n_batches=len(all_offsets))
        return self._copied(shape, {"batch_offset": all_offsets})

    # ---- decoders of single populations, from parameters that are stacked on the first axis

    @torch.no_grad()
    def stacked(self, cell_types: Tensor) -> Parameters:
        """Copy the parameters for populations, by the indices of the types whose noise they have.

        Returns
        -------
        ``loadings``, populations x genes x latent dimensions; ``offset``, log expression at latent 0 before the
        normalisation; and the parameters of the noise, all populations x genes.
        """
        n = len(cell_types)
        loadings = self.loadings.weight.detach().expand(n, -1, -1)  # see PaddedCells.evidence
        return {"loadings": loadings, "offset": self.loadings.bias.detach().repeat(n, 1), **self.noise(cell_types)}

    @torch.no_grad()
    def stacked_mean_type(self) -> Parameters:
        """Copy the parameters for one new population, with the mean noise of all types."""
        noise = self.noise(torch.arange(self.shape.n_types))
        mean = {name: value.mean(dim=0, keepdim=True) for name, value in noise.items()}
        return self.stacked(torch.tensor([0])) | mean

    def of_population(self, parameters: Parameters) -> Self:
        """Make a decoder of one type from the parameters of a population, with the batches of this one."""
        noise = {entry.name: parameters[entry.name][None] for entry in fields(self.observation_model)}
        state = {"loadings.weight": parameters["loadings"], "loadings.bias": parameters["offset"]}
        return self._copied(replace(self.shape, n_types=1), state | self.noise_state(noise))

    def padded_cells(self, counts: Sequence[Tensor], batches: Sequence[Tensor]) -> PaddedCells:
        """Make cells to fit the decoders of populations to, from the counts and the codes of batches of each."""
        padded, codes = pad_sequence(list(counts), batch_first=True), pad_sequence(list(batches), batch_first=True)
        present = pad_sequence([torch.ones(len(part), 1) for part in counts], batch_first=True)
        offset = self.batch_offset.detach()
        batch_offset = offset[codes] if len(offset) > 1 else offset[None]
        return PaddedCells(self.observation_model, padded, self.size(padded), present, batch_offset, self.blocks)


class NegativeBinomialDecoder(Decoder, name="negative_binomial"):
    """Negative binomial counts with an inverse dispersion by gene and type.

    It is the decoder of the linearly decoded VAE of Svensson et al. 2020 (Bioinformatics 36:3418), except for the prior
    and the dispersion.
    """

    observation_model = NegativeBinomial
    by_type = ("type_dispersion",)

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__(shape)
        self.paced_dispersion = nn.Parameter(torch.zeros(shape.n_genes))
        self.type_dispersion = nn.Parameter(torch.zeros(shape.n_types, shape.n_genes))

    def noise(self, cell_type: Tensor) -> Parameters:
        """Log inverse dispersion, the sum of the gene's and of the type's deviation from it."""
        return {"log_inverse_dispersion": DISPERSION_PACE * self.paced_dispersion + self.type_dispersion[cell_type]}

    def noise_penalty(self) -> Tensor:
        """Twice the negative log prior of the deviations of types."""
        return (self.type_dispersion**2).sum() / TYPE_DISPERSION_SCALE**2

    def noise_state(self, noise: Parameters) -> Parameters:
        """All in the deviations of types."""
        of_types = noise["log_inverse_dispersion"]
        return {"paced_dispersion": torch.zeros_like(of_types[0]), "type_dispersion": of_types}
