from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.data.prepared import read_prepared
from bdm.errors import InputError
from bdm.evaluation.cells import Cells
from bdm.evaluation.inputs import check_genes, read_counts, some
from bdm.model.model import BranchedModel, load_model


@dataclass(frozen=True)
class Inputs:
    """A model, the real cells that it may have learnt from, and cells that it generated; genes in the model's order."""

    model: BranchedModel
    training: Cells
    generated: Cells
    genes: pd.Index


def read_inputs(model: Path, prepared: Path, generated: Path) -> Inputs:
    """Read what an interpretation needs.

    Raises
    ------
    InputError
        If a file cannot be read, or genes or cell types are not the same in all.
    """
    loaded, real, new = load_model(model), read_prepared(prepared), read_counts(generated, columns=("cell_type",))
    genes = loaded.autoencoder.genes.index
    check_genes(genes, real.var_names, model)
    check_genes(new.var_names, real.var_names, generated)
    training = real[(real.obs["split"] != "test").to_numpy()]
    check_types(training, loaded, prepared)
    check_types(new, loaded, generated)
    return Inputs(loaded, Cells.of(training[:, genes]), Cells.of(new[:, genes]), genes)


def check_types(adata: AnnData, model: BranchedModel, path: Path) -> None:
    """Refuse cells that lack a cell type of the model, or have another."""
    found, known = pd.Index(np.unique(adata.obs["cell_type"].astype(str))), pd.Index(model.cell_types)
    for problem, names in {
        "lacks": known.difference(found),
        "has, beyond the model's,": found.difference(known),
    }.items():
        if len(names):
            raise InputError(
                f"{path} {problem} cells of the types {some(names)}; give cells of the data that the model is of."
            )
