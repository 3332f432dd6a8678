"""Transmutation of cells, block by block: latents are encoded up to the common ancestor and decoded to the new type."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from bdm._core.parallel import keep_freed_memory, threads
from bdm._core.seeds import numpy_generator, torch_generator
from bdm.errors import abbreviated
from bdm.generation.generate import (
    Block,
    GeneratedCells,
    batch_columns,
    expected_counts,
    observation_model,
    type_columns,
)
from bdm.latent.cells import encode
from bdm.model.model import BranchedModel
from bdm.prior.transport import optimal_coupling
from bdm.settings import SamplerSettings
from bdm.transmutation.request import Goal, Sources, mean, shift

logger = logging.getLogger(__name__)

Transmute = Callable[[Tensor, str, str, torch.Generator], Tensor]  # of whitened cells, from one population to another
BLOCK = 512  # cells that are transmuted together; the random numbers of a seed depend on it


@dataclass(frozen=True)
class Rows:
    """Rows of cells of one type, with the number of their block."""

    block: int
    cell_type: str
    rows: np.ndarray


def transmuted_cells(
    model: BranchedModel, sources: Sources, goal: Goal, settings: SamplerSettings, *, seed: int
) -> GeneratedCells:
    """Transmute cells to another type or sub-population, block by block.

    The latent of a cell is sampled from its posterior, encoded up to the lowest common ancestor of its type and the new
    type, and decoded down to the new type. Encoding follows the probability-flow equation and inverts each transport
    map, so that a cell keeps its position among cells of its type; with ``settings.stochastic`` it adds fresh noise,
    and a cell keeps only what cells of the ancestor share. With ``goal.like``, the latent is shifted instead. Counts
    are sampled with the library size of the result.

    Returns
    -------
    Cells with raw counts (CSR, float32 as scanpy reads counts), with the names and the order of the cells; the latent
    in ``obsm['latent']``; the model's ``var``. ``obs`` has the new type in ``cell_type`` and in the columns of types in
    the model's data and in the input; ``sub_population``, the new population, if the model has ``goal.to``;
    ``original_type``; the batch, in the same columns as in these; ``common_ancestor`` and ``common_ancestor_level``
    (node up to which the cell was encoded, and its noise level in whitened units; not with ``goal.like``); and
    ``synthetic`` (True). Other columns of the input describe the cells before the transmutation and are not kept; the
    names of the cells lead to them.
    """
    sampler = model.sampler(settings)

    def transmute(x: Tensor, population: str, to: str, generator: torch.Generator) -> Tensor:
        if goal.like:
            return x + shift(model, model.cell_type_of[population], goal.like)
        return sampler.transmute(x, population, to, generator)

    return GeneratedCells(
        observations(model, sources, goal),
        model.autoencoder.genes.copy(),
        transmuted_blocks(model, sources, goal.to, transmute, seed=seed),
        model.populations,
    )


def transmuted_blocks(
    model: BranchedModel, sources: Sources, to: str, transmute: Transmute, *, seed: int
) -> Iterator[Block]:
    """Sample latents from posteriors, transmute them in whitened space, and sample counts.

    Counts are of the new population, or of the original one where the model lacks ``to``.
    """
    known = to in model.cell_type_of or to in model.cell_types

    def transmuted_block(rows: Rows) -> Block:
        generator = torch_generator(seed, "transmute", rows.block, rows.cell_type)
        y, population = _posterior_draw(model, sources, rows, generator)
        new = new_populations(model, population, to, torch_generator(seed, "populations", rows.block, rows.cell_type))
        x, parts, batch = model.whitening(y), [], batch_of(sources, rows)
        for old_name, new_name in sorted(set(zip(population, new, strict=True))):
            chosen = np.flatnonzero((population == old_name) & (new == new_name))
            x[chosen] = transmute(x[chosen], old_name, new_name, generator)
            expected = expected_counts(model, x[chosen], None if batch is None else batch[chosen], new_name)
            for_counts = numpy_generator(seed, "transmuted counts", rows.block, old_name, new_name)
            parts.append((chosen, observation_model(model, new_name).sample(expected, for_counts)))
        order = np.argsort(np.concatenate([chosen for chosen, _ in parts]))
        counts = sp.vstack([part for _, part in parts], format="csr")[order]
        return Block(counts, model.whitening.inverse(x)[:, model.layout.latent].numpy(), new if known else None)

    keep_freed_memory()
    with threads() as run:
        for start in range(0, len(sources.cell_type), BLOCK):
            types = sources.cell_type[start : start + BLOCK]
            names = pd.unique(types)
            parts = [Rows(start // BLOCK, str(name), start + np.flatnonzero(types == name)) for name in names]
            yield _in_order(parts, list(run(transmuted_block, parts)))


def new_populations(model: BranchedModel, population: np.ndarray, to: str, generator: torch.Generator) -> np.ndarray:
    """Choose the new population of cells of one type, by the coupling of its populations with those of the new type.

    The coupling moves the shares of populations by the least mean squared distance between their means in whitened
    space (discrete optimal transport). Cells stay in their population where the model lacks ``to``.
    """
    if to not in model.cell_types:
        return np.full(len(population), to) if to in model.populations else population
    old, new = (model.autoencoder.populations_of(name) for name in (model.cell_type_of[population[0]], to))
    old_means, new_means = (torch.stack([mean(model, name) for name in names]).double() for names in (old, new))
    shares = [model.composition.loc[list(names)].sum(axis=1).to_numpy(dtype=float) for names in (old, new)]
    coupling = optimal_coupling(shares[0], shares[1], (torch.cdist(old_means, new_means) ** 2).numpy())
    code = pd.Index(old).get_indexer(population)
    chosen = torch.multinomial(torch.from_numpy(coupling[code]), 1, generator=generator).squeeze(1)
    return np.asarray(np.array(new)[chosen.numpy()])


def _posterior_draw(
    model: BranchedModel, sources: Sources, rows: Rows, generator: torch.Generator
) -> tuple[Tensor, np.ndarray]:
    """Sample y = (latent, log library size) of cells of one type, and find their populations."""
    cells = ad.AnnData(sources.adata.X[rows.rows])
    cells.obs["cell_type"] = pd.Categorical([rows.cell_type] * len(rows.rows))
    if (batch := batch_of(sources, rows)) is not None:
        cells.obs["batch"] = pd.Categorical(batch)
    posterior = encode(cells, model.autoencoder)
    centre, scale = torch.from_numpy(posterior.X), torch.from_numpy(posterior.layers["scale"])
    population = posterior.obs["sub_population"].astype(str).to_numpy()
    return centre + scale * torch.randn(centre.shape, generator=generator), population


def batch_of(sources: Sources, rows: Rows) -> np.ndarray | None:
    """Return the batch of each cell; None where the model has no batches."""
    return None if sources.batch is None else sources.batch[rows.rows]


def _in_order(parts: list[Rows], blocks: list[Block]) -> Block:
    order = np.argsort(np.concatenate([part.rows for part in parts]))
    counts = sp.vstack([block.counts for block in blocks], format="csr")
    names = [block.population for block in blocks if block.population is not None]
    population = np.concatenate(names)[order] if names else None
    return Block(counts[order], np.concatenate([block.latent for block in blocks])[order], population)


def observations(model: BranchedModel, sources: Sources, goal: Goal) -> pd.DataFrame:
    """Return ``obs`` of transmuted cells: types, batch and origin, and no other column of the cells before."""
    columns: dict[str, Any] = {
        **type_columns(
            model, [model.cell_type_of.get(goal.to, goal.to)] * len(sources.cell_type), sources.label_column
        ),
        "original_type": pd.Categorical(sources.cell_type),
        **batch_columns(model, sources.batch, *filter(None, [sources.batch_column])),
    }
    if not goal.like:
        ancestors = {name: model.hierarchy.common_ancestor(name, goal.to) for name in pd.unique(sources.cell_type)}
        columns["common_ancestor"] = pd.Categorical([ancestors[cell_type].name for cell_type in sources.cell_type])
        columns["common_ancestor_level"] = [ancestors[cell_type].level for cell_type in sources.cell_type]
    obs = pd.DataFrame({**columns, "synthetic": True}, index=sources.adata.obs_names)
    dropped = sources.adata.obs.columns.difference(obs.columns, sort=False)
    if len(dropped):
        names = abbreviated(dropped, n_shown=5)
        logger.info("Not kept, as they describe the cells before transmutation: columns %s of obs.", names)
    return obs
