"""Coordinates of a cell in the space that the diffusion works in, by name."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bdm.data.modalities import LIBRARY_SIZE
from bdm.errors import InputError


@dataclass(frozen=True)
class LatentLayout:
    """Coordinates of y (cells x dimensions): the latent of the autoencoder, and the log library size.

    Cells with several modalities have a library size of each that is normalised, that of RNA first.
    """

    n_latent: int
    sizes: tuple[str, ...] = (LIBRARY_SIZE,)  # names of the log library sizes

    @property
    def latent(self) -> slice:
        """Coordinates of the latent."""
        return slice(0, self.n_latent)

    @property
    def library_size(self) -> slice:
        """Coordinate of the log library size of RNA."""
        return slice(self.n_latent, self.n_latent + 1)

    @property
    def library_sizes(self) -> slice:
        """Coordinates of the log library sizes of all modalities."""
        return slice(self.n_latent, self.n_latent + len(self.sizes))

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each coordinate."""
        return (*(f"latent_{k}" for k in range(self.n_latent)), *self.sizes)

    def index(self, name: str) -> int:
        """Position of a coordinate."""
        if name not in self.names:
            raise InputError(f"The latent has no coordinate {name!r}; it has {', '.join(self.names)}.")
        return self.names.index(name)

    def joined(self, latent: Tensor, log_library_sizes: Tensor) -> Tensor:
        """Put coordinates together, from cells x ``n_latent`` and cells x ``sizes``."""
        y = torch.empty(len(latent), len(self.names))
        y[:, self.latent], y[:, self.library_sizes] = latent, log_library_sizes
        return y
