"""Latents of cells: coordinates, encoding, sampling and storage."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from bdm._core.errors import InputError
from bdm._core.parallel import threads
from bdm._core.seeds import to_tensor, torch_generator
from bdm._core.store import checksum_of
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.inputs import N_BOUND_ITERATIONS, batch_codes, sample_rows_of_population
from bdm.data.filters import is_fitted
from bdm.data.matrix import Matrix, blocks_of_rows, write_h5ad
from bdm.data.modalities import LIBRARY_SIZE, encoded_features
from bdm.data.read import read_cells


@dataclass(frozen=True)
class LatentLayout:
    """Coordinates of y = (latent, log library sizes), cells x dimensions.

    Each normalised modality has a library size; RNA comes first.
    """

    n_latent: int
    sizes: tuple[str, ...] = (LIBRARY_SIZE,)  # names of the log library sizes

    @property
    def latent(self) -> slice:
        """Coordinates of the latent."""
        return slice(0, self.n_latent)

    @property
    def library_sizes(self) -> slice:
        """Coordinates of the log library sizes of all modalities."""
        return slice(self.n_latent, self.n_latent + len(self.sizes))

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each coordinate."""
        return (*(f"latent_{k}" for k in range(self.n_latent)), *self.sizes)

    def index(self, name: str) -> int:
        """Return the position of a coordinate."""
        if name not in self.names:
            raise InputError(f"The latent has no coordinate {name!r}; it has {', '.join(self.names)}.")
        return self.names.index(name)

    def joined(self, latent: Tensor, log_library_sizes: Tensor) -> Tensor:
        """Concatenate latents (cells x ``n_latent``) and log library sizes (cells x ``sizes``)."""
        y = torch.empty(len(latent), len(self.names))
        y[:, self.latent], y[:, self.library_sizes] = latent, log_library_sizes
        return y


@dataclass(frozen=True)
class LatentCells:
    """Normal posteriors over y = (latent, log library sizes), see :class:`LatentLayout`."""

    mean: Tensor  # posterior mean, cells x dimensions
    scale: Tensor  # posterior standard deviation, cells x dimensions; 0 for library sizes, which are known
    population: Tensor  # index of each cell's population
    populations: tuple[str, ...]
    labels: tuple[str, ...] = ()  # cell type of each population; by default, the population itself
    sizes: tuple[str, ...] = (LIBRARY_SIZE,)  # names of the log library sizes, the last coordinates

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.labels or self.populations)

    @property
    def layout(self) -> LatentLayout:
        """Coordinates of y."""
        return LatentLayout(self.mean.shape[1] - len(self.sizes), self.sizes)

    @property
    def n_cells(self) -> Tensor:
        """Number of cells of each population."""
        return torch.bincount(self.population, minlength=len(self.populations))

    def members(self) -> list[np.ndarray]:
        """Return the cells of each population."""
        return [np.flatnonzero(self.population.numpy() == code) for code in range(len(self.populations))]

    @property
    def deviation(self) -> Tensor:
        """Deviation of posterior means from their population mean, cells x dimensions."""
        sums = torch.zeros(len(self.populations), self.mean.shape[1]).index_add(0, self.population, self.mean)
        return self.mean - (sums / self.n_cells.clamp(min=1)[:, None])[self.population]

    def subset(self, index: Tensor) -> "LatentCells":
        """Select cells by index."""
        tensors = (self.mean[index], self.scale[index], self.population[index])
        return LatentCells(*tensors, self.populations, self.labels, self.sizes)

    def sample(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Sample y from the posteriors of the cells ``index``, len(index) x dimensions."""
        noise = torch.randn(len(index), self.mean.shape[1], generator=generator)
        return self.mean[index] + self.scale[index] * noise


BLOCK = 512  # cells to encode together


def encode(adata: ad.AnnData, autoencoder: GeneAutoencoder, population: np.ndarray | None = None) -> ad.AnnData:
    """Encode prepared cells, in memory or backed, in blocks.

    The ``population`` of each cell is by default from :func:`populations_of_cells`. Returns posterior means of (latent,
    log library sizes) in ``X``, standard deviations in ``layers["scale"]`` and populations in
    ``obs["sub_population"]``.
    """
    if population is None:
        population = populations_of_cells(adata, autoencoder)
    types, batches = autoencoder.population_codes(population), batch_codes(adata, autoencoder.batches)
    layout = LatentLayout(autoencoder.network.shape.n_latent, autoencoder.size_names)
    mean, scale = torch.empty(2, adata.n_obs, len(layout.names))

    @torch.no_grad()  # applies to the current thread only
    def encode_block(block: tuple[np.ndarray, sparse.csr_matrix]) -> tuple[np.ndarray, Tensor, Tensor]:
        rows, counts = block
        dense = to_tensor(counts.toarray())
        latent = autoencoder.network_of(population[rows[0]]).encode(dense, types[rows], batches[rows])
        log_library_sizes = autoencoder.network.decoder.size(dense).log()
        return (
            rows,
            layout.joined(latent.mean, log_library_sizes),
            layout.joined(latent.scale, torch.zeros_like(log_library_sizes)),
        )

    blocks = read_blocks(adata.X, lambda read: cells_by_network(population[read], autoencoder))
    with threads() as run:
        for rows, block_mean, block_scale in run(encode_block, blocks):
            mean[rows], scale[rows] = block_mean, block_scale
    return ad.AnnData(
        mean.numpy(),
        obs=adata.obs.assign(sub_population=pd.Categorical(population, categories=autoencoder.populations)),
        var=pd.DataFrame(index=list(layout.names)),
        layers={"scale": scale.numpy()},
    )


def populations_of_cells(adata: ad.AnnData, autoencoder: GeneAutoencoder) -> np.ndarray:
    """Assign cells of known types to their most probable population, by name."""
    cell_type = adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    population, batches = cell_type.copy(), batch_codes(adata, autoencoder.batches)
    divided = sorted(set(autoencoder.sub_populations.cell_type) & set(cell_type))
    networks = {name: autoencoder.label_network(name) for name in divided}

    def cells_by_type(read: slice) -> list[np.ndarray]:
        return [np.flatnonzero(cell_type[read] == name) for name in divided]

    @torch.no_grad()  # applies to the current thread only
    def assign(block: tuple[np.ndarray, sparse.csr_matrix]) -> tuple[np.ndarray, np.ndarray]:
        rows, counts = block
        name = cell_type[rows[0]]
        network, code = networks[name]
        codes = torch.full((len(rows),), code)
        latent = network.encode(to_tensor(counts.toarray()), codes, batches[rows]).mean
        names = np.array(autoencoder.populations_of(name), dtype=object)
        return rows, names[autoencoder.sub_populations.assign(name, latent)]

    if divided:
        with threads() as run:
            for rows, names in run(assign, read_blocks(adata.X, cells_by_type)):
                population[rows] = names
    return np.asarray(population.astype(str))


def read_blocks(
    matrix: Matrix, groups: Callable[[slice], list[np.ndarray]]
) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
    """Yield the rows and counts of up to ``BLOCK`` cells of the same group.

    ``groups`` divides a slice of rows into groups, as indices from the start of the slice.
    """
    for read, counts in blocks_of_rows(matrix):
        for cells in groups(read):
            for first in range(0, len(cells), BLOCK):
                block = cells[first : first + BLOCK]
                yield read.start + block, counts[block]


def cells_by_network(population: np.ndarray, autoencoder: GeneAutoencoder) -> list[np.ndarray]:
    """Group cells by network: indices for the shared network, then for each adapter."""
    specific = {name: np.flatnonzero(population == name) for name in autoencoder.adapters}
    shared = np.flatnonzero(~np.isin(population, list(specific)))
    return [cells for cells in (shared, *specific.values()) if len(cells)]


@dataclass(frozen=True)
class SampledCells:
    """Training cells of a population, with latents sampled from their posteriors."""

    counts: sparse.csr_matrix  # cells x features
    latent: Tensor  # cells x latent dimensions
    batch: Tensor  # index of each cell's batch


def trained_populations(cells: ad.AnnData, populations: Sequence[str]) -> list[str]:
    """List the populations with training cells; ``cells`` are prepared, with ``obs["sub_population"]``."""
    trained = set(cells.obs["sub_population"][(cells.obs["split"] == "train").to_numpy()])
    return [name for name in populations if name in trained]


@torch.no_grad()
def sample_cells_with_latents(
    cells: ad.AnnData, autoencoder: GeneAutoencoder, population: str, *, n_cells: int, purpose: str, seed: int
) -> SampledCells:
    """Sample at most ``n_cells`` training cells of a population, and one latent of each; seeded by ``purpose``."""
    rows = sample_rows_of_population(cells.obs, population, "train", n_cells, seed=seed)
    sampled, types = cells[rows], torch.full((len(rows),), autoencoder.population_code(population))
    counts, batch = sparse.csr_matrix(sampled.X), batch_codes(sampled, autoencoder.batches)
    dense = to_tensor(counts[:, encoded_features(cells.var)].toarray())
    network = autoencoder.network_of(population).encoded_part()
    posterior = network.encode(dense, types, batch, n_iterations=N_BOUND_ITERATIONS)
    noise = torch.randn(posterior.mean.shape, generator=torch_generator(seed, purpose, population))
    return SampledCells(counts, posterior.sample(noise), batch)


RESIDUAL, RESIDUAL_SCALE = "residual", "residual_scale"  # layers: posteriors of y without effects of inputs


def latent_cells(adata: ad.AnnData, *, with_test: bool = False) -> LatentCells:
    """Convert the result of :func:`encode` to tensors, with or without test cells.

    With effects of batches or covariates, latents are residuals without these, see
    :func:`bdm.effects.effect.with_residuals`.
    """
    mask = np.full(adata.n_obs, True) if with_test else is_fitted(adata.obs)
    population = adata.obs["sub_population"].cat
    label = dict(zip(adata.obs["sub_population"], adata.obs["cell_type"].astype(str), strict=True))
    if RESIDUAL in adata.layers:
        mean, scale = adata.layers[RESIDUAL], adata.layers[RESIDUAL_SCALE]
    else:
        mean, scale = adata.X, adata.layers["scale"]
    return LatentCells(
        to_tensor(np.asarray(mean[mask])),
        to_tensor(np.asarray(scale[mask])),
        to_tensor(population.codes.to_numpy()[mask].astype(np.int64)),
        tuple(population.categories),
        tuple(label.get(name, name) for name in population.categories),
        encoded_sizes(adata),
    )


def encoded_sizes(adata: ad.AnnData) -> tuple[str, ...]:
    """Return the names of the log library sizes, the last coordinates of :func:`encode`."""
    return tuple(name for name in adata.var_names if not name.startswith("latent_"))


def library_size_range(adata: ad.AnnData) -> Tensor:
    """Return the smallest and the largest log library size, without test cells.

    The shape is 2, or 2 x modalities if several modalities have a library size.
    """
    mask = is_fitted(adata.obs)
    sizes = to_tensor(np.asarray(adata.X[mask, -len(encoded_sizes(adata)) :])).squeeze(1)
    return torch.stack([sizes.amin(dim=0), sizes.amax(dim=0)])


def save_latent(folder: Path, latent: ad.AnnData, *, of: str) -> None:
    """Write latents to the folder of their autoencoder, with its checksum ``of``."""
    latent.uns["autoencoder"] = of
    write_h5ad(Path(folder) / "latent.h5ad", latent)


def read_latent(folder: Path) -> ad.AnnData:
    """Read latents from the folder of an autoencoder, and check that it encoded them."""
    path = Path(folder) / "latent.h5ad"
    adata = read_cells(path)
    if "scale" not in adata.layers or not {"cell_type", "sub_population", "split"} <= set(adata.obs):
        raise InputError(f"{path} was not made by bdm autoencoder; run it first.")
    checksum = adata.uns.get("autoencoder")
    if checksum is not None and checksum != checksum_of(folder, "autoencoder"):
        raise InputError(f"{path} does not match the autoencoder in its folder; rerun bdm autoencoder.")
    return adata
