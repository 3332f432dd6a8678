"""Select and prepare the cells of an extension."""

import json
import logging
import warnings
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd

from bdm._core.errors import InputError, counted
from bdm.data.cell_sets import DEFAULT_KEYS
from bdm.data.columns import (
    as_text,
    finite_columns,
    is_missing,
    is_unwritable,
    text_column,
    with_written_names,
    writable_name,
)
from bdm.data.filters import split_by_type
from bdm.data.prepare import counted_cells
from bdm.data.space import POSITIONS, SECTION, has_positions, position_key, positions_in, section_column
from bdm.model.match import batches_of, check_has_genes, check_has_types, find_donor_column, labels_of, model_counts
from bdm.model.model import BranchedModel
from bdm.settings import InputKeys, PrepareSettings

logger = logging.getLogger(__name__)

MIN_CELLS = 5  # per new type, including validation and test cells


@dataclass(frozen=True)
class NewCells:
    """Prepared cells of an extension, with the model's genes."""

    by_type: dict[str, ad.AnnData]  # cells of new types, in the order of fitting
    known: ad.AnnData  # cells of known types, to estimate the effects of new batches
    batches: tuple[str, ...] = ()  # new batches


def select_new_cells(
    adata: ad.AnnData,
    model: BranchedModel,
    *,
    cell_types: tuple[str, ...] = (),
    keys: InputKeys = DEFAULT_KEYS,
    missing_as_zero: bool = False,
    seed: int,
) -> NewCells:
    """Select and prepare the cells of new types, split as the model's training data.

    Types are in the order of ``cell_types``; by default all new types, largest first.
    """
    labels = labels_of(adata.obs, model, keys, required=True)
    check_new_types(labels, model, cell_types)
    new_types = cell_types or find_new_types(labels, model)
    for name in filter(is_unwritable, new_types):
        raise InputError(f"The name of the type {name!r} is one that files cannot hold; rename it.")
    for name in set(new_types) & set(model.hierarchy.by_name) - set(model.cell_types):
        raise InputError(f"The model's hierarchy has a branch {name!r}, which is not a cell type; rename the type.")
    selected = labels.isin([*new_types, *model.cell_types]).to_numpy()
    cells = model_counts(adata[selected], model, keys, missing_as_zero=missing_as_zero)
    cells.obs = pd.DataFrame({"cell_type": labels[selected].to_numpy()}, index=cells.obs_names)
    known_batches = model.autoencoder.batches
    batches: tuple[str, ...] = ()
    batch = batches_of(adata[selected], model, keys, new_allowed=True)
    if batch is not None:
        batches = tuple(sorted(set(batch[cells.obs["cell_type"].isin(new_types)]) - set(known_batches)))
        cells.obs["batch"] = pd.Categorical(
            batch, categories=[*known_batches, *sorted(set(batch) - set(known_batches))]
        )
    column = find_donor_column(adata.obs, model)
    if column is not None and not is_missing(donors := as_text(adata.obs[column][selected])).any():
        cells.obs["donor"] = donors
    obs = with_written_names(adata.obs[selected])
    for name in model.input_names:
        cells.obs[name] = np.nan if name not in obs else finite_columns(obs, (name,))[name].to_numpy()
    if model.space is not None:
        add_positions(cells, adata[selected], model)
    cells = cells[counted_cells(cells.X, cells.var)]
    by_type = {name: prepare_type(cells[cells.obs["cell_type"] == name], name, model, seed) for name in new_types}
    is_known = cells.obs["cell_type"].isin(model.cell_types).to_numpy()
    return NewCells(by_type, cells[is_known].copy(), batches)


def add_positions(cells: ad.AnnData, adata: ad.AnnData, model: BranchedModel) -> None:
    """Add positions and sections of ``adata``, named as in prepared cells, if it has both."""
    key, section_key = position_key(adata, model.preparation["spatial_key"]), model.preparation["section_key"]
    section = section_column(adata.obs, section_key)
    if key in adata.obsm and (section_key is None or section is not None):
        cells.obsm[POSITIONS] = positions_in(adata, key)
        if section is not None:
            cells.obs[SECTION] = text_column(adata.obs, section, argument="section_key").to_numpy()


def check_new_types(labels: pd.Series, model: BranchedModel, cell_types: tuple[str, ...]) -> None:
    """Reject types that the model already has, and types with too few cells."""
    for name in cell_types:
        if name in model.cell_types:
            raise InputError(f"The model already has the type {name!r}; name types that it lacks.")
        if (n_cells := int((labels == name).sum())) < MIN_CELLS:
            raise InputError(f"There are {n_cells} cells of type {name!r}; an extension needs {MIN_CELLS}.")


def find_new_types(labels: pd.Series, model: BranchedModel) -> tuple[str, ...]:
    """Return the new types with enough cells, largest first."""
    if labels.isna().any():
        logger.warning("Ignored %s without a cell type.", counted(labels.isna().sum(), "cell"))
    n_cells = labels[~labels.isin(model.cell_types)].value_counts()
    enough = n_cells >= MIN_CELLS
    if not enough.all():
        few = n_cells.index[~enough]
        logger.warning("Not added, as they have fewer than %d cells: %s.", MIN_CELLS, ", ".join(map(repr, few)))
    if not enough.any():
        raise InputError(
            f"No new cell type has {MIN_CELLS} cells; the model already has {', '.join(map(repr, model.cell_types))}."
        )
    return tuple(n_cells.index[enough])


def prepare_type(cells: ad.AnnData, name: str, model: BranchedModel, seed: int) -> ad.AnnData:
    """Split the cells of a type as the model's training data."""
    if cells.n_obs < MIN_CELLS:
        raise InputError(
            f"{cells.n_obs} cells of type {name!r} have counts of the model's genes; an extension needs {MIN_CELLS}."
        )
    cells = cells.copy()
    cells.obs["cell_type"] = pd.Categorical([name] * cells.n_obs)
    fractions = {name: model.preparation[name] for name in ("validation", "test")}
    cells.obs["split"] = split_by_type(cells.obs["cell_type"], **fractions, seed=seed)
    return cells


def join_known_cells(new: NewCells, model: BranchedModel, known: ad.AnnData | None = None) -> ad.AnnData:
    """Join new cells with the model's prepared cells, if given."""
    parts = list(new.by_type.values())
    if known is not None:
        check_has_genes(known, model)
        check_has_types(known.obs, model)
        parts = [known[:, model.autoencoder.genes.index], *parts]
    with warnings.catch_warnings(action="ignore"):  # about names that repeat, or end in numbers, such as barcodes
        cells = ad.concat(parts, join="inner")
        cells.obs_names_make_unique()
    cells.var = model.autoencoder.genes.copy()
    for column in ("cell_type", "batch", "split", "donor", SECTION):
        if column in cells.obs:
            cells.obs[column] = cells.obs[column].astype(str).astype("category")
    settings = model.preparation
    if settings.get("donor_key") is not None and "donor" not in cells.obs:
        logger.warning(
            "The joined cells have no donors, as obs of the new cells has no column %r. Models fitted to them learn no "
            "donor effects, and audits attack cells.",
            settings["donor_key"],
        )
        settings |= {"donor_key": None, "min_donors": PrepareSettings.min_donors}
    covariates = settings.get("covariate_key", ())
    missing = [key for key in covariates if cells.obs.get(writable_name(key), pd.Series([np.nan])).isna().any()]
    if missing:
        logger.warning("The joined cells have no covariates, as new cells lack %s.", ", ".join(missing))
        settings |= {"covariate_key": ()}
    if settings["spatial_key"] is not None and not has_positions(cells):
        logger.warning("The joined cells have no positions, as new cells lack them.")
        settings |= {"spatial_key": None, "section_key": None}
    cells.uns["bdm"] = {
        "version": model.provenance["version"],
        "seed": settings["seed"],
        "settings": json.dumps(settings),
    }
    if model.form is not None:
        cells.uns["bdm"]["form"] = model.form
    if known is not None:
        kept = ("input", "warnings", "data", "data_sha256", "labels", "labels_sha256")
        cells.uns["bdm"] |= {key: known.uns["bdm"][key] for key in kept if key in known.uns["bdm"]}
    return cells
