"""An effect of the rows of a plate on library sizes, registered as ``plate_rows``."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm.autoencoder.latent import latent_cells
from bdm.effects.effect import CellsToFit, Shift


@dataclass(frozen=True, eq=False)
class PlateRows(Shift, name="plate_rows"):
    """Library sizes that change from row to row of a plate, alike in all populations."""

    populations: tuple[str, ...]
    mean: Tensor  # of y, populations x dimensions
    slope: float  # of log library sizes, per row
    middle: float  # mean row

    @classmethod
    def fit(cls, cells: CellsToFit) -> "PlateRows | None":
        if "row" not in cells.fitted_obs:
            return None
        latents, row = latent_cells(cells.latent), cells.fitted_obs["row"].to_numpy(dtype=float)
        means = torch.stack([latents.mean[members].mean(dim=0) for members in latents.members()])
        if cells.extended is not None and "plate_rows" in cells.extended:  # as in the other types
            return replace(cells.extended["plate_rows"], populations=latents.populations, mean=means)
        slope = float(np.polyfit(row, (latents.mean - means[latents.population])[:, -1].numpy(), 1)[0])
        return cls(latents.populations, means, slope, float(row.mean()))

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("row",)

    @property
    def summary(self) -> str:
        return f"library sizes change by {np.expm1(self.slope):.0%} from row to row"

    def has(self, population: str) -> bool:
        return population in self.populations

    def moments(self, population: str) -> tuple[Tensor, Tensor]:
        mean = self.mean[self.populations.index(population)]
        return mean, torch.ones_like(mean)

    def latent(self, at: pd.DataFrame, population: str, cell_type: str) -> Tensor:
        shift = torch.zeros(len(at), self.mean.shape[1])
        shift[:, -1] = torch.from_numpy(self.slope * (at["row"].to_numpy(dtype=float) - self.middle))
        return shift

    def complete(self, at: pd.DataFrame, population: str, seed: int) -> pd.DataFrame:
        row = pd.Series(np.arange(len(at)) % 8, at.index, dtype=float)
        return at.assign(row=row if "row" not in at else at["row"].fillna(row))

    def joined(self, added: "PlateRows") -> "PlateRows":
        return replace(
            self, populations=(*self.populations, *added.populations), mean=torch.cat([self.mean, added.mean])
        )
