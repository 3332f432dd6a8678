"""Simulated cells in space: expression follows known smooth fields."""

from dataclasses import dataclass
from typing import Self

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from bdm._core.seeds import numpy_generator
from bdm.data.space import POSITIONS

LENGTHS = {"long": 0.3, "short": 0.12}  # length scales, relative to the side of the square of all positions
KINDS = ("long", "short", "long, one type", "short, one type")  # kinds of fields
NO_FIELD = "none"
SHARE_WITH_FIELD = 0.1  # share of genes with a field of each kind
DEVIATION = 0.5  # of a field, in log expression
N_FEATURES = 200  # random Fourier features of a field
N_IN_CHUNK = 10_000  # cells


@dataclass(frozen=True)
class SpatialFields:
    """Known effects of positions on the log expression of each gene."""

    kind: np.ndarray  # kind of field of each gene
    cell_type: np.ndarray  # the type with the field; empty if all types have it
    frequencies: dict[str, np.ndarray]  # by length, coordinates x features
    phases: dict[str, np.ndarray]  # by length
    amplitudes: np.ndarray  # features x genes

    @classmethod
    def sample(cls, n_genes: int, cell_types: list[str], *, seed: int) -> Self:
        """Sample independent fields with a Gaussian kernel."""
        rng, n = numpy_generator(seed, "fields"), round(SHARE_WITH_FIELD * n_genes)
        kind = np.array([*np.repeat(KINDS, n), *[NO_FIELD] * (n_genes - n * len(KINDS))])
        cell_type = np.where(np.char.endswith(kind, "one type"), rng.choice(cell_types, n_genes), "")
        frequencies = {name: rng.standard_normal((2, N_FEATURES)) / length for name, length in LENGTHS.items()}
        phases = {name: rng.uniform(0, 2 * np.pi, N_FEATURES) for name in LENGTHS}
        amplitudes = DEVIATION * np.sqrt(2 / N_FEATURES) * rng.standard_normal((N_FEATURES, n_genes))
        return cls(kind, cell_type, frequencies, phases, amplitudes)

    def __call__(self, positions: np.ndarray, cell_type: np.ndarray) -> np.ndarray:
        """Evaluate the effects, cells x genes."""
        effects = np.zeros((len(positions), len(self.kind)))
        for name in LENGTHS:
            genes = np.char.startswith(self.kind, name)
            features = np.cos(positions @ self.frequencies[name] + self.phases[name])
            effects[:, genes] = features @ self.amplitudes[:, genes]
        return effects * ((self.cell_type == "") | (self.cell_type == cell_type[:, None]))


def simulate_fields(n_cells: int, n_genes: int, n_types: int, *, seed: int) -> ad.AnnData:
    """Sample negative binomial counts of cells at uniform positions in a square.

    Types differ in 20% of the genes, and their shares differ between left and right.
    """
    rng, names = numpy_generator(seed, "cells in space"), np.array([f"type {number + 1}" for number in range(n_types)])
    fields = SpatialFields.sample(n_genes, list(names), seed=seed)
    base = rng.normal(0, 1, n_genes) + rng.normal(0, 1, (n_types, n_genes)) * (rng.random((n_types, n_genes)) < 0.2)
    inverse_dispersion = 5 * np.exp(0.5 * rng.standard_normal(n_genes))
    positions = rng.random((n_cells, 2))
    log_odds = (positions[:, :1] - 0.5) * rng.normal(0, 2, n_types)
    code = (log_odds + rng.gumbel(size=(n_cells, n_types))).argmax(axis=1)
    library_size, counts = 3 * n_genes * np.exp(0.4 * rng.standard_normal((n_cells, 1))), []
    for cells in np.array_split(np.arange(n_cells), n_cells // N_IN_CHUNK + 1):
        rate = np.exp(base[code[cells]] + fields(positions[cells], names[code[cells]]))
        mean = library_size[cells] * rate / np.exp(base).sum(axis=1)[code[cells], None]
        mean *= rng.gamma(inverse_dispersion, size=mean.shape) / inverse_dispersion
        counts.append(sparse.csr_matrix(rng.poisson(mean), dtype=np.float32))
    obs = pd.DataFrame({"cell_type": names[code]}, index=[f"cell {number + 1}" for number in range(n_cells)])
    var = pd.DataFrame({"field": fields.kind}, index=[f"gene {number + 1}" for number in range(n_genes)])
    return ad.AnnData(sparse.vstack(counts, format="csr"), obs=obs, var=var, obsm={POSITIONS: positions})
