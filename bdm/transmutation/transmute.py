"""Transmutation of cells: what is asked for, cells block by block, and pairs of types to follow, with their error."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from bdm._core.parallel import keep_freed_memory, threads
from bdm._core.seeds import numpy_generator, torch_generator
from bdm.errors import InputError, abbreviated, counted
from bdm.evaluation.metrics import energy_distance
from bdm.generation.generate import (
    Block,
    GeneratedCells,
    batch_columns,
    expected_counts,
    observation_model,
    type_columns,
)
from bdm.latent.cells import encode
from bdm.latent.mixtures import Mixture
from bdm.model.match import SAME, batch_column, batches_of, label_column, labels_of, model_counts
from bdm.model.model import BranchedModel
from bdm.prior.transport import optimal_coupling
from bdm.settings import InputKeys, SamplerSettings
from bdm.validation import unknown_type

logger = logging.getLogger(__name__)

Transmute = Callable[[Tensor, str, str, torch.Generator], Tensor]  # of whitened cells, from one population to another
BLOCK = 512  # cells that are transmuted together; the random numbers of a seed depend on it
N_CELLS = 500  # of each type of a pair, sampled from the model for its error
BANDWIDTH = 0.25  # in units of the median distance of a type from the old types of the pairs


class Pair(NamedTuple):
    """Two cell types of a model, the first of which became the second."""

    old: str
    new: str


@dataclass(frozen=True)
class Goal:
    """The new type of cells, and how they get there."""

    to: str  # cell type, or one of the sub-populations of a type
    like: tuple[Pair, ...] = ()  # pairs whose shifts replace ``to``, the more, the nearer their old type is

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Types that the model must have."""
        return tuple(name for pair in self.like for name in pair) if self.like else (self.to,)


@dataclass(frozen=True)
class Sources:
    """Cells to transmute."""

    adata: ad.AnnData  # counts of the model's genes (CSR), with ``obs`` of the input
    cell_type: np.ndarray  # by the names in the model
    batch: np.ndarray | None  # None where the model has no batches
    label_column: str | None  # of ``obs``, if any
    batch_column: str | None


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


# ---- cells to transmute


def sources_of(
    adata: ad.AnnData, model: BranchedModel, goal: Goal, keys: InputKeys = SAME, *, cell_types: tuple[str, ...] = ()
) -> Sources:
    """Select the cells to transmute, of all types but the new one if none are named, and check that they fit the model.

    Cells of types that the model lacks, and cells without counts, are left out with a warning.
    """
    if model.cell_types == (goal.to,):
        names = ", ".join(model.populations)
        remedy = f"name one of its sub-populations: {names}" if len(model.populations) > 1 else "fit one with labels"
        raise InputError(f"The model has no cell type but {goal.to!r} to transmute cells to; {remedy}.")
    for name in goal.cell_types:
        if name not in {*model.cell_types, *model.populations}:
            raise InputError(unknown_type(name, model.cell_types, of="The model has"))
    check_source_types(model, cell_types)
    if goal.like and not cell_types:
        raise InputError("Name the types to transmute (`from_=`) where they follow other types (`like=`).")
    labels = labels_of(adata.obs, model, keys)
    known = labels.isin(model.cell_types)
    if not known.all():
        logger.warning(
            "Left out %s of types that the model lacks: %s.",
            counted((~known).sum(), "cell"),
            first_names(labels[~known]),
        )
    is_selected = (labels.isin(cell_types) if cell_types else known & (labels != goal.to)).to_numpy()
    if not is_selected.any():
        raise InputError(
            f"There are no cells to transmute to {goal.to!r}; the cells are of the types {first_names(labels)}."
        )
    cells, labels = model_counts(adata, model, keys)[is_selected], labels[is_selected]
    has_counts = np.asarray(cells.X.sum(axis=1)).ravel() > 0
    if not has_counts.all():
        logger.warning("Left out %s with no counts of the model's genes.", counted((~has_counts).sum(), "cell"))
    if not has_counts.any():
        raise InputError("No cell has counts of the model's genes.")
    cells = cells[has_counts].copy()
    columns = label_column(adata.obs, model, keys), batch_column(adata.obs, model, keys)
    return Sources(cells, labels[has_counts].to_numpy(), batches_of(cells, model, keys), *columns)


def check_source_types(model: BranchedModel, cell_types: tuple[str, ...]) -> None:
    """Reject types of cells to transmute that are no cell types of the model."""
    for name in cell_types:
        if name in model.cell_types:
            continue
        if name in model.populations:
            raise InputError(
                f"{name!r} is a sub-population, but the cells to transmute are selected by their cell types; give "
                f"{model.cell_type_of[name]!r}."
            )
        raise InputError(unknown_type(name, model.cell_types, of="The model has"))


def first_names(labels: pd.Series) -> str:
    """List the first cell types."""
    return ", ".join("no type" if pd.isna(name) else repr(name) for name in labels.unique()[:5]) or "none"


# ---- pairs of types


def read_pair(text: str, cell_types: tuple[str, ...]) -> Pair:
    """Read ``OLD=NEW``, where either name may contain an equals sign."""
    parts = text.split("=")
    pairs = [Pair("=".join(parts[:i]), "=".join(parts[i:])) for i in range(1, len(parts))]
    for pair in pairs:
        if set(pair) <= set(cell_types):
            return pair
    if not pairs:
        raise InputError(f"--like {text} is not of the form OLD=NEW.")
    nearest = max(pairs, key=lambda pair: len(set(pair) & set(cell_types)))
    unknown = next(name for name in nearest if name not in cell_types)
    raise InputError(f"--like {text}: {unknown_type(unknown, cell_types, of='the model has')}")


def weights(model: BranchedModel, cell_type: str, like: tuple[Pair, ...]) -> pd.Series:
    """Weight pairs by a Gaussian kernel of the distance of a type from their old type, in whitened space."""
    distance = torch.stack([(mean(model, pair.old) - mean(model, cell_type)).norm() for pair in like]).double()
    width = BANDWIDTH * float(distance.quantile(0.5))
    log_weight = -((distance / width) ** 2) / 2 if width > 0 else -distance
    return pd.Series(torch.softmax(log_weight, dim=0).numpy(), index=pd.MultiIndex.from_tuples(like))


def shift(model: BranchedModel, cell_type: str, like: tuple[Pair, ...]) -> Tensor:
    """Mean difference between the types of pairs, weighted for a cell type, in whitened space."""
    differences = torch.stack([mean(model, pair.new) - mean(model, pair.old) for pair in like])
    return torch.from_numpy(weights(model, cell_type, like).to_numpy(dtype="float32")) @ differences


def mean(model: BranchedModel, cell_type: str) -> Tensor:
    """Mean of the cells of a cell type or sub-population in whitened space."""
    names = list(model.autoencoder.populations_of(cell_type))
    n_cells = torch.from_numpy(model.composition.loc[names].sum(axis=1).to_numpy(dtype="float32"))
    of_populations = model.moments.mean[[model.populations.index(name) for name in names]]
    return n_cells / n_cells.sum() @ of_populations


def errors_of_pairs(model: BranchedModel, pairs: tuple[Pair, ...], *, seed: int) -> pd.DataFrame:
    """Predict the new type of each pair (``old``, ``new``) from its old type as the other pairs differ.

    Energy distances, in whitened units, of ``shifted`` and ``unchanged`` cells that the model samples of the old type.
    """
    generator, rows = torch_generator(seed, "pairs"), {}
    for pair in pairs:
        old, new = (sampled(model, name, generator) for name in pair)
        by_others = shift(model, pair.old, tuple(other for other in pairs if other != pair)).double().numpy()
        rows[pair] = {"shifted": energy_distance(old + by_others, new), "unchanged": energy_distance(old, new)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["old", "new"])


def sampled(model: BranchedModel, cell_type: str, generator: torch.Generator) -> np.ndarray:
    """Sample cells of the model of a cell type, or of one population, in whitened space."""
    names = list(model.autoencoder.populations_of(cell_type))
    n_cells = torch.from_numpy(model.composition.loc[names].sum(axis=1).to_numpy(dtype=float))
    mixture = Mixture.of([model.moments.mixture((name,)) for name in names], n_cells)
    return mixture.sample(N_CELLS, generator).numpy()


def report_errors(model: BranchedModel, pairs: tuple[Pair, ...], *, seed: int) -> None:
    """Log the expected error of a transmutation like pairs, and warn where cells are no nearer than unchanged ones."""
    if not pairs:
        return
    if len(pairs) == 1:
        logger.warning("The error of a transmutation like a single pair is not known; give two or more by `like=`.")
        return
    errors = errors_of_pairs(model, pairs, seed=seed)
    average = errors.mean()
    worse = errors.index[errors["shifted"] >= errors["unchanged"]]
    found = (
        f"with each of the {len(pairs)} pairs left out in turn, transmuted cells are at an energy distance of "
        f"{average['shifted']:.2f} from the new type on average, and unchanged cells at {average['unchanged']:.2f}"
    )
    if not len(worse):
        logger.info("%s", found)
        return
    names = ", ".join("=".join(pair) for pair in worse[:3])
    logger.warning(
        "%s; they are no nearer than unchanged cells for %d of them (%s). Do not rely on these cells.",
        found.capitalize(),
        len(worse),
        names,
    )
