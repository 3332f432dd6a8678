from collections.abc import Iterator
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from torch import Tensor
from tqdm import tqdm

from bdm.diffusion.walk import SamplerSettings, TreeWalk
from bdm.generation.counts import draw_counts, expected_counts
from bdm.generation.request import Request
from bdm.memory import keep_freed_memory
from bdm.model.model import BranchedModel
from bdm.seeds import numpy_generator, torch_generator

CHUNK = 512  # cells that are sampled together; part of what a seed means


@dataclass(frozen=True)
class Chunk:
    """Cells of one type that were sampled together.

    Attributes
    ----------
    start
        Number of the type's cells before these.
    x
        Whitened cells, cells x dimensions.
    """

    cell_type: str
    start: int
    x: Tensor


def generate_cells(
    model: BranchedModel,
    request: Request,
    settings: SamplerSettings,
    *,
    seed: int,
    shared_ancestors: bool = False,
) -> ad.AnnData:
    """Generate the cells asked for.

    Returns
    -------
    AnnData with integer counts in ``X`` (CSR); ``obs`` with ``cell_type``, ``batch`` where the model has batches,
    ``synthetic`` (True) and, with shared ancestors, ``ancestor``, the number of the root sample that the cell descends
    from; the latent in ``obsm['latent']``; the model's ``var``.
    """
    keep_freed_memory()
    walk = TreeWalk(model.denoiser, model.hierarchy, model.moments, settings)
    sample = shared_chunks if shared_ancestors else independent_chunks
    blocks = {}
    for chunk in sample(walk, request, seed):
        blocks[chunk.cell_type, chunk.start] = _decode(model, request, chunk, seed)
    parts = [blocks[key] for key in sorted(blocks, key=lambda k: (model.cell_types.index(k[0]), k[1]))]
    adata = ad.concat(parts)
    adata.obs_names = [f"synthetic-{number}" for number in range(1, adata.n_obs + 1)]
    adata.obs["cell_type"] = pd.Categorical(adata.obs["cell_type"], categories=model.cell_types)
    if model.autoencoder.batches:
        adata.obs["batch"] = pd.Categorical(adata.obs["batch"], categories=model.autoencoder.batches)
    if not shared_ancestors:
        del adata.obs["ancestor"]
    adata.var = model.autoencoder.genes.copy()
    return adata


def independent_chunks(walk: TreeWalk, request: Request, seed: int) -> Iterator[Chunk]:
    """Sample every cell by a path of its own; a chunk depends on seed, type, place and its number of cells alone."""
    numbers = request.table.groupby("cell_type", sort=False)["n_cells"].sum()
    places = [
        (cell_type, start, min(CHUNK, n - start)) for cell_type, n in numbers.items() for start in range(0, n, CHUNK)
    ]
    for cell_type, start, n_cells in tqdm(places, disable=None, desc="generating", unit="chunk"):
        generator = torch_generator(seed, "path", cell_type, start)
        yield Chunk(cell_type, start, walk.independent(cell_type, n_cells, generator))


def shared_chunks(walk: TreeWalk, request: Request, seed: int) -> Iterator[Chunk]:
    """Sample all types from the same ancestors; a chunk depends on seed, place and request."""
    numbers = request.table.groupby("cell_type", sort=False)["n_cells"].sum()
    for start in tqdm(range(0, int(numbers.max()), CHUNK), disable=None, desc="generating", unit="chunk"):
        wanted = (numbers - start).clip(0, CHUNK).to_dict()
        for cell_type, x in walk.shared(wanted, torch_generator(seed, "ancestors", start)).items():
            yield Chunk(cell_type, start, x)


def _decode(model: BranchedModel, request: Request, chunk: Chunk, seed: int) -> ad.AnnData:
    batch = request.batches(chunk.cell_type, chunk.start, len(chunk.x))
    mean = expected_counts(model, chunk.x, batch)
    dispersion = model.autoencoder.network.log_inverse_dispersion.detach().exp().numpy()
    counts = draw_counts(mean, dispersion, numpy_generator(seed, "counts", chunk.cell_type, chunk.start))
    place = np.arange(chunk.start, chunk.start + len(batch))
    names = [f"{chunk.cell_type}-{number}" for number in place]
    obs = pd.DataFrame({"cell_type": chunk.cell_type, "synthetic": True, "ancestor": place}, index=names)
    if model.autoencoder.batches:
        obs["batch"] = batch
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, obsm={"latent": model.whitening.inverse(chunk.x)[:, :-1].numpy()})
