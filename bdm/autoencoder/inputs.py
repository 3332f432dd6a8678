"""Cells as input of the autoencoder: indices, blocks, samples, evidence lower bounds."""

from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.parallel import threads
from bdm._core.seeds import numpy_generator, to_tensor, torch_generator
from bdm.autoencoder.network import CountAutoencoder
from bdm.data.matrix import take_cells
from bdm.data.modalities import encoded_features


def type_names(adata: ad.AnnData) -> tuple[str, ...]:
    """Return the cell types of prepared cells."""
    return tuple(adata.obs["cell_type"].cat.categories)


def codes_of(names: pd.Series | np.ndarray, known: tuple[str, ...]) -> Tensor:
    """Return the index of each name in ``known``."""
    return to_tensor(pd.Index(known).get_indexer(names.astype(str)).astype(np.int64))


def population_codes(adata: ad.AnnData, cell_types: tuple[str, ...]) -> Tensor:
    """Return the index of each cell's type in ``cell_types``."""
    return codes_of(adata.obs["cell_type"], cell_types)


def batch_names(adata: ad.AnnData) -> tuple[str, ...]:
    """Return the batches of prepared cells; empty without a batch key."""
    return tuple(adata.obs["batch"].cat.categories) if "batch" in adata.obs else ()


def batch_codes(adata: ad.AnnData, batches: tuple[str, ...]) -> Tensor:
    """Return the index of each cell's batch in ``batches``; 0 without batches."""
    if not batches:
        return torch.zeros(adata.n_obs, dtype=torch.long)
    return codes_of(adata.obs["batch"], batches)


# ---- blocks of cells

BLOCK = 512  # cells
CellBlock = tuple[Tensor, Tensor, Tensor]  # counts, cells x genes; index of each cell's type, and of its batch


def cell_blocks(cells: ad.AnnData, cell_type: Tensor, batch: Tensor) -> Iterator[CellBlock]:
    """Yield blocks of dense counts with the index of each cell's type and batch."""
    matrix = cells.X  # read once: each access to `X` of a view selects its cells again
    for start in range(0, cells.n_obs, BLOCK):
        rows = slice(start, start + BLOCK)
        yield to_tensor(matrix[rows].toarray()), cell_type[rows], batch[rows]


def cell_blocks_of_type(cells: ad.AnnData, batches: tuple[str, ...], *, code: int = 0) -> Iterator[CellBlock]:
    """Yield :func:`cell_blocks` of cells of one type, which has the index ``code``."""
    return cell_blocks(cells, torch.full((cells.n_obs,), code), batch_codes(cells, batches))


# ---- samples of cells

# Minimum cells per type in a sample of large data, by purpose; all cells of smaller types. Rare types need them to be
# divided into sub-populations and to fit a type-specific decoder.
N_SAMPLED_PER_TYPE = {"train": 500, "validation": 150, "start": 20}


def sample_cells(adata: ad.AnnData, split: str, *, n_cells: int, seed: int) -> ad.AnnData:
    """Read the encoded features of the cells of a split, or of a sample of large data; see :func:`sample_rows`."""
    rows = np.flatnonzero(adata.obs["split"] == split)
    chosen = np.sort(sample_rows(adata.obs["cell_type"], rows, split, n_cells=n_cells, seed=seed))
    return take_cells(adata, chosen, encoded_features(adata.var))


def sample_rows(cell_type: pd.Series, rows: np.ndarray, purpose: str, *, n_cells: int, seed: int) -> np.ndarray:
    """Sample ``n_cells`` of the rows, and at least ``N_SAMPLED_PER_TYPE[purpose]`` of each type."""
    shuffled = numpy_generator(seed, purpose).permutation(rows)
    rank = cell_type.iloc[shuffled].groupby(cell_type.iloc[shuffled], observed=True).cumcount().to_numpy()
    chosen = (np.arange(len(shuffled)) < n_cells) | (rank < N_SAMPLED_PER_TYPE[purpose])
    return np.asarray(shuffled[chosen])


def sample_rows_of_population(obs: pd.DataFrame, population: str, split: str, n_cells: int, *, seed: int) -> np.ndarray:
    """Return at most ``n_cells`` rows of a population and split, in order."""
    rows = np.flatnonzero((obs["sub_population"] == population) & (obs["split"] == split))
    if len(rows) <= n_cells:
        return rows
    return np.sort(numpy_generator(seed, "own", split, population).choice(rows, n_cells, replace=False))


# ---- evaluation of an autoencoder

N_BOUND_ITERATIONS = 6  # Newton iterations for posteriors, twice as many as in training


@torch.no_grad()
def observed_and_expected(network: CountAutoencoder, blocks: Iterator[CellBlock]) -> tuple[Tensor, Tensor]:
    """Sum observed and expected counts of each gene over cells."""
    observed, expected = torch.zeros(network.shape.n_genes), torch.zeros(network.shape.n_genes)
    for counts, cell_type, batch in blocks:
        latent = network.encode(counts, cell_type, batch, n_iterations=N_BOUND_ITERATIONS).mean
        size = network.decoder.blocks.spread(network.decoder.size(counts), others=1)
        expected += (network.decoder.decode(latent, batch).exp() * size).sum(dim=0)
        observed += counts.sum(dim=0)
    return observed, expected


def evidence_lower_bounds(
    network: CountAutoencoder, cells: ad.AnnData, cell_type: Tensor, batch: Tensor, *, seed: int
) -> np.ndarray:
    """Compute the evidence lower bound of each prepared cell in nats, given the index of its type and batch."""
    generator, device = torch_generator(seed, "bounds"), next(network.parameters()).device

    def noised_blocks() -> Iterator[tuple[Tensor, ...]]:
        for block in cell_blocks(cells, cell_type, batch):
            yield *block, torch.randn(len(block[0]), network.shape.n_latent, generator=generator)

    @torch.no_grad()  # applies to the current thread only
    def compute_bounds(block: tuple[Tensor, ...]) -> Tensor:
        negative: Tensor = network(*(part.to(device) for part in block), n_iterations=N_BOUND_ITERATIONS)[0]
        return -negative.cpu()

    with threads() as run:
        return torch.cat(list(run(compute_bounds, noised_blocks()))).numpy()


def mean_bound_by_type(
    bounds: np.ndarray, cells: ad.AnnData, types: Tensor, cell_types: tuple[str, ...]
) -> pd.DataFrame:
    """Average the bounds and counts of cells by type.

    Returns the columns ``log_likelihood`` (the bound, in nats) and ``n_counts`` by cell type; NaN without cells.
    """
    table = pd.DataFrame({"log_likelihood": bounds, "n_counts": np.asarray(cells.X.sum(axis=1)).ravel()})
    return table.groupby(types.numpy()).mean().reindex(range(len(cell_types))).set_axis(list(cell_types))
