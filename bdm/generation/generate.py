from collections.abc import Iterator
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch.nn.functional import pad

from bdm.diffusion.walk import SamplerSettings, TreeWalk
from bdm.generation.chunks import Chunk, independent_chunks, shared_chunks
from bdm.generation.counts import draw_counts, expected_counts, inverse_dispersion
from bdm.generation.observations import batch_columns, type_columns
from bdm.generation.places import SMALLEST, WHOLE, Part, places_of, rows_at
from bdm.generation.request import Request
from bdm.memory import keep_freed_memory
from bdm.model.model import BranchedModel
from bdm.seeds import numpy_generator
from bdm.threads import threads


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
    rows = rows_at(request, places_of(request, part, shared=shared_ancestors))

    def decode(chunk: Chunk) -> Block:
        return decode_chunk(model, request, chunk, seed)

    def blocks() -> Iterator[Block]:
        if not len(rows):  # a file of no cells has matrices, too
            yield decode(Chunk(model.cell_types[0], 0, torch.empty(0, model.denoiser.shape.n_input)))
        keep_freed_memory()
        with threads() as run:
            yield from run(decode, sample(walk, request, seed, run, part))

    obs = observations(model, request, ancestors=shared_ancestors).iloc[rows]
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
        counts.append(draw_counts(mean, dispersion, numpy_generator(seed, "counts", chunk.cell_type, start)))
        latent.append(model.whitening.inverse(padded)[:n_cells, :-1].numpy())
    return Block(sp.vstack(counts, format="csr"), np.concatenate(latent))


def observations(model: BranchedModel, request: Request, *, ancestors: bool) -> pd.DataFrame:
    """Tell ``obs`` of the cells asked for: by type, then number."""
    table = request.table.loc[request.table.index.repeat(request.table["n_cells"])]
    columns = {**type_columns(model, table["cell_type"]), "synthetic": True}
    if ancestors:
        columns["ancestor"] = table.groupby("cell_type", sort=False).cumcount().to_numpy()
    columns |= batch_columns(model, table["batch"])
    return pd.DataFrame(columns, index=[f"synthetic-{number}" for number in range(1, len(table) + 1)])
