"""Match cells to the genes, types, batches and covariates of a model."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError, counted, error_prefix
from bdm._core.validation import label_candidates, labels_rejection
from bdm.autoencoder.latent import populations_of_cells
from bdm.data.cell_sets import DEFAULT_KEYS, check_held_out, read_real_cells
from bdm.data.cells import Cells, Populations, RealCells, check_number, covariates_in, modalities_if_several
from bdm.data.columns import (
    complete_column,
    distinct_text,
    finite_columns,
    is_text,
    one_label,
    with_written_names,
    writable_name,
)
from bdm.data.counts import count_slots, raw_counts, slot_or_auto
from bdm.data.filters import is_fitted
from bdm.data.header import MISSING_LABELS
from bdm.data.matrix import to_row_storage
from bdm.data.modalities import encoded_features, modalities_of, parts_of_rna
from bdm.data.prepare import is_prepared, prepare, recorded_covariates
from bdm.data.read import cells_in, read_cells
from bdm.data.space import position_keys, position_table
from bdm.model.model import BranchedModel, composition_of
from bdm.settings import InputKeys, PrepareSettings

logger = logging.getLogger(__name__)

MAX_MISSING = 0.1  # fraction of the genes that are not highly variable; they count as not expressed


def keys_found_in(adata: AnnData, keys: InputKeys) -> InputKeys:
    """Set keys to None that an AnnData lacks, as generated cells may."""
    has = {"label_key": adata.obs, "batch_key": adata.obs, "counts": count_slots(adata)}
    return replace(keys, **{name: None for name, names in has.items() if getattr(keys, name) not in names})


def model_counts(
    adata: AnnData, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS, *, missing_as_zero: bool = False
) -> AnnData:
    """Return raw counts of the model's genes from the :func:`counts_slot`."""
    source = counts_slot(adata, model, keys)
    return counts_of_genes(adata, model.autoencoder.genes, source=source, missing_as_zero=missing_as_zero)


def counts_slot(adata: AnnData, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS) -> str:
    """Return the slot of raw counts: the key's, the model's, or ``auto``."""
    return keys.counts or slot_or_auto(adata, model.preparation["counts"])


def cells_for(adata: Any, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS, *, on_disk: bool = True) -> AnnData:
    """Read cells as :func:`bdm.data.read.cells_in`, with the model's slot of counts by default."""
    return cells_in(adata, on_disk=on_disk, counts=keys.counts or model.preparation["counts"])


def counts_of_genes(
    adata: AnnData, genes: pd.DataFrame, *, source: str = "auto", missing_as_zero: bool = False
) -> AnnData:
    """Select raw counts of genes by :func:`best_match`, in the order of ``genes``."""
    counts = raw_counts(adata, source=source)
    counts.var_names = with_prefixes_of(counts.var, genes)
    names, model_names = best_match(counts.var, genes)
    if not names.is_unique:
        raise InputError(
            "Gene names of the cells repeat; make them unique first, for example by adata.var_names_make_unique()."
        )
    column = names.get_indexer(model_names)
    missing = genes.index[column < 0]
    for modality in modalities_of(genes)[1:]:
        if (column[modality.features] < 0).all():
            example = genes.index[modality.features][0]
            raise InputError(f"The cells lack the modality {modality.name}, such as {example}, which the model has.")
    encoded = genes.index[encoded_features(genes)]
    needed = missing.intersection(encoded)
    if len(missing) - len(needed) > MAX_MISSING * (len(genes) - len(encoded)):
        needed = missing
    if len(needed) and not missing_as_zero:
        others = (
            "" if len(encoded) == len(genes) else f" that are highly variable, and {1 - MAX_MISSING:.0%} of the others"
        )
        raise InputError(
            f"The cells lack {len(needed)} of the model's {len(genes)} genes, for example {needed[0]}; the model "
            f"needs all{others}."
        )
    if len(missing) == len(genes):
        raise InputError(f"The cells have none of the model's {len(genes)} genes, such as {genes.index[0]}.")
    if len(missing):
        logger.warning("Treated as not expressed: %d genes that the cells lack, such as %s.", len(missing), missing[0])
    # index -1 of missing genes selects a column of zeros at the end
    padded = sparse.hstack([counts.X, sparse.csr_matrix((counts.n_obs, 1), dtype=counts.X.dtype)], format="csr")
    return AnnData(sparse.csr_matrix(padded[:, column]), obs=counts.obs, var=genes)


def with_prefixes_of(var: pd.DataFrame, genes: pd.DataFrame) -> list[str]:
    """Rename features of ``var`` with the modality prefixes of ``genes``."""
    prefix = {modality.kind: modality.prefix for modality in modalities_of(genes)}
    return [
        prefix.get(modality.kind, modality.prefix) + name.removeprefix(modality.prefix)
        for modality in modalities_of(var)
        for name in var.index[modality.features]
    ]


def known_cells(adata: AnnData, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS) -> Cells:
    """Select cells of the model's types and genes; warn of the rest."""
    labels = labels_of(adata.obs, model, keys)
    is_known = mask_known_types(labels, model)
    cells = adata[is_known]
    counts = sparse.csr_matrix(model_counts(cells, model, keys).X, dtype=np.float32)
    column = find_batch_column(cells.obs, model, keys)
    batch = None if column is None else named_batches(cells.obs, column)
    donor_column = find_donor_column(cells.obs, model)
    donor = None if donor_column is None else cells.obs[donor_column].to_numpy(dtype=str)
    cell_type = labels[is_known].to_numpy(dtype=str)
    covariates = covariates_in(with_written_names(cells.obs), model.input_names)
    modalities = modalities_if_several(model.autoencoder.genes)
    positions = position_table(cells, position_keys(model.preparation))
    return Cells(counts, cell_type, batch, None, covariates, modalities, positions, donor)


def encoder_input(adata: AnnData, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS) -> AnnData:
    """Convert cells to input of the autoencoder, keeping all in order."""
    labels, cells = labels_of(adata.obs, model, keys), model_counts(adata, model, keys)
    check_known(labels, model)
    check_not_empty(cells)
    obs = pd.DataFrame({"cell_type": labels.astype("category")}, index=labels.index)
    if model.autoencoder.batches:
        obs["batch"] = pd.Categorical(batches_of(adata, model, keys), categories=model.autoencoder.batches)
    return AnnData(cells.X, obs=obs, var=cells.var)


def mask_known_types(labels: pd.Series, model: BranchedModel, *, done: str = "Left out") -> np.ndarray:
    """Mask cells of known types; ``done`` starts the warning of the rest."""
    is_known = np.asarray(labels.isin(model.cell_types))
    if not is_known.any():
        raise InputError(f"There are no cells of the model's types, but of {first_names(labels)}.")
    if not is_known.all():
        number, names = counted((~is_known).sum(), "cell"), first_names(labels[~is_known])
        logger.warning("%s %s of types that the model lacks: %s.", done, number, names)
    return is_known


def first_names(labels: pd.Series) -> str:
    """List the first five cell types."""
    return ", ".join("no type" if pd.isna(name) else repr(name) for name in labels.unique()[:5]) or "none"


def check_known(labels: pd.Series, model: BranchedModel, *, remedy: str = "leave them out") -> None:
    """Reject cells of types that the model lacks."""
    unknown = ~labels.isin(model.cell_types)
    if unknown.any():
        raise InputError(
            f"{unknown.sum()} of {len(labels)} cells have no cell type of the model, for example "
            f"{labels.index[unknown.argmax()]} ({labels[unknown].iloc[0]!r}); {remedy}."
        )


def check_not_empty(counts: AnnData) -> None:
    """Reject cells without counts of the model's genes."""
    empty = np.diff(counts.X.indptr) == 0
    if empty.any():
        raise InputError(
            f"{empty.sum()} of {len(empty)} cells have no counts of the model's genes, for example "
            f"{counts.obs_names[empty.argmax()]}; leave them out."
        )


def best_match(var: pd.DataFrame, genes: pd.DataFrame) -> tuple[pd.Index, pd.Index]:
    """Return gene names of cells and model from the best-matching columns."""
    best, n_best = (var.index, genes.index), int(genes.index.isin(var.index).sum())
    for name, model_names in names_of(genes).items():
        for column, names in names_of(var).items():
            n_matched = int(model_names.isin(names).sum())
            if n_matched > n_best and model_names.is_unique:
                logger.info("Genes are matched by %s of the cells and %s of the model.", column, name)
                best, n_best = (names, model_names), n_matched
    return best


def names_of(var: pd.DataFrame) -> dict[str, pd.Index]:
    """Return the index of ``var`` and its columns of text."""
    columns = {str(name): pd.Index(column.astype(str)) for name, column in var.items() if is_text(column)}
    return {"names": var.index, **columns}


def label_column(
    obs: pd.DataFrame, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS, *, required: bool = False
) -> str | None:
    """Return the column of cell types; None if no labels are needed."""
    if not (required or keys.label_key or model.label_key or model.extensions):
        return None
    candidates = (keys.label_key,) if keys.label_key else label_candidates(model.label_key)
    if sentence := labels_rejection(candidates, obs):
        raise InputError(sentence)
    return next(key for key in candidates if key in obs)


def labels_of(
    obs: pd.DataFrame, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS, *, required: bool = False
) -> pd.Series:
    """Return the cell type of each cell from :func:`label_column`; None where missing."""
    column = label_column(obs, model, keys, required=required)
    if column is None:
        return one_label(obs.index).astype(object)
    return distinct_text(obs, column).astype(object).replace(list(MISSING_LABELS), None)


def batch_candidates(model: BranchedModel) -> tuple[str, ...]:
    """Return candidate columns of batches: the model's (also as written), and ``batch``."""
    key = model.preparation["batch_key"]
    return ("batch",) if key is None else (key, writable_name(key), "batch")


def find_batch_column(obs: pd.DataFrame, model: BranchedModel, keys: InputKeys) -> str | None:
    """Return the first column that may have the batches; None if there is none."""
    return next((name for name in (keys.batch_key, *batch_candidates(model)) if name in obs), None)


def find_donor_column(obs: pd.DataFrame, model: BranchedModel) -> str | None:
    """Return the column of donors: the model's (also as written), or ``donor``; None if there are none."""
    key = model.preparation.get("donor_key")
    return None if key is None else next((name for name in (key, writable_name(key), "donor") if name in obs), None)


def batch_column(obs: pd.DataFrame, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS) -> str | None:
    """Return the column of batches; None for a model without batches."""
    if not model.autoencoder.batches:
        return None
    candidates = (keys.batch_key,) if keys.batch_key else batch_candidates(model)
    for key in candidates:
        if key in obs:
            return key
    raise InputError(
        f"obs has no column {candidates[0]!r} with the batches, which the model needs; name it by `batch_key=`."
    )


def batches_of(
    adata: AnnData, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS, *, new_allowed: bool = False
) -> np.ndarray | None:
    """Return the batch of each cell; None for a model without batches."""
    known, column = model.autoencoder.batches, batch_column(adata.obs, model, keys)
    if column is None:
        return None
    batch = named_batches(adata.obs, column)
    unknown = sorted(set(batch) - set(known))
    if unknown and not new_allowed:
        raise InputError(f"The model has no batch {unknown[0]!r}; its batches are {', '.join(known)}.")
    return batch


def inputs_of(adata: AnnData, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS) -> pd.DataFrame:
    """Return the inputs of the model's effects, as far as it has them: the batch and covariates of each cell."""
    batch, names = batches_of(adata, model, keys), model.input_names
    inputs = pd.DataFrame({} if batch is None else {"batch": batch}, index=range(adata.n_obs))
    obs = with_written_names(adata.obs) if names else adata.obs
    if missing := [name for name in names if name not in obs]:
        raise InputError(f"obs has no column {missing[0]!r}, which is a covariate of the model; add it to the cells.")
    return inputs.assign(**{name: values.to_numpy() for name, values in finite_columns(obs, names).items()})


def named_batches(obs: pd.DataFrame, column: str) -> np.ndarray:
    """Read the batch of each cell from a column, as preparation does."""
    return np.asarray(complete_column(obs, column).to_numpy(dtype=object))


# ---- cells of the fit, and real cells for evaluation


def fitted_cells(adata: AnnData, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS) -> AnnData:
    """Prepare the cells of a model's fit, with its genes and split."""
    if is_prepared(adata):
        check_has_genes(adata, model)
        cells = adata[:, model.autoencoder.genes.index].copy()
    else:
        cells = prepare_again(adata, model, keys)
    check_same_cells(cells.obs, model)
    return cells


def check_has_genes(prepared: AnnData, model: BranchedModel) -> None:
    """Reject prepared cells that lack genes of a model."""
    lacking = model.autoencoder.genes.index.difference(prepared.var_names)
    if len(lacking):
        raise InputError(f"The prepared cells lack {len(lacking)} of the model's genes, such as {lacking[0]}.")


def check_has_types(obs: pd.DataFrame, model: BranchedModel) -> None:
    """Reject prepared cells that lack types of a model."""
    lacking = sorted(set(model.cell_types) - set(obs["cell_type"].astype(str)))
    if lacking:
        raise InputError(
            f"The cells lack the model's types {', '.join(map(repr, lacking))}; give the cells that it was fitted on, "
            "and the cells of its extensions."
        )


def check_same_cells(obs: pd.DataFrame, model: BranchedModel) -> None:
    """Reject prepared cells that lack types; warn if numbers of cells differ."""
    check_has_types(obs, model)
    fitted = obs[is_fitted(obs)].drop(columns="sub_population", errors="ignore")  # may not be the model's
    composition, expected = composition_of(fitted), model.composition_of_types
    aligned = composition.reindex(index=expected.index, columns=expected.columns, fill_value=0)
    if (aligned != expected).any(axis=None) or composition.to_numpy().sum() != expected.to_numpy().sum():
        logger.warning(
            "The model was fitted on other cells: on %d, but these are %d, or have other numbers of each type.",
            expected.to_numpy().sum(),
            composition.to_numpy().sum(),
        )


def prepare_again(adata: AnnData, model: BranchedModel, keys: InputKeys) -> AnnData:
    """Prepare cells as the model's fit did, with its genes."""
    genes, counts = model.autoencoder.genes.index, counts_slot(adata, model, keys)
    labels = labels_of(adata.obs, model, keys)
    unknown_types = tuple(sorted(set(labels.dropna()) - set(model.cell_types)))
    label_key = label_column(adata.obs, model, keys)
    batch_key = batch_column(adata.obs, model, keys)
    slots = count_slots(adata)
    candidates = [slots[counts]] if counts in slots else list(slots.values())
    if not any(genes.isin(slot.var_names).all() for slot in candidates):  # match by other columns of var
        obsm, counts = dict(adata.obsm), "X"
        adata = model_counts(adata, model, keys)
        adata.obsm.update(obsm)
    variable, *others = (genes[part.features] for part in parts_of_rna(model.autoencoder.genes))
    recorded = model.preparation
    column, n_splits = recorded.get("gene_symbols"), sum(recorded.get(name, 0) > 0 for name in ("validation", "test"))
    settings = {  # genes by name, because a file that listed them may no longer exist
        **recorded,
        "label_key": label_key,
        "batch_key": batch_key,
        "donor_key": None,  # only the fit needs donors
        "counts": counts,
        "leave_out": unknown_types,
        "genes": tuple(variable),
        "n_peaks": len(genes),
        "keep_genes": tuple(others[0]) if others else "none",
        "gene_symbols": column if column in adata.var else None,
        "min_cells_per_gene": 0,
        "min_cells_per_type": 1 + n_splits,
        "min_donors": 1,
    }
    if recorded["spatial_key"] not in adata.obsm or recorded["section_key"] not in (None, *adata.obs):
        settings |= {"spatial_key": None, "section_key": None}
    return prepare(adata, PrepareSettings(**settings))[:, genes].copy()


def read_fitted_cells(
    path: Path, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS, *, on_disk: bool = False
) -> AnnData:
    """Read the cells that a model was fitted on, as from :func:`fitted_cells`.

    With ``on_disk``, prepared cells are returned unchecked, with all their genes.
    """
    adata = cells_for(path, model, keys, on_disk=on_disk)
    if on_disk and is_prepared(adata):
        adata.X = to_row_storage(adata.X)
        return adata
    with error_prefix(path):
        return fitted_cells(adata, model, keys)


def read_real_cells_for(
    model: BranchedModel, path: Path, test_cells: Path | None = None, keys: InputKeys = DEFAULT_KEYS
) -> RealCells:
    """Read :func:`real_cells_for`, on disk for prepared cells without ``test_cells``."""
    adata = read_cells(path, on_disk=True)
    if test_cells is not None or not is_prepared(adata):
        return real_cells_for(model, read_fitted_cells(path, model, keys), test_cells, keys)
    with error_prefix(path):
        check_has_genes(adata, model)
        check_same_cells(adata.obs, model)
    return read_real_cells(path, on_disk=True, names=model.gene_names)


def real_cells_for(
    model: BranchedModel, prepared: AnnData, adata_test: AnnData | Path | None = None, keys: InputKeys = DEFAULT_KEYS
) -> RealCells:
    """Select training cells, and test cells from ``adata_test`` or the split."""
    held_out = None if adata_test is None else cells_for(adata_test, model, keys, on_disk=False)
    genes = model.autoencoder.genes.index
    is_test = (prepared.obs["split"] == "test").to_numpy()
    if held_out is None and not is_test.any():
        raise InputError(
            "No test cells were kept; give `adata_test=`, cells that the model was not fitted on, or fit again with "
            "`test=0.2`."
        )
    cells = Cells.from_anndata(prepared[:, genes], recorded_covariates(prepared))
    training = cells[np.flatnonzero(~is_test)]
    test = cells[np.flatnonzero(is_test)] if held_out is None else known_cells(held_out, model, keys)
    if held_out is not None:
        check_held_out(test, training)
    check_number(training.n_by_type // 2, test.n_by_type, "Half of the training cells")
    return RealCells(training, test, model.gene_names, position_keys(model.preparation))


def sets_for(
    model: BranchedModel, sets: Mapping[str, Any], real: RealCells, keys: InputKeys = DEFAULT_KEYS
) -> dict[str, Cells]:
    """Select the known cells of each set, and reject sets with too few."""
    known = {}
    for name, cells in sets.items():
        adata = cells_for(cells, model, keys)
        known[name] = known_cells(adata, model, keys_found_in(adata, keys))
        check_number(known[name].n_by_type, real.test.n_by_type, name)
    return known


def population_assigner(model: BranchedModel) -> Populations | None:
    """Return a function that assigns cells to populations; None without sub-populations."""
    autoencoder = model.autoencoder
    if not len(autoencoder.sub_populations):
        return None

    def populations(cells: Cells) -> np.ndarray | None:
        obs = pd.DataFrame({"cell_type": cells.cell_type}, index=np.arange(len(cells)).astype(str))
        if autoencoder.batches:
            if cells.batch is None or not set(cells.batch) <= set(autoencoder.batches):
                return None
            obs["batch"] = cells.batch
        return populations_of_cells(AnnData(cells.counts, obs=obs), autoencoder)

    return populations
