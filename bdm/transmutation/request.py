"""Request for a transmutation: the cells, their new type, and pairs of types to follow, with the error of these."""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from bdm._core.seeds import torch_generator
from bdm.errors import InputError, counted
from bdm.evaluation.metrics import energy_distance
from bdm.latent.mixtures import Mixture
from bdm.model.match import SAME, batch_column, batches_of, label_column, labels_of, model_counts
from bdm.model.model import BranchedModel
from bdm.settings import InputKeys
from bdm.validation import unknown_type

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Sources:
    """Cells to transmute."""

    adata: AnnData  # counts of the model's genes (CSR), with ``obs`` of the input
    cell_type: np.ndarray  # by the names in the model
    batch: np.ndarray | None  # None where the model has no batches
    label_column: str | None  # of ``obs``, if any
    batch_column: str | None


def sources_of(
    adata: AnnData, model: BranchedModel, goal: Goal, keys: InputKeys = SAME, *, cell_types: tuple[str, ...] = ()
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
