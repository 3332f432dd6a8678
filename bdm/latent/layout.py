"""Coordinates of a cell in the space that the diffusion works in, by name."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bdm.errors import InputError

LIBRARY_SIZE = "log_library_size"


@dataclass(frozen=True)
class LatentLayout:
    """Coordinates of y (cells x dimensions): the latent of the autoencoder, and the log library size."""

    n_latent: int

    @property
    def latent(self) -> slice:
        """Coordinates of the latent."""
        return slice(0, self.n_latent)

    @property
    def library_size(self) -> slice:
        """Coordinate of the log library size."""
        return slice(self.n_latent, self.n_latent + 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each coordinate."""
        return (*(f"latent_{k}" for k in range(self.n_latent)), LIBRARY_SIZE)

    def index(self, name: str) -> int:
        """Position of a coordinate."""
        if name not in self.names:
            raise InputError(f"The latent has no coordinate {name!r}; it has {', '.join(self.names)}.")
        return self.names.index(name)

    def joined(self, latent: Tensor, log_library_size: Tensor) -> Tensor:
        """Put coordinates together, from cells x ``n_latent`` and one log library size per cell."""
        y = torch.empty(len(latent), self.n_latent + 1)
        y[:, self.latent], y[:, self.library_size] = latent, log_library_size[:, None]
        return y
