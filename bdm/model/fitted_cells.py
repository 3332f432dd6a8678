"""Cells that a model was fitted on, prepared again from any AnnData, and real cells to evaluate it with."""

import logging
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.data.counts import count_slots
from bdm.data.matrix import to_row_storage
from bdm.data.prepare import is_prepared, prepare, recorded_covariates
from bdm.data.read import cells_in, read_cells
from bdm.errors import InputError, at
from bdm.evaluation.cells import Cells, Populations, RealCells, check_number
from bdm.evaluation.read import check_held_out, read_real_cells
from bdm.latent.cells import populations_of_cells
from bdm.model.match import SAME, batch_column, counts_slot, known_cells, label_column, labels_of, model_counts
from bdm.model.model import BranchedModel, composition_of
from bdm.settings import InputKeys, PrepareSettings

logger = logging.getLogger(__name__)


def fitted_cells(adata: AnnData, model: BranchedModel, keys: InputKeys = SAME) -> AnnData:
    """Prepare cells as the data of a model: its genes in its order, its cell types, and the same split."""
    if is_prepared(adata):
        check_has_genes(adata, model)
        cells = adata[:, model.autoencoder.genes.index].copy()
    else:
        cells = _prepared_again(adata, model, keys)
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
    """Reject prepared cells that lack types of a model, and warn of other numbers than it was fitted to."""
    check_has_types(obs, model)
    fitted = obs[obs["split"] != "test"].drop(columns="sub_population", errors="ignore")  # not the model's, if any
    found, expected = composition_of(fitted), model.composition_of_types
    aligned = found.reindex(index=expected.index, columns=expected.columns, fill_value=0)
    if (aligned != expected).any(axis=None) or found.to_numpy().sum() != expected.to_numpy().sum():
        logger.warning(
            "The model was fitted on other cells: on %d, but these are %d, or have other numbers of each type.",
            expected.to_numpy().sum(),
            found.to_numpy().sum(),
        )


def _prepared_again(adata: AnnData, model: BranchedModel, keys: InputKeys) -> AnnData:
    genes, counts = model.autoencoder.genes.index, counts_slot(adata, model, keys)
    labels = labels_of(adata.obs, model, keys)
    others = tuple(sorted(set(labels.dropna()) - set(model.cell_types)))
    label_key = label_column(adata.obs, model, keys)
    batch_key = batch_column(adata.obs, model, keys)
    slots = count_slots(adata)
    candidates = [slots[counts]] if counts in slots else list(slots.values())
    if not any(genes.isin(slot.var_names).all() for slot in candidates):  # but maybe by identifiers
        adata, counts = model_counts(adata, model, keys), "X"
    known = {field.name for field in fields(PrepareSettings)}
    recorded = {name: value for name, value in model.preparation.items() if name in known}
    column, n_splits = recorded.get("gene_symbols"), sum(recorded.get(name, 0) > 0 for name in ("validation", "test"))
    settings = {  # a list of genes may have been in a file that no longer exists
        **recorded,
        "label_key": label_key,
        "batch_key": batch_key,
        "donor_key": None,  # donors are needed for the fit alone
        "counts": counts,
        "leave_out": others,
        "genes": tuple(genes[model.autoencoder.modalities[0].features]),
        "n_peaks": len(genes),
        "keep_genes": None,
        "gene_symbols": column if column in adata.var else None,
        "min_cells_per_gene": 0,
        "min_cells_per_type": 1 + n_splits,
        "min_donors": 1,
    }
    return prepare(adata, PrepareSettings(**settings))[:, genes].copy()


def read_fitted_cells(path: Path, model: BranchedModel, keys: InputKeys = SAME, *, on_disk: bool = False) -> AnnData:
    """Read the cells that a model was fitted on, as :func:`fitted_cells` prepares them."""
    adata = read_cells(path, on_disk=on_disk)
    if on_disk and is_prepared(adata):
        adata.X = to_row_storage(adata.X)
        return adata
    with at(path):
        return fitted_cells(adata, model, keys)


def read_real_cells_for(
    model: BranchedModel, path: Path, test_cells: Path | None = None, keys: InputKeys = SAME
) -> RealCells:
    """Read :func:`real_cells_for` from a file; counts stay there if it is prepared and no test cells are given."""
    adata = read_cells(path, on_disk=True)
    if test_cells is not None or not is_prepared(adata):
        return real_cells_for(model, read_fitted_cells(path, model, keys), test_cells, keys)
    with at(path):
        check_has_genes(adata, model)
        check_same_cells(adata.obs, model)
    return read_real_cells(path, on_disk=True, names=model.gene_names)


def real_cells_for(
    model: BranchedModel, prepared: AnnData, adata_test: AnnData | Path | None = None, keys: InputKeys = SAME
) -> RealCells:
    """Select the training cells of a model, and cells to evaluate it with: the test cells, or others that are given."""
    other = None if adata_test is None else cells_in(adata_test, on_disk=False)
    genes = model.autoencoder.genes.index
    is_test = (prepared.obs["split"] == "test").to_numpy()
    if other is None and not is_test.any():
        raise InputError(
            "No test cells were kept; give `adata_test=`, cells that the model was not fitted on, or fit again with "
            "`test=0.2`."
        )
    cells = Cells.from_anndata(prepared[:, genes], recorded_covariates(prepared))
    training = cells[np.flatnonzero(~is_test)]
    test = cells[np.flatnonzero(is_test)] if other is None else known_cells(other, model, keys)
    if other is not None:
        check_held_out(test, training, other.obs_names, prepared.obs_names[~is_test])
    check_number(training.n_by_type // 2, test.n_by_type, "Half of the training cells")
    return RealCells(training, test, model.gene_names)


def populations_by(model: BranchedModel) -> Populations | None:
    """Assign real and generated cells to populations alike, by counts and type; None without any."""
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
