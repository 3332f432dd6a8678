"""Effects of batches on latents and library sizes of cell types, beyond the gene offsets that all types share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from bdm._core.seeds import to_tensor
from bdm._core.store import concat
from bdm.autoencoder.inputs import codes_of
from bdm.autoencoder.latent import LatentCells, latent_cells
from bdm.autoencoder.moments import MIN_INFORMATION
from bdm.effects.effect import MIN_UNEXPLAINED, CellsToFit, Shift
from bdm.effects.surfaces import BlockDesign, centred, fit_scaled_surfaces, fit_surfaces

MIN_FOLD = 1.05  # of library sizes that a summary names
N_FOLDS = 10  # groups of cells to leave out
MIN_CELLS = 15  # cell types with fewer cells share the effects of all types
OWN_STRENGTH = 0.2  # variance of a cell type's own effects, relative to the variance of y; multiples are tried


@dataclass(frozen=True, eq=False)
class BatchEffects(Shift, name="batches"):
    """Shifts of y between batches, by cell type.

    The decoder has an offset of each gene and batch that all types share. These effects add what it cannot express:
    library sizes, and differences that only some types have.
    """

    batches: tuple[str, ...]
    cell_types: tuple[str, ...]
    shift: Tensor  # of y, cell types x batches x dimensions
    populations: tuple[str, ...]
    # statistics of training cells, populations x dimensions
    mean: Tensor  # of y
    centre: Tensor  # mean shift of y
    unexplained: Tensor  # fraction of the prior variance of y that batches leave

    @classmethod
    def fit(cls, cells: CellsToFit) -> BatchEffects | None:
        """Fit effects of batches; None without several batches, or without effects.

        Each coordinate of y has the strength that left-out cells support, first in all types together, then in each
        type.
        """
        batches, latents = cells.autoencoder.batches, latent_cells(cells.latent)
        if len(batches) < 2:
            return None
        code = codes_of(cells.fitted_obs["batch"], batches).numpy()
        columns = latents.layout.latent, latents.layout.library_sizes
        shifts = np.concatenate([fit_columns(latents, code, len(batches), part) for part in columns], axis=2)
        if not shifts.any():
            return None
        cell_types, shift = tuple(dict.fromkeys(latents.labels)), to_tensor(shifts.astype(np.float32))
        mean, centre, unexplained = [], [], []
        for label, members in zip(latents.labels, latents.members(), strict=True):
            own = shift[cell_types.index(label)][code[members]]
            mean.append(latents.mean[members].mean(dim=0))
            centre.append(own.mean(dim=0))
            unexplained.append((1 - own.var(dim=0, correction=0)).clamp(min=MIN_UNEXPLAINED))
        statistics = map(torch.stack, (mean, centre, unexplained))
        return cls(batches, cell_types, shift, latents.populations, *statistics)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that the effect reads."""
        return ("batch",)

    @property
    def summary(self) -> str:
        """Short summary for reports."""
        size = self.shift[..., -1].exp()
        fold = float((size.amax(dim=1) / size.amin(dim=1)).max())
        alike = "alike in all types" if torch.equal(self.shift, self.shift[:1].expand_as(self.shift)) else "by type"
        sizes = f"up to {fold:.2g}-fold" if fold > MIN_FOLD else "alike"
        return f"{len(self.batches)}; latents {alike}, library sizes {sizes}"

    def has(self, population: str) -> bool:
        """Return whether a population depends on the batch."""
        return population in self.populations

    def moments(self, population: str) -> tuple[Tensor, Tensor]:
        """Return the population's mean of y, and the fraction of the prior variance of y that batches leave."""
        row = self.populations.index(population)
        return self.mean[row], self.unexplained[row]

    def latent(self, at: pd.DataFrame, population: str, cell_type: str) -> Tensor:
        """Return the shift of y in the batches of cells; 0 in batches without an entry."""
        if not self.has(population):
            return torch.zeros(len(at), self.centre.shape[1])
        code = codes_of(at["batch"], self.batches)
        shift = self.shift[self.cell_types.index(cell_type)][code] - self.centre[self.populations.index(population)]
        return torch.where((code >= 0)[:, None], shift, 0)

    def joined(self, added: BatchEffects) -> BatchEffects:
        """Add cell types and populations, with their batches."""
        batches = tuple(dict.fromkeys((*self.batches, *added.batches)))
        first, second = (vars(effects.for_batches(batches)) for effects in (self, added))
        return BatchEffects(**{name: concat([first[name], second[name]]) for name in first} | {"batches": batches})

    def for_batches(self, batches: tuple[str, ...]) -> BatchEffects:
        """Reorder the batches; 0 for those without an entry."""
        shift = torch.zeros(len(self.cell_types), len(batches), self.shift.shape[2])
        shift[:, [batches.index(name) for name in self.batches]] = self.shift
        return replace(self, batches=batches, shift=shift)


@dataclass(frozen=True, eq=False)
class BatchDesign(BlockDesign):
    """Indicators of batches, stored as the index of each cell's batch in ``functions``."""

    n_batches: int

    def products(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weighted products of indicators with each other, and with values (cells x outputs)."""
        member = sparse.csr_matrix(
            (self.weight, (self.functions, np.arange(len(values)))), shape=(self.n_batches, len(values))
        )
        return np.diag(member.sum(axis=1).A1), np.asarray(member @ values)


def fit_columns(cells: LatentCells, code: np.ndarray, n_batches: int, columns: slice) -> np.ndarray:
    """Fit the shifts of some coordinates of y, cell types x batches x coordinates."""
    information = (1 - cells.scale[:, columns].double() ** 2).clamp(min=MIN_INFORMATION)
    weight = information.mean(dim=1).numpy()
    weight /= weight.mean()
    members = cells.members()
    values = centred((cells.deviation[:, columns].double() / information).numpy(), members, weight)
    design = BatchDesign(code, weight, np.arange(len(code)) % N_FOLDS, n_batches)
    shared = fit_surfaces(design, values)[0]
    rest = centred(values - shared[code], members, weight)
    labels, shifts = np.array(cells.labels)[cells.population.numpy()], []
    for name in dict.fromkeys(cells.labels):
        rows = np.flatnonzero(labels == name)
        own = np.zeros_like(shared)
        if len(rows) >= MIN_CELLS:
            own = fit_scaled_surfaces(design[rows], rest[rows], np.full(rest.shape[1], OWN_STRENGTH))
        shifts.append(shared + own)
    return np.stack(shifts)
