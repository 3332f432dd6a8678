"""Peer: independent negative binomials for each gene and cell type.

The mean is the library size, drawn from training cells of the type, times the gene's share in the counts of the type.
The dispersion is estimated by moments around these means. Other methods also model correlations of genes within types;
this peer measures their gain.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import peer
from scipy import sparse

from bdm._core.files import atomic_write

MODEL = "model.npz"
MIN_DISPERSION = 1e-6  # below it, the Poisson distribution is the same


@dataclass(frozen=True)
class NegativeBinomials:
    """Negative binomials of all genes of one cell type.

    Attributes
    ----------
    share
        Expected share of each gene in the counts of a cell.
    dispersion
        For each gene; the variance at mean m is m + dispersion * m**2.
    library
        Library sizes of the training cells.
    """

    share: np.ndarray
    dispersion: np.ndarray
    library: np.ndarray

    @classmethod
    def from_counts(cls, counts: sparse.csr_matrix) -> "NegativeBinomials":
        """Fit to counts, cells x genes."""
        library = counts.sum(axis=1).A1.astype(float)
        share = counts.sum(axis=0).A1 / library.sum()
        squares = counts.multiply(counts).sum(axis=0).A1 - 2 * share * (counts.T @ library)
        squares += share**2 * np.square(library).sum()
        excess = squares - share * library.sum()
        squared_mean = np.maximum(share**2 * np.square(library).sum(), np.finfo(float).tiny)
        return cls(share, np.maximum(excess / squared_mean, MIN_DISPERSION), library)

    def draw(self, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        """Draw counts, cells x genes."""
        mean = rng.choice(self.library, size=(n_cells, 1)) * self.share
        return rng.negative_binomial(1 / self.dispersion, 1 / (1 + self.dispersion * mean))


def train(prepared: Path, model: Path, *, seed: int = 0) -> None:
    """Fit to training and validation cells."""
    adata = peer.training_cells(prepared)
    arrays = {}
    for number, (name, rows) in enumerate(adata.obs.groupby("cell_type", observed=True).indices.items()):
        fitted = NegativeBinomials.from_counts(sparse.csr_matrix(adata.X[rows], dtype=float))
        arrays |= {f"{number}_{key}": value for key, value in vars(fitted).items()} | {f"{number}_name": str(name)}
    with atomic_write(model, folder_of=MODEL) as folder:
        folder.mkdir()
        np.savez_compressed(folder / MODEL, **arrays)


def load(model: Path) -> dict[str, NegativeBinomials]:
    """Read the negative binomials of each cell type."""
    with np.load(model / MODEL) as arrays:
        numbers = [key.removesuffix("_name") for key in arrays if key.endswith("_name")]
        fields = NegativeBinomials.__dataclass_fields__
        return {
            str(arrays[f"{number}_name"]): NegativeBinomials(**{key: arrays[f"{number}_{key}"] for key in fields})
            for number in numbers
        }


def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw cells of each type."""
    by_type = load(model)
    return peer.draw_in_blocks(numbers, lambda name, n_cells, rng: by_type[name].draw(n_cells, rng), seed=seed)


if __name__ == "__main__":
    peer.commands(train=train, draw=draw)()
