"""Decoders: p(counts given latent)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bdm.autoencoder.observation import NegativeBinomial, ObservationModel
from bdm.autoencoder.softmax import Blocks, Loadings, PaddedCells, Parameters, SoftmaxEvidence
from bdm.data.modalities import blocks_of
from bdm.settings import DECODERS

DISPERSION_PACE = 5  # scales the steps of log dispersions, which move much further in training than loadings
TYPE_DISPERSION_SCALE = 0.5  # prior standard deviation of a type's log dispersion around the gene's
BATCH_OFFSET_SCALE = 0.5  # prior standard deviation of batch offsets, in log expression
N_PRIOR = 5.0  # pseudocounts per gene that pull the offset of a new batch to the mean batch
MIN_SIZE = 0.5  # library size of cells without counts of a block, such as genes that are not highly variable


@dataclass(frozen=True)
class AutoencoderShape:
    """Sizes and decoder that determine the tensors of an autoencoder."""

    n_genes: int
    n_types: int
    n_latent: int = 30
    n_batches: int = 0  # 0 without a batch key
    likelihood: str = "negative_binomial"  # name of the decoder
    # Number of features of each block (together `n_genes`; empty for one block), whether it is normalised, and whether
    # latents depend on its counts
    blocks: tuple[int, ...] = ()
    normalised: tuple[bool, ...] = (True,)
    encoded: tuple[bool, ...] = ()  # by default, all blocks

    @classmethod
    def from_genes(cls, genes: pd.DataFrame, **sizes: Any) -> AutoencoderShape:
        """Return the shape for the features of prepared cells (``var``)."""
        blocks = blocks_of(genes)
        return cls(
            n_genes=len(genes),
            blocks=tuple(block.n_features for block in blocks) if len(blocks) > 1 else (),
            normalised=tuple(block.normalised for block in blocks),
            encoded=() if all(block.encoded for block in blocks) else tuple(block.encoded for block in blocks),
            **sizes,
        )

    def joined(self, encoded: Tensor, others: Tensor, *, axis: int = -1) -> Tensor:
        """Join values of the features that latents depend on, and of the others, in the order of the features."""
        is_other = np.repeat(np.invert(self.encoded), self.blocks)
        order = torch.from_numpy(np.argsort(np.argsort(is_other, kind="stable")))
        return torch.cat([encoded, others], dim=axis).index_select(axis, order)


class Decoder(nn.Module):
    """Distribution of counts given latents, with the prior of its parameters.

    The decoder is linear, so that loadings can be interpreted: expression is ``softmax(loadings z + offset[batch])``
    over genes. Counts have the mean expression x library size, and an observation model describes the noise around it.
    Each modality is a block of features; proteins have no softmax, see :class:`bdm.autoencoder.softmax.Blocks`. Genes
    that are not highly variable are a block, too, on whose counts latents do not depend.

    Subclasses set ``observation_model`` and register under a name, which is the value of the setting ``likelihood``;
    installed packages register through the entry point group ``bdm.decoders``. If the observation model has
    parameters, override ``noise``, ``noise_penalty`` and ``noise_state``. For a different link, override ``decode``,
    ``evidence``, ``directions`` and ``padded_cells``.

    ::

        class PoissonDecoder(Decoder, name="poisson"):
            observation_model = Poisson

    Attributes
    ----------
    observation_model
        Class of the noise; its fields are the keys of :meth:`noise`.
    by_type
        Names of the tensors in the state dict whose first axis is cell types.
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
        """Return the parameters of the observation model for each cell.

        Parameters
        ----------
        cell_type
            Index of each cell's type.

        Returns
        -------
        Parameters by name, each cells x genes.
        """
        return {}

    def noise_penalty(self) -> Tensor | float:
        """Return twice the negative log prior of the noise."""
        return 0.0

    def noise_state(self, noise: Parameters) -> Parameters:
        """Return the state dict entries that reproduce the given noise; the inverse of :meth:`noise`.

        Parameters
        ----------
        noise
            Parameters of the observation model by name, each types x genes.

        Returns
        -------
        Tensors by their names in the state dict.
        """
        return {}

    # ---- distribution

    def size(self, counts: Tensor) -> Tensor:
        """Return the size factors of each cell: its library sizes, cells x normalised blocks; at least ``MIN_SIZE``."""
        return self.blocks.sums(counts).clamp(min=MIN_SIZE)

    def decode(
        self,
        latent: Tensor,
        batch: Tensor | None = None,
        *,
        log_size: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        """Return the log mean of each count.

        Parameters
        ----------
        latent
            Cells x latent dimensions.
        batch
            Index of each cell's batch; None for the mean batch.
        log_size
            Log size factors, cells x normalised blocks; None to return log expression.
        offset
            Added to the logits before the softmax, cells x genes or genes.

        Returns
        -------
        Log means, cells x genes.
        """
        logits = self.loadings(latent) + (self.mean_batch() if batch is None else self.batch_offset[batch])
        log_expression = self.blocks.log_expression(logits if offset is None else logits + offset)
        return log_expression if log_size is None else log_expression + self.blocks.spread(log_size, others=0)

    def observation(self, cell_type: Tensor) -> ObservationModel:
        """Return the observation model (cells x genes) given the index of each cell's type."""
        return self.observation_model.from_parameters(self.noise(cell_type))

    def log_likelihood(self, counts: Tensor, latent: Tensor, cell_type: Tensor, batch: Tensor) -> Tensor:
        """Return the log likelihood of each cell.

        Parameters
        ----------
        counts
            Cells x genes.
        latent
            Cells x latent dimensions.
        cell_type, batch
            Index of each cell's type and batch.

        Returns
        -------
        Log likelihood of each cell in nats.
        """
        log_mean = self.decode(latent, batch, log_size=self.size(counts).log())
        return self.observation(cell_type).log_likelihood(counts, log_mean)

    def evidence(self, counts: Tensor, cell_type: Tensor, batch: Tensor) -> SoftmaxEvidence:
        """Return the likelihood of latents given counts (cells x genes), with its derivatives."""
        if self.shape.encoded:
            return self.encoded_part().evidence(counts[:, self.encoded_columns], cell_type, batch)
        offset, loadings = self.loadings.bias + self.batch_offset[batch], Loadings.from_weight(self.loadings.weight)
        return SoftmaxEvidence(counts, self.size(counts), offset, self.observation(cell_type), loadings, self.blocks)

    def directions(self, expression: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
        """Return the gradient of each gene's log expression with respect to the latent.

        In a normalised block, it is the loadings minus their mean over genes weighted by expression.

        Parameters
        ----------
        expression
            Expression of each gene at which to evaluate the gradient; sums to 1 in each normalised block.
        axes
            Latent dimensions x axes, to return directional derivatives along these axes.

        Returns
        -------
        Gradients, genes x latent dimensions or genes x axes.
        """
        loadings = self.loadings.weight.detach().double().numpy()
        along = loadings if axes is None else loadings @ axes
        ends = np.cumsum(self.shape.blocks[:-1], dtype=int)
        blocks = zip(np.split(expression, ends), np.split(along, ends), self.blocks.normalised, strict=True)
        return np.concatenate([part - shares @ part if is_share else part for shares, part, is_share in blocks])

    # ---- parameters

    def initialise(self, counts: Tensor, axes: Tensor) -> None:
        """Initialise the mean expression and the loadings, in place.

        Parameters
        ----------
        counts
            Cells x genes.
        axes
            Change in log1p(CP10k) per unit of each latent, genes x latent dimensions.
        """
        total = counts.sum(dim=0) + 0.5
        self.loadings.bias.copy_((total / self.blocks.spread(self.blocks.sums(total), others=len(counts))).log())
        self.loadings.weight.copy_(axes / 2)  # log1p(CP10k) changes about twice as much as log expression

    def penalty(self, *, loading_scale: float) -> Tensor:
        """Return the negative log prior of loadings, noise and batch offsets.

        Without batches, the single offset is part of the mean expression and has no prior.

        Parameters
        ----------
        loading_scale
            Prior standard deviation of a loading: change in log expression of a gene per unit of the latent. Blocks
            without a softmax (proteins) have ``OWN_MEAN_SCALE`` times this.
        """
        relative = self.blocks.loading_scale(self.loadings.weight)
        loadings = ((self.loadings.weight / relative) ** 2).sum() / loading_scale**2
        offsets = (self.batch_offset**2).sum() / BATCH_OFFSET_SCALE**2 if self.shape.n_batches else 0.0
        return (loadings + self.noise_penalty() + offsets) / 2

    def rotate(self, axes: Tensor) -> Tensor:
        """Rotate the loadings to orthogonal axes (latent dimensions x axes), in place.

        Returns
        -------
        Axes with signs flipped so that the largest loading of each is positive.
        """
        rotated = self.loadings.weight @ axes
        sign = rotated.gather(0, rotated.abs().argmax(dim=0, keepdim=True)).sign()
        self.loadings.weight.copy_(rotated * sign)
        return axes * sign

    def mean_of_types(self, weight: Tensor) -> Self:
        """Replace types by weighted means (``weight``: means x types), in a copy."""
        state = self.state_dict()
        shape = replace(self.shape, n_types=len(weight))
        return self.with_state(shape, {name: weight @ state[name] for name in self.by_type})

    def with_state(self, shape: AutoencoderShape, state: Parameters) -> Self:
        """Copy the decoder with a new shape and new tensors."""
        with torch.device("meta"):  # allocates no values, so nothing is drawn at random
            decoder = type(self)(shape)
        values = {name: value.detach().clone() for name, value in (self.state_dict() | state).items()}
        decoder.load_state_dict(values, assign=True)
        return decoder.eval().requires_grad_(False)

    def of_blocks(self, *numbers: int) -> Self:
        """Copy the decoder of some blocks of features, such as genes without proteins."""
        n_features = tuple(self.shape.blocks[number] for number in numbers)
        columns = self.columns(*numbers)
        state = {name: value.index_select(gene_axis(name), columns) for name, value in self.state_dict().items()}
        shape = replace(
            self.shape,
            n_genes=sum(n_features),
            blocks=n_features if len(numbers) > 1 else (),
            normalised=tuple(self.blocks.normalised[number] for number in numbers),
            encoded=(),
        )
        return self.with_state(shape, state)

    def columns(self, *numbers: int) -> Tensor:
        """Return the indices of the features of blocks."""
        parts = torch.arange(self.shape.n_genes).split(self.shape.blocks)
        return torch.cat([parts[number] for number in numbers])

    @property
    def encoded_columns(self) -> Tensor:
        """Indices of the features that latents depend on."""
        if not self.shape.encoded:
            return torch.arange(self.shape.n_genes)
        return self.columns(*np.flatnonzero(self.shape.encoded))

    def encoded_part(self) -> Self:
        """Return the decoder of the features that latents depend on."""
        return self.of_blocks(*np.flatnonzero(self.shape.encoded)) if self.shape.encoded else self

    def other_part(self) -> Self:
        """Return the decoder of the features that latents do not depend on."""
        return self.of_blocks(*np.flatnonzero(np.invert(self.shape.encoded)))

    def with_other_genes(self, shape: AutoencoderShape, added: Self) -> Self:
        """Copy the decoder with the features of another one, which latents do not depend on."""
        of_added = added.state_dict()
        state = {
            name: shape.joined(value, of_added[name], axis=gene_axis(name)) for name, value in self.state_dict().items()
        }
        return self.with_state(shape, state)

    # ---- batches

    def batch_factors(self) -> np.ndarray:
        """Return fold changes (batches x genes) with geometric mean 1 over batches."""
        offset = self.batch_offset.detach().double().numpy()
        return np.asarray(np.exp(offset - offset.mean(axis=0)))

    def mean_batch(self) -> Tensor:
        """Return the mean offset of each gene over batches, for unknown batches."""
        return self.batch_offset.detach().mean(dim=0)

    def improve_batch(self, offset: Tensor, observed: Tensor, expected: Tensor) -> Tensor:
        """Update the offsets of a new batch from observed and expected counts.

        The new offset is the mean offset plus the log ratio of observed counts to counts expected at the mean offset.
        ``N_PRIOR`` is added to both, so that genes with few counts stay at the mean.

        Parameters
        ----------
        offset
            Current offset of each gene.
        observed, expected
            Sum over cells of the counts of each gene, and their expectation at ``offset``.

        Returns
        -------
        New offset of each gene.
        """
        mean = self.mean_batch()
        return mean + ((observed + N_PRIOR) / (expected / (offset - mean).exp() + N_PRIOR)).log()

    def with_batches(self, offsets: Tensor) -> Self:
        """Copy the decoder with more batches, given their offsets (batches x genes)."""
        all_offsets = torch.cat([self.batch_offset.detach(), offsets])
        shape = replace(self.shape, n_batches=len(all_offsets))
        return self.with_state(shape, {"batch_offset": all_offsets})

    # ---- decoders of single populations; their parameters are stacked along the first axis

    @torch.no_grad()
    def stacked(self, cell_types: Tensor) -> Parameters:
        """Copy the parameters once for each population, with the noise of its type.

        Parameters
        ----------
        cell_types
            Index of the type of each population.

        Returns
        -------
        ``loadings``, populations x encoded genes x latent dimensions; ``offset``, logits at latent 0; and the
        parameters of the noise. All but the loadings are populations x genes.
        """
        n = len(cell_types)
        loadings = self.encoded_part().loadings.weight.detach().expand(n, -1, -1)
        return {"loadings": loadings, "offset": self.loadings.bias.detach().repeat(n, 1), **self.noise(cell_types)}

    @torch.no_grad()
    def stacked_mean_type(self) -> Parameters:
        """Copy the parameters for one new population, with the noise averaged over types."""
        noise = self.noise(torch.arange(self.shape.n_types))
        mean = {name: value.mean(dim=0, keepdim=True) for name, value in noise.items()}
        return self.stacked(torch.tensor([0])) | mean

    def for_population(self, parameters: Parameters) -> Self:
        """Return a decoder with the parameters of one population and these batch offsets."""
        noise = {entry.name: parameters[entry.name][None] for entry in fields(self.observation_model)}
        loadings = parameters["loadings"]
        if self.shape.encoded:  # all populations share the loadings of other genes
            loadings = self.loadings.weight.detach().index_copy(0, self.encoded_columns, loadings)
        state = {"loadings.weight": loadings, "loadings.bias": parameters["offset"]}
        return self.with_state(replace(self.shape, n_types=1), state | self.noise_state(noise))

    def padded_cells(self, counts: Sequence[Tensor], batches: Sequence[Tensor]) -> PaddedCells:
        """Pad training cells of several populations, to fit their decoders together.

        Parameters
        ----------
        counts
            Counts of each population, cells x genes.
        batches
            Index of each cell's batch, by population.
        """
        padded, codes = pad_sequence(list(counts), batch_first=True), pad_sequence(list(batches), batch_first=True)
        present = pad_sequence([torch.ones(len(part), 1) for part in counts], batch_first=True)
        offset = self.batch_offset.detach()
        batch_offset = offset[codes] if len(offset) > 1 else offset[None]
        sizes = self.blocks.sums(padded)  # 0 for padding
        return PaddedCells(self.observation_model, padded, sizes, present, batch_offset, self.blocks)


def gene_axis(name: str) -> int:
    """Return the axis of features in an entry of a decoder's state dict."""
    return 0 if name == "loadings.weight" else -1


class NegativeBinomialDecoder(Decoder, name="negative_binomial"):
    """Negative binomial counts with an inverse dispersion per gene and type.

    This is the decoder of LDVAE (Svensson et al. 2020, Bioinformatics 36:3418) with a different prior and dispersion.
    """

    observation_model = NegativeBinomial
    by_type = ("type_dispersion",)

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__(shape)
        self.paced_dispersion = nn.Parameter(torch.zeros(shape.n_genes))
        self.type_dispersion = nn.Parameter(torch.zeros(shape.n_types, shape.n_genes))

    def noise(self, cell_type: Tensor) -> Parameters:
        """Return log inverse dispersions: shared by types, plus deviations of types."""
        return {"log_inverse_dispersion": DISPERSION_PACE * self.paced_dispersion + self.type_dispersion[cell_type]}

    def noise_penalty(self) -> Tensor:
        """Return twice the negative log prior of the deviations of types."""
        return (self.type_dispersion**2).sum() / TYPE_DISPERSION_SCALE**2

    def noise_state(self, noise: Parameters) -> Parameters:
        """Return a state that stores the dispersions as deviations of types from 0."""
        log_inverse_dispersion = noise["log_inverse_dispersion"]
        return {
            "paced_dispersion": torch.zeros_like(log_inverse_dispersion[0]),
            "type_dispersion": log_inverse_dispersion,
        }
