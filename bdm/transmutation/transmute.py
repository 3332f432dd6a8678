"""Transmutation of cells to another type, block by block, and which cells are transmuted."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.parallel import keep_freed_memory, threads
from bdm._core.seeds import numpy_generator, torch_generator
from bdm._core.validation import unknown_type
from bdm.generation.at import NOWHERE, At, at_in_words, covariate_names, moved
from bdm.generation.generate import Block, GeneratedCells, batch_columns, sampled_counts, type_columns
from bdm.latent.cells import latent_cells
from bdm.model.match import (
    SAME,
    batch_column,
    batches_of,
    covariate_values,
    first_names,
    label_column,
    labels_of,
    model_counts,
    of_known_types,
)
from bdm.model.model import BranchedModel, expected_counts, record_of_cells
from bdm.prior.sampler import warn_of_unused_levels
from bdm.prior.transport import optimal_coupling
from bdm.settings import InputKeys, SamplerSettings

logger = logging.getLogger(__name__)

Transmute = Callable[[Tensor, str, str, torch.Generator], Tensor]  # of whitened cells, from one population to another
BLOCK = 512  # cells that are transmuted together; the random numbers of a seed depend on it


@dataclass(frozen=True)
class Sources:
    """Cells to transmute."""

    to: str  # cell type or sub-population
    cell_types: tuple[str, ...]  # that were asked for; none for all but ``to``
    at: At  # new values of covariates that were asked for
    adata: ad.AnnData  # counts of the model's genes (CSR), with ``obs`` of the input
    cell_type: np.ndarray  # by the names in the model
    batch: np.ndarray | None  # None where the model has no batches
    label_column: str | None  # of ``obs``, if any
    batch_column: str | None
    covariates: np.ndarray | None = None  # values, cells x covariates; None where the model has no covariates
    new_covariates: np.ndarray | None = None  # after the transmutation


@dataclass(frozen=True)
class Rows:
    """Rows of cells of one type, with the number of their block."""

    block: int
    cell_type: str
    rows: np.ndarray


def transmuted_cells(model: BranchedModel, sources: Sources, settings: SamplerSettings, *, seed: int) -> GeneratedCells:
    """Transmute cells to another type or sub-population, block by block.

    The latent of a cell is sampled from its posterior, encoded up to the lowest common ancestor of its type and the new
    type, and decoded down to the new type. Encoding follows the probability-flow equation and inverts each transport
    map, so that a cell keeps its position among cells of its type. Counts are sampled with the library size of the
    result.

    Returns
    -------
    Cells with raw counts (CSR, float32 as scanpy reads counts), with the names and the order of the cells; the latent
    in ``obsm['latent']``; the model's ``var``. ``obs`` has the new type in ``cell_type`` and in the columns of types in
    the model's data and in the input; ``sub_population``, the new population, if the model has ``to``;
    ``original_type``; the batch, in the same columns as in these; ``common_ancestor`` and ``common_ancestor_level``
    (node up to which the cell was encoded, and its noise level in whitened units); and
    ``synthetic`` (True). Other columns of the input describe the cells before the transmutation and are not kept; the
    names of the cells lead to them.
    """
    sampler = model.sampler(settings)
    warn_of_unused_levels(sampler)
    asked = {"to": sources.to, "from": list(sources.cell_types)}
    record = record_of_cells(model, seed=seed, settings=asdict(settings) | asked, at=at_in_words(sources.at))
    return GeneratedCells(
        observations(model, sources),
        model.autoencoder.genes.copy(),
        transmuted_blocks(model, sources, sampler.transmute, seed=seed),
        model.populations,
        uns={"bdm": record},
    )


def transmuted_blocks(model: BranchedModel, sources: Sources, transmute: Transmute, *, seed: int) -> Iterator[Block]:
    """Sample latents from posteriors, transmute them in whitened space, and sample counts of their new populations."""

    def transmuted_block(rows: Rows) -> Block:
        generator = torch_generator(seed, "transmute", rows.block, rows.cell_type)
        y, population = _posterior_draw(model, sources, rows, generator)
        at = None if sources.new_covariates is None else sources.new_covariates[rows.rows]
        for_populations = torch_generator(seed, "populations", rows.block, rows.cell_type)
        new = new_populations(model, population, sources.to, for_populations, at)
        x, parts, batch = model.whitening(y), [], None if sources.batch is None else sources.batch[rows.rows]
        for old_name, new_name in sorted(set(zip(population, new, strict=True))):
            chosen = np.flatnonzero((population == old_name) & (new == new_name))
            transmuted = transmute(x[chosen], old_name, new_name, generator)
            x[chosen] = model.at_covariates(transmuted, new_name, None if at is None else at[chosen])
            expected = expected_counts(model, x[chosen], None if batch is None else batch[chosen], new_name)
            for_counts = numpy_generator(seed, "transmuted counts", rows.block, old_name, new_name)
            parts.append((chosen, sampled_counts(model, expected, new_name, for_counts)))
        order = np.argsort(np.concatenate([chosen for chosen, _ in parts]))
        counts = sp.vstack([part for _, part in parts], format="csr")[order]
        return Block(counts, model.whitening.inverse(x)[:, model.layout.latent].numpy(), new)

    keep_freed_memory()
    with threads() as run:
        for start in range(0, len(sources.cell_type), BLOCK):
            types = sources.cell_type[start : start + BLOCK]
            names = pd.unique(types)
            parts = [Rows(start // BLOCK, str(name), start + np.flatnonzero(types == name)) for name in names]
            yield _in_order(parts, list(run(transmuted_block, parts)))


def new_populations(
    model: BranchedModel,
    population: np.ndarray,
    to: str,
    generator: torch.Generator,
    at: np.ndarray | None = None,
) -> np.ndarray:
    """Choose the new population of cells of one type, by the coupling of its populations with those of the new type.

    The coupling moves the shares of populations by the least mean squared distance between their means in whitened
    space (discrete optimal transport). Where shares depend on covariates, they are those ``at`` the new values of each
    cell.
    """
    if to not in model.cell_types:
        return np.full(len(population), to)
    old, new = (model.autoencoder.populations_of(name) for name in (model.cell_type_of[population[0]], to))
    old_means, new_means = (torch.stack([mean(model, name) for name in names]).double() for names in (old, new))
    shares = [model.composition.loc[list(names)].sum(axis=1).to_numpy(dtype=float) for names in (old, new)]
    coupling = optimal_coupling(shares[0], shares[1], (torch.cdist(old_means, new_means) ** 2).numpy())
    probability = coupling[pd.Index(old).get_indexer(population)]
    if model.covariates is not None and at is not None:
        weight = dict(zip(new, shares[1], strict=True))
        probability = probability * (model.covariates.shares(to, weight, at) / (shares[1] / shares[1].sum()) + 1e-9)
    chosen = torch.multinomial(torch.from_numpy(probability), 1, generator=generator).squeeze(1)
    return np.asarray(np.array(new)[chosen.numpy()])


def _posterior_draw(
    model: BranchedModel, sources: Sources, rows: Rows, generator: torch.Generator
) -> tuple[Tensor, np.ndarray]:
    """Sample y = (latent, log library size) of cells of one type, and find their populations."""
    cells = ad.AnnData(sources.adata.X[rows.rows])
    cells.obs["cell_type"] = pd.Categorical([rows.cell_type] * len(rows.rows))
    if sources.batch is not None:
        cells.obs["batch"] = pd.Categorical(sources.batch[rows.rows])
    if model.covariates is not None and sources.covariates is not None:
        cells.obs[list(model.covariates.names)] = sources.covariates[rows.rows]
    posterior = model.encode(cells)
    latent = latent_cells(posterior, every=True)
    population = posterior.obs["sub_population"].astype(str).to_numpy()
    return latent.sample(torch.arange(len(population)), generator), population


def _in_order(parts: list[Rows], blocks: list[Block]) -> Block:
    order = np.argsort(np.concatenate([part.rows for part in parts]))
    counts = sp.vstack([block.counts for block in blocks], format="csr")
    population = np.concatenate([block.population for block in blocks if block.population is not None])
    return Block(counts[order], np.concatenate([block.latent for block in blocks])[order], population[order])


def observations(model: BranchedModel, sources: Sources) -> pd.DataFrame:
    """Return ``obs`` of transmuted cells: types, batch and origin, and no other column of the cells before."""
    to = sources.to
    columns: dict[str, Any] = {
        **type_columns(model, [model.cell_type_of.get(to, to)] * len(sources.cell_type), sources.label_column),
        "original_type": pd.Categorical(sources.cell_type),
        **batch_columns(model, sources.batch, *filter(None, [sources.batch_column])),
    }
    if sources.new_covariates is not None:
        columns |= dict(zip(covariate_names(model), sources.new_covariates.T, strict=True))
    ancestors = {name: model.hierarchy.common_ancestor(name, to) for name in pd.unique(sources.cell_type)}
    columns["common_ancestor"] = pd.Categorical([ancestors[cell_type].name for cell_type in sources.cell_type])
    columns["common_ancestor_level"] = [ancestors[cell_type].level for cell_type in sources.cell_type]
    obs = pd.DataFrame({**columns, "synthetic": True}, index=sources.adata.obs_names)
    dropped = sources.adata.obs.columns.difference(obs.columns, sort=False)
    if len(dropped):
        names = abbreviated(dropped, n_shown=5)
        logger.info("Not kept, as they describe the cells before transmutation: columns %s of obs.", names)
    return obs


# ---- cells to transmute


def sources_of(
    adata: ad.AnnData,
    model: BranchedModel,
    to: str,
    keys: InputKeys = SAME,
    *,
    cell_types: tuple[str, ...] = (),
    at: At = NOWHERE,
    extrapolate: bool = False,
) -> Sources:
    """Select the cells to transmute, of all types but the new one if none are named, and check that they fit the model.

    Cells keep the values of their covariates, but those in ``at``. Cells of types that the model lacks, and cells
    without counts, are left out with a warning.
    """
    if model.cell_types == (to,):
        names = ", ".join(model.populations)
        remedy = f"name one of its sub-populations: {names}" if len(model.populations) > 1 else "fit one with labels"
        raise InputError(f"The model has no cell type but {to!r} to transmute cells to; {remedy}.")
    allowed = {to: (*model.cell_types, *model.populations), **dict.fromkeys(cell_types, model.cell_types)}
    for name, types in allowed.items():
        if name not in types:
            raise InputError(unknown_type(name, model.cell_types, of="The model has"))
    labels = labels_of(adata.obs, model, keys)
    known = of_known_types(labels, model)
    is_selected = labels.isin(cell_types).to_numpy() if cell_types else known & (labels != to).to_numpy()
    if not is_selected.any():
        raise InputError(
            f"There are no cells to transmute to {to!r}; the cells are of the types {first_names(labels)}."
        )
    cells, labels = model_counts(adata, model, keys)[is_selected], labels[is_selected]
    has_counts = np.asarray(cells.X.sum(axis=1)).ravel() > 0
    if not has_counts.all():
        logger.warning("Left out %s with no counts of the model's genes.", counted((~has_counts).sum(), "cell"))
    if not has_counts.any():
        raise InputError("No cell has counts of the model's genes.")
    cells = cells[has_counts].copy()
    columns = label_column(adata.obs, model, keys), batch_column(adata.obs, model, keys)
    values = covariate_values(cells.obs, model)
    new_values = None if values is None else moved(model, values, to, at, extrapolate=extrapolate)
    batch, cell_type = batches_of(cells, model, keys), labels[has_counts].to_numpy()
    return Sources(to, cell_types, at, cells, cell_type, batch, *columns, values, new_values)


def mean(model: BranchedModel, cell_type: str) -> Tensor:
    """Mean of the cells of a cell type or sub-population in whitened space."""
    names = list(model.autoencoder.populations_of(cell_type))
    n_cells = torch.from_numpy(model.composition.loc[names].sum(axis=1).to_numpy(dtype="float32"))
    of_populations = model.moments.mean[[model.populations.index(name) for name in names]]
    return n_cells / n_cells.sum() @ of_populations
