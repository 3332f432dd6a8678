"""Transmute cells to another type, block by block."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
from bdm.autoencoder.latent import latent_cells
from bdm.data.cell_sets import DEFAULT_KEYS
from bdm.data.space import position_key, section_column
from bdm.generation.covariate_values import NO_COVARIATES, CovariateValues, format_at, set_covariates
from bdm.generation.generate import GeneratedBlock, GeneratedCells, batch_columns, latents, sample_counts, type_columns
from bdm.model.match import (
    batch_column,
    first_names,
    inputs_of,
    label_column,
    labels_of,
    mask_known_types,
    model_counts,
)
from bdm.model.model import BranchedModel, expected_counts, record_of_cells
from bdm.prior.transport import optimal_coupling
from bdm.settings import InputKeys

logger = logging.getLogger(__name__)

Transmute = Callable[[Tensor, str, str, torch.Generator], Tensor]  # cells, old and new population, generator
BLOCK = 512  # cells transmuted together; results depend on it


@dataclass(frozen=True)
class Sources:
    """Cells to transmute."""

    to: str  # target cell type or sub-population
    cell_types: tuple[str, ...]  # requested types; empty for all types except ``to``
    at: CovariateValues  # requested covariates
    adata: ad.AnnData  # counts of the model's genes (CSR), with the input's ``obs``
    cell_type: np.ndarray  # named as in the model
    label_column: str | None  # column of ``obs``, if any
    batch_column: str | None
    inputs: pd.DataFrame  # batch and covariates, if the model has them
    new_inputs: pd.DataFrame  # after transmutation
    positions: dict[str, np.ndarray] = field(default_factory=dict)  # by key of ``obsm``; empty without positions
    section_column: str | None = None  # column of ``obs``, if any


def transmuted_cells(model: BranchedModel, sources: Sources, *, seed: int) -> GeneratedCells:
    """Transmute cells to another type or sub-population, block by block.

    The latent of a cell is sampled from its posterior, encoded up to the lowest common ancestor of both types, then
    decoded to the new type. Encoding follows the probability-flow ODE and inverts each transport map, so
    that a cell keeps its position among the cells of its type. Counts have the library size of the result.

    Parameters
    ----------
    model
        Fitted model.
    sources
        Cells to transmute and their target, from ``select_sources``.
    seed
        Seed of all random numbers.

    Returns
    -------
    Cells with raw counts (CSR, float32), in the order and with the names of the input, and the model's ``var``:

    - ``obs['cell_type']``: new type, repeated in the label columns of the model's data and the input.
    - ``obs['sub_population']``: new population; ``obs['original_type']``: type before.
    - batches, in the columns of the model's data and the input.
    - ``obs['common_ancestor']``, ``obs['common_ancestor_level']``: the node and its noise level in whitened units.
    - ``obs['synthetic']``: True.
    - ``obsm['latent']``: latents.
    - positions in ``obsm`` and sections in ``obs``, named as in the input, if the model and the input have positions.

    Other columns of the input are dropped, as they describe the cells before.
    """
    settings = {"to": sources.to, "from": list(sources.cell_types)}
    record = record_of_cells(model, seed=seed, settings=settings, at=format_at(sources.at))
    return GeneratedCells(
        make_obs(model, sources),
        model.autoencoder.genes.copy(),
        transmuted_blocks(model, sources, model.sampler().transmute, seed=seed),
        model.populations,
        uns={"bdm": record},
        obsm=sources.positions,
    )


def transmuted_blocks(
    model: BranchedModel, sources: Sources, transmute: Transmute, *, seed: int
) -> Iterator[GeneratedBlock]:
    """Yield transmuted cells in blocks: latents from posteriors, then counts."""

    def transmuted_rows(rows: np.ndarray) -> GeneratedBlock:  # cells of one type
        block, cell_type = int(rows[0]) // BLOCK, str(sources.cell_type[rows[0]])
        generator = torch_generator(seed, "transmute", block, cell_type)
        y, population = sample_posteriors(model, sources, rows, generator)
        at = sources.new_inputs.iloc[rows]
        for_populations = torch_generator(seed, "populations", block, cell_type)
        new = new_populations(model, population, sources.to, for_populations, at)
        x, groups = model.whitening(y), []
        for old_name, new_name in sorted(set(zip(population, new, strict=True))):
            cells = np.flatnonzero((population == old_name) & (new == new_name))
            transmuted = transmute(x[cells], old_name, new_name, generator)
            x[cells] = model.moved(transmuted, new_name, at.iloc[cells])
            expected = expected_counts(model, x[cells], at.iloc[cells], new_name)
            for_counts = numpy_generator(seed, "transmuted counts", block, old_name, new_name)
            groups.append((cells, sample_counts(model, expected, new_name, for_counts)))
        order = np.argsort(np.concatenate([cells for cells, _ in groups]))
        counts = sp.vstack([counts for _, counts in groups], format="csr")[order]
        return GeneratedBlock(counts, latents(model, x), new)

    keep_freed_memory()
    with threads() as run:
        for start in range(0, len(sources.cell_type), BLOCK):
            types = sources.cell_type[start : start + BLOCK]
            parts = [start + np.flatnonzero(types == name) for name in pd.unique(types)]
            order, blocks = np.argsort(np.concatenate(parts)), list(run(transmuted_rows, parts))
            counts = sp.vstack([block.counts for block in blocks], format="csr")[order]
            latent = np.concatenate([block.latent for block in blocks])[order]
            population = np.concatenate([block.population for block in blocks if block.population is not None])
            yield GeneratedBlock(counts, latent, population[order])


def new_populations(
    model: BranchedModel,
    population: np.ndarray,
    to: str,
    generator: torch.Generator,
    at: pd.DataFrame,
) -> np.ndarray:
    """Draw the new populations of cells of one type.

    The probabilities are an optimal transport coupling of the populations of both types. Its cost is the squared
    distance between means in whitened space. ``at`` are the cells' new inputs, on which proportions may depend.
    """
    if to not in model.cell_types:
        return np.full(len(population), to)
    old, new = (model.n_training_cells(name) for name in (model.cell_type_of[population[0]], to))
    old_means, new_means = (
        torch.stack([population_mean(model, name) for name in n_cells.index]).double() for n_cells in (old, new)
    )
    cost = (torch.cdist(old_means, new_means) ** 2).numpy()
    coupling = optimal_coupling(old.to_numpy(dtype=float), new.to_numpy(dtype=float), cost)
    probability = coupling[old.index.get_indexer(population)]
    if model.covariates is not None:
        shares = model.covariates.shares(to, new.to_dict(), at[list(model.covariates.names)].to_numpy())
        probability = probability * (shares / (new / new.sum()).to_numpy() + 1e-9)
    chosen = torch.multinomial(torch.from_numpy(probability), 1, generator=generator).squeeze(1)
    return np.asarray(new.index.to_numpy(dtype=str)[chosen.numpy()])


def sample_posteriors(
    model: BranchedModel, sources: Sources, rows: np.ndarray, generator: torch.Generator
) -> tuple[Tensor, np.ndarray]:
    """Sample y = (latent, log library size) of cells; returns y and populations."""
    cells = ad.AnnData(sources.adata.X[rows])
    cells.obs["cell_type"] = pd.Categorical(sources.cell_type[rows])
    cells.obs = cells.obs.join(sources.inputs.iloc[rows].set_index(cells.obs_names))
    posterior = model.encode(cells)
    latent = latent_cells(posterior, with_test=True)
    population = posterior.obs["sub_population"].astype(str).to_numpy()
    return latent.sample(torch.arange(len(population)), generator), population


def make_obs(model: BranchedModel, sources: Sources) -> pd.DataFrame:
    """Return ``obs`` of transmuted cells; other columns of the input are dropped."""
    to = sources.to
    columns: dict[str, Any] = {
        **type_columns(model, [model.cell_type_of.get(to, to)] * len(sources.cell_type), sources.label_column),
        "original_type": pd.Categorical(sources.cell_type),
        **batch_columns(model, sources.inputs.get("batch"), *filter(None, [sources.batch_column])),
    }
    columns |= {name: sources.new_inputs[name].to_numpy() for name in model.input_names}
    if sources.section_column is not None:
        columns[sources.section_column] = pd.Categorical(sources.adata.obs[sources.section_column].astype(str))
    ancestors = {name: model.hierarchy.common_ancestor(name, to) for name in pd.unique(sources.cell_type)}
    columns["common_ancestor"] = pd.Categorical([ancestors[cell_type].name for cell_type in sources.cell_type])
    columns["common_ancestor_level"] = [ancestors[cell_type].level for cell_type in sources.cell_type]
    obs = pd.DataFrame({**columns, "synthetic": True}, index=sources.adata.obs_names)
    dropped = sources.adata.obs.columns.difference(obs.columns, sort=False)
    if len(dropped):
        names = abbreviated(dropped, n_shown=5)
        logger.info("Dropped columns %s of obs, which describe the cells before transmutation.", names)
    return obs


# ---- cells to transmute


def select_sources(
    adata: ad.AnnData,
    model: BranchedModel,
    to: str,
    keys: InputKeys = DEFAULT_KEYS,
    *,
    cell_types: tuple[str, ...] = (),
    at: CovariateValues = NO_COVARIATES,
    extrapolate: bool = False,
) -> Sources:
    """Select the cells to transmute, and check that they fit the model.

    Cells without counts, and cells of unknown types, are dropped with a warning.

    Arguments are as in :meth:`bdm.BranchedDiffusion.transmute`.
    """
    if model.cell_types == (to,):
        names = ", ".join(model.populations)
        remedy = f"name one of its sub-populations: {names}" if len(model.populations) > 1 else "fit one with labels"
        raise InputError(f"The model has a single cell type, {to!r}; {remedy}.")
    allowed = {to: (*model.cell_types, *model.populations), **dict.fromkeys(cell_types, model.cell_types)}
    for name, types in allowed.items():
        if name not in types:
            raise InputError(unknown_type(name, model.cell_types, of="The model has"))
    labels = labels_of(adata.obs, model, keys)
    known = mask_known_types(labels, model)
    is_selected = labels.isin(cell_types).to_numpy() if cell_types else known & (labels != to).to_numpy()
    if not is_selected.any():
        raise InputError(
            f"There are no cells to transmute to {to!r}; the types of the cells are {first_names(labels)}."
        )
    cells, labels = model_counts(adata, model, keys)[is_selected], labels[is_selected]
    has_counts = np.asarray(cells.X.sum(axis=1)).ravel() > 0
    if not has_counts.all():
        logger.warning("Dropped %s without counts of the model's genes.", counted((~has_counts).sum(), "cell"))
    if not has_counts.any():
        raise InputError("No cell has counts of the model's genes.")
    cells = cells[has_counts].copy()
    columns = label_column(adata.obs, model, keys), batch_column(adata.obs, model, keys)
    inputs = inputs_of(cells, model, keys)
    new_inputs = (
        set_covariates(model, inputs, to, at, extrapolate=extrapolate) if at or model.covariates is not None else inputs
    )
    sources = Sources(to, cell_types, at, cells, labels[has_counts].to_numpy(), *columns, inputs, new_inputs)
    if model.space is None or (key := position_key(adata, model.preparation["spatial_key"])) not in adata.obsm:
        return sources
    positions = {key: np.asarray(adata.obsm[key])[is_selected][has_counts]}
    section = section_column(cells.obs, model.preparation["section_key"])
    return replace(sources, positions=positions, section_column=section)


def population_mean(model: BranchedModel, cell_type: str) -> Tensor:
    """Return the mean of a cell type or sub-population in whitened space."""
    n_cells = model.n_training_cells(cell_type)
    weight = torch.from_numpy(n_cells.to_numpy(dtype="float32"))
    means = model.moments.mean[[model.populations.index(name) for name in n_cells.index]]
    return weight / weight.sum() @ means
