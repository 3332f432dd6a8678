"""Inputs of an interpretation: a model, the cells that it was fitted to, and cells that it generated."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.data.filters import capped
from bdm.data.matrix import take_cells
from bdm.errors import InputError
from bdm.evaluation.cells import (
    MIN_CELLS_FOR_MEANS,
    Cells,
    StoredCells,
    check_genes,
    checked,
    halves_of,
    sample_by_type,
    subset_of_names,
)
from bdm.evaluation.read import USUAL, open_cells
from bdm.interpretation.contrasts import contrasts_of
from bdm.interpretation.genes import split_counts, types_to_split
from bdm.interpretation.markers import UserGenes, read_user_genes
from bdm.latent.cells import populations_of_cells
from bdm.model.fitted_cells import read_fitted_cells
from bdm.model.match import SAME
from bdm.model.model import BranchedModel, load_model
from bdm.settings import InputKeys

logger = logging.getLogger(__name__)

MAX_CELLS = 50_000  # training, test and generated cells that are read; more would not change the genes


@dataclass(frozen=True)
class Inputs:
    """A model, real cells, and cells that it generated; genes in the model's order."""

    model: BranchedModel
    prepared: AnnData  # the cells that the model was fitted to
    training: Cells  # the same, or a random half of them where there are no test cells
    test: Cells  # the test cells, or else the other half
    split_training: Cells  # half of the counts of cells of divided types, see split_counts
    split_test: Cells
    generated: Cells
    held_out: bool  # whether the model was not fitted to ``test``
    given: UserGenes = field(default_factory=UserGenes)

    @property
    def genes(self) -> pd.Index:
        """Names of the genes."""
        return self.model.gene_names.index


def read_inputs(
    model: Path,
    prepared: Path,
    generated: Path,
    keys: InputKeys = SAME,
    *,
    markers: Path | None = None,
    gene_sets: Path | None = None,
    seed: int = 0,
) -> Inputs:
    """Read what an interpretation needs; ``prepared`` are the cells that the model was fitted on, prepared or raw."""
    loaded = load_model(model)
    genes = loaded.autoencoder.genes.index
    given = read_user_genes(markers, gene_sets, loaded.gene_names)
    real = read_fitted_cells(prepared, loaded, keys, on_disk=True)
    new, _ = open_cells(generated, USUAL, by_option=False)
    check_genes(genes, real.var_names, model)
    check_genes(new.var_names, real.var_names, generated)
    is_test = (real.obs["split"] == "test").to_numpy()
    check_same_types(real.obs[~is_test], loaded, prepared)
    check_same_types(new.obs, loaded, generated)
    if not is_test.any():
        logger.warning("%s has no test cells, so genes are compared with cells that the model was fitted to.", prepared)
    of_splits = [
        StoredCells.from_anndata(prepared, real, np.flatnonzero(rows), real.var_names) for rows in (~is_test, is_test)
    ]
    real = take_cells(real, np.sort(np.concatenate([rows_to_read(cells, seed=seed) for cells in of_splits])))
    new_cells = StoredCells.from_anndata(generated, new, np.arange(new.n_obs), new.var_names)
    new = checked(take_cells(new, rows_to_read(new_cells, seed=seed)), generated)
    return inputs_of(loaded, real, new[:, genes], given, seed=seed)


def rows_to_read(cells: StoredCells, *, seed: int) -> np.ndarray:
    """Sample up to ``MAX_CELLS`` cells, fewer of the commonest types, and return their rows."""
    if len(cells) <= MAX_CELLS:
        return cells.rows
    n_by_type = capped(cells.n_by_type, most=MAX_CELLS, fewest=MIN_CELLS_FOR_MEANS)
    return np.asarray(cells.rows[sample_by_type(cells, n_by_type, seed=seed)])


def inputs_of(
    model: BranchedModel, real: AnnData, generated: AnnData, given: UserGenes | None = None, *, seed: int
) -> Inputs:
    """Divide prepared cells into training and test cells, or else random halves, by population."""
    real = real[:, model.autoencoder.genes.index]
    is_test = (real.obs["split"] == "test").to_numpy()
    fitted = real[~is_test]
    divided = types_to_split(contrasts_of(model.hierarchy), model)

    def whole(cells: AnnData) -> Cells:
        return replace(Cells.from_anndata(cells), cell_type=populations_of_cells(cells, model.autoencoder))

    def split(cells: AnnData) -> Cells:
        return split_counts(cells, divided, model, seed=seed)

    if is_test.any():
        sets = [(take(fitted), take(real[is_test])) for take in (whole, split)]
    else:
        sets = [halves_of(take(fitted), seed=seed)[::-1] for take in (whole, split)]
    (training, test), (split_training, split_test) = sets
    return Inputs(
        model,
        fitted,
        training,
        test,
        split_training,
        split_test,
        generated_cells(generated, model),
        bool(is_test.any()),
        given or UserGenes(),
    )


def generated_cells(adata: AnnData, model: BranchedModel) -> Cells:
    """Take counts, and the recorded population of each generated cell, or else the most probable one."""
    recorded = adata.obs.get("sub_population")
    population = populations_of_cells(adata, model.autoencoder) if recorded is None else recorded.to_numpy(dtype=str)
    if others := sorted(set(population) - set(model.populations)):
        raise InputError(
            f"The generated cells are of sub-populations that the model does not have ({subset_of_names(others)}), so "
            "they are of another model; generate cells of this one."
        )
    return replace(Cells.from_anndata(adata), cell_type=population)


def check_same_types(obs: pd.DataFrame, model: BranchedModel, path: Path) -> None:
    """Reject cells that lack a cell type of the model, or have another."""
    found, known = pd.Index(np.unique(obs["cell_type"].astype(str))), pd.Index(model.cell_types)
    for problem, names in {
        "lacks": known.difference(found),
        "has, beyond the model's,": found.difference(known),
    }.items():
        if len(names):
            raise InputError(
                f"{path} {problem} cells of the types {subset_of_names(names)}; "
                "give cells of the data that the model is of."
            )
