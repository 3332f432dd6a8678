"""A decoder of Poisson counts, registered as the likelihood ``poisson``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from bdm.autoencoder.decoder import Decoder
from bdm.autoencoder.observation import ObservationModel


@dataclass(frozen=True)
class Poisson(ObservationModel):
    """Poisson counts; the mean is the only parameter."""

    @classmethod
    def average(cls, models: Sequence[Self], *, weights: np.ndarray) -> Self:
        return cls()

    def log_likelihood(self, counts: Tensor, log_mean: Tensor) -> Tensor:
        return (counts * log_mean - log_mean.exp() - torch.lgamma(counts + 1)).sum(dim=1)

    def derivatives(self, counts: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        return counts - mean, mean

    def variance(self, mean: np.ndarray) -> np.ndarray:
        return mean

    def detection(self, mean: np.ndarray) -> np.ndarray:
        return -np.expm1(-mean)

    def sample(self, mean: np.ndarray, generator: np.random.Generator) -> sp.csr_matrix:
        return sp.csr_matrix(generator.poisson(mean).astype(np.float32))

    def half(self, counts: sp.csr_matrix, generator: np.random.Generator) -> sp.csr_matrix:
        half = counts.copy()
        half.data = generator.binomial(counts.data.astype(np.int64), 0.5).astype(np.float32)
        half.eliminate_zeros()
        return half

    def rescale(
        self, counts: np.ndarray, mean: np.ndarray, factor: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        kept = generator.binomial(counts.astype(np.int64), np.minimum(factor, 1))
        return (kept + generator.poisson(mean * np.maximum(factor - 1, 0))).astype(counts.dtype)


class PoissonDecoder(Decoder, name="poisson"):
    """Linear decoder of Poisson counts."""

    observation_model = Poisson
