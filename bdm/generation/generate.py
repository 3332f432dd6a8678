"""Generation of counts: latents sampled down the hierarchy, decoded, and observed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import pad

from bdm.arrays import to_tensor
from bdm.data.columns import writable_name
from bdm.diffusion.walk import TreeWalk
from bdm.generation.chunks import (
    SMALLEST,
    WHOLE,
    Chunk,
    Part,
    chunk_specs_of,
    independent_chunks,
    rows_at,
    shared_chunks,
)
from bdm.generation.request import Request
from bdm.model.model import BranchedModel
from bdm.seeds import numpy_generator
from bdm.settings import SamplerSettings
from bdm.threads import keep_freed_memory, threads


@torch.no_grad()
def expected_counts(model: BranchedModel, x: Tensor, batch: np.ndarray, cell_type: str | None = None) -> np.ndarray:
    """Mean counts of cells in whitened space, cells x genes.

    Parameters
    ----------
    x
        Whitened cells, cells x dimensions.
    batch
        Name of each cell's batch; ``""`` where the model has none.
    cell_type
        Of all of them; it matters to types that were added to the model, which have a decoder of their own.
    """
    codes = to_tensor(pd.Index(model.autoencoder.batches or ("",)).get_indexer(batch))
    y = model.whitening.inverse(x)
    smallest, largest = model.library_range(cell_type)
    library = y[:, -1:].clamp(smallest, largest)
    return (model.autoencoder.network_of(cell_type).decode(y[:, :-1], codes) + library).exp().numpy()


@torch.no_grad()
def inverse_dispersion(model: BranchedModel, cell_type: str) -> np.ndarray:
    """Inverse dispersion of each gene's counts in a cell type."""
    code = torch.tensor([model.autoencoder.type_code(cell_type)])
    return model.autoencoder.network_of(cell_type).log_inverse_dispersion(code)[0].exp().numpy()


def sample_counts(mean: np.ndarray, inverse_dispersion: np.ndarray, generator: np.random.Generator) -> sp.csr_matrix:
    """Draw negative binomial counts, with work in proportion to those that are not 0.

    A negative binomial count is the place at time r of a process that jumps at rate ``log(1 + mean / r)``, each time
    by a number that follows the logarithmic series distribution (Quenouille 1949, Biometrics 5:162). So a count is 0
    where the first jump, an exponential time, is after r; otherwise it is that jump, plus what the process gathers in
    the time left, which is negative binomial again: a Poisson number with a gamma rate.

    The counts of a cell depend on the generator and on the cells before it, but not on those after it.

    Parameters
    ----------
    mean
        Cells x genes.
    inverse_dispersion
        r, one a gene.
    """
    n_cells, n_genes = mean.shape
    for_times, for_jumps, for_rates, for_rest = generator.spawn(4)
    per_time = mean / inverse_dispersion
    n_expected = torch.log1p(to_tensor(per_time)).numpy() * inverse_dispersion
    first = for_times.standard_exponential(mean.shape)
    where = np.flatnonzero(first < n_expected)

    gene = where % n_genes
    r, per_time = inverse_dispersion[gene].astype(float), per_time.ravel()[where].astype(float)
    time_left = np.maximum(r - first.ravel()[where] / np.log1p(per_time), 0)
    jump = for_jumps.logseries(np.minimum(per_time / (1 + per_time), np.nextafter(1, 0)))
    counts = jump + for_rest.poisson(for_rates.standard_gamma(time_left) * per_time)
    ends = np.searchsorted(where, n_genes * np.arange(n_cells + 1))
    return sp.csr_matrix((counts.astype(np.float32), gene.astype(np.int32), ends), shape=mean.shape)


# Columns of generated and transmuted cells with a meaning of their own, and a name that AnnData files reserve
RESERVED_COLUMNS = ("cell_type", "original_type", "synthetic", "ancestor", "parted_at", "parted_level", "_index")


def type_columns(model: BranchedModel, cell_type: Sequence[str], *names: str) -> dict[str, pd.Categorical]:
    """Cell types as ``cell_type`` and under the name that their column has in the data of the model.

    Parameters
    ----------
    cell_type
        Of each cell.
    names
        Further columns to give them in.
    """
    known = set(cell_type) <= set(model.cell_types)
    column = pd.Categorical(cell_type, categories=model.cell_types if known else sorted(set(cell_type)))
    return {"cell_type": column, **dict.fromkeys(reserved_names(model.label_key, *names), column)}


def batch_columns(model: BranchedModel, batch: Sequence[str], *names: str) -> dict[str, pd.Categorical]:
    """Batches under the name that their column has in the data of the model; no column where it has no batches."""
    if not model.autoencoder.batches:
        return {}
    column = pd.Categorical(batch, categories=model.autoencoder.batches)
    return dict.fromkeys(reserved_names(model.preparation["batch_key"], *names) or ["batch"], column)


def reserved_names(*names: str) -> list[str]:
    """Names of columns as files can hold them, without those that are taken."""
    return [name for name in map(writable_name, names) if name not in RESERVED_COLUMNS]


@dataclass(frozen=True)
class Block:
    """Counts, cells x genes, and latents, cells x latent dimensions, of a few generated cells."""

    counts: sp.csr_matrix
    latent: np.ndarray


@dataclass(frozen=True)
class GeneratedCells:
    """Cells that are generated as they are asked for.

    Attributes
    ----------
    blocks
        All cells once, in the order of ``obs``: by type, then number.
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    blocks: Iterator[Block]

    def in_memory(self) -> ad.AnnData:
        """Gather all blocks: counts in ``X`` (CSR), ``obs``, ``var``, and the latent in ``obsm['latent']``."""
        blocks = list(self.blocks)
        counts = sp.vstack([block.counts for block in blocks], format="csr")
        latent = np.concatenate([block.latent for block in blocks])
        return ad.AnnData(counts, obs=self.obs, var=self.var, obsm={"latent": latent})


def generate_cells(
    model: BranchedModel,
    request: Request,
    settings: SamplerSettings,
    *,
    seed: int,
    shared_ancestors: bool = False,
) -> ad.AnnData:
    """Generate the cells asked for, in memory.

    Returns
    -------
    AnnData with raw counts in ``X`` (CSR, float32 as scanpy reads counts); ``obs`` with the cell types in
    ``cell_type`` and in the column that the model's data have them in, batches in the column that the data have them
    in, ``synthetic`` (True) and, with shared ancestors, ``ancestor``, the number of the root sample that the cell
    descends from; the latent in ``obsm['latent']``; the model's ``var``.
    """
    return generated_cells(model, request, settings, seed=seed, shared_ancestors=shared_ancestors).in_memory()


def generated_cells(
    model: BranchedModel,
    request: Request,
    settings: SamplerSettings,
    *,
    seed: int,
    shared_ancestors: bool = False,
    part: Part = WHOLE,
    walk: TreeWalk | None = None,
) -> GeneratedCells:
    """Generate the cells asked for, block by block, as :func:`generate_cells` does.

    Parameters
    ----------
    part
        Which of the cells to generate; they are the same and have the same names in any part.
    walk
        What samples whitened cells, in place of the model's walk by ``settings``.
    """
    walk = walk or TreeWalk(model.denoiser, model.hierarchy, settings)
    sample = shared_chunks if shared_ancestors else independent_chunks
    rows = rows_at(request, chunk_specs_of(request, part, shared=shared_ancestors))

    def decode(chunk: Chunk) -> Block:
        return decode_chunk(model, request, chunk, seed)

    def blocks() -> Iterator[Block]:
        if not len(rows):  # a file of no cells has matrices, too
            yield decode(Chunk(model.cell_types[0], 0, torch.empty(0, model.denoiser.shape.n_input)))
        keep_freed_memory()
        with threads() as run:
            yield from run(decode, sample(walk, request, seed, run, part))

    obs = observations_of(model, request, ancestors=shared_ancestors).iloc[rows]
    return GeneratedCells(obs, model.autoencoder.genes.copy(), blocks())


def decode_chunk(model: BranchedModel, request: Request, chunk: Chunk, seed: int) -> Block:
    """Draw the counts of a chunk's cells.

    Blocks of one size are decoded, so that a cell's last digits do not depend on how many there are.
    """
    dispersion = inverse_dispersion(model, chunk.cell_type)
    counts, latent = [], []
    for i, x in enumerate(chunk.x.split(SMALLEST)):
        start, n_cells = chunk.start + i * SMALLEST, len(x)
        padded = pad(x, (0, 0, 0, SMALLEST - n_cells))
        batch = request.batches(chunk.cell_type, start, SMALLEST)
        mean = expected_counts(model, padded, batch, chunk.cell_type)[:n_cells]
        counts.append(sample_counts(mean, dispersion, numpy_generator(seed, "counts", chunk.cell_type, start)))
        latent.append(model.whitening.inverse(padded)[:n_cells, :-1].numpy())
    return Block(sp.vstack(counts, format="csr"), np.concatenate(latent))


def observations_of(model: BranchedModel, request: Request, *, ancestors: bool) -> pd.DataFrame:
    """Tell ``obs`` of the cells asked for: by type, then number."""
    table = request.table.loc[request.table.index.repeat(request.table["n_cells"])]
    columns = {**type_columns(model, table["cell_type"]), "synthetic": True}
    if ancestors:
        columns["ancestor"] = table.groupby("cell_type", sort=False).cumcount().to_numpy()
    columns |= batch_columns(model, table["batch"])
    return pd.DataFrame(columns, index=[f"synthetic-{number}" for number in range(1, len(table) + 1)])
