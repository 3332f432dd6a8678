import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.data.prepared import read_prepared
from bdm.errors import InputError
from bdm.evaluation.cells import Cells
from bdm.evaluation.inputs import check_genes, read_counts, some
from bdm.interpretation.gene_sets import GivenGenes, read_given
from bdm.interpretation.real_genes import halves_of
from bdm.model.model import BranchedModel, load_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """A model, real cells, and cells that it generated; genes in the model's order.

    Attributes
    ----------
    prepared
        The real cells that the model has learnt from.
    training
        The same, or a random half of them where there are no test cells.
    test
        Real cells to judge by: the test cells, or else the other half.
    held_out
        Whether the model has not learnt from ``test``.
    given
        Markers and gene sets that a user names.
    """

    model: BranchedModel
    prepared: AnnData
    training: Cells
    test: Cells
    generated: Cells
    held_out: bool
    given: GivenGenes = field(default_factory=GivenGenes)

    @property
    def genes(self) -> pd.Index:
        """Names of the genes."""
        return self.model.autoencoder.genes.index


def read_inputs(
    model: Path,
    prepared: Path,
    generated: Path,
    *,
    markers: Path | None = None,
    gene_sets: Path | None = None,
    seed: int = 0,
) -> Inputs:
    """Read what an interpretation needs.

    Raises
    ------
    InputError
        If a file cannot be read, or genes or cell types are not the same in all.
    """
    loaded = load_model(model)
    genes = loaded.autoencoder.genes.index
    given = read_given(markers, gene_sets, genes)
    real, new = read_prepared(prepared), read_counts(generated, columns=("cell_type",))
    check_genes(genes, real.var_names, model)
    check_genes(new.var_names, real.var_names, generated)
    is_test = (real.obs["split"] == "test").to_numpy()
    check_types(real[~is_test], loaded, prepared)
    check_types(new, loaded, generated)
    if not is_test.any():
        logger.warning("%s has no test cells, so genes are judged by cells that the model has learnt from.", prepared)
    return inputs_of(loaded, real, new[:, genes], given, seed=seed)


def inputs_of(
    model: BranchedModel, real: AnnData, generated: AnnData, given: GivenGenes | None = None, *, seed: int
) -> Inputs:
    """Part prepared cells into those learnt from and those to judge by: the test cells, or else a random half."""
    real = real[:, model.autoencoder.genes.index]
    is_test = (real.obs["split"] == "test").to_numpy()
    learnt = real[~is_test]
    training, test = Cells.of(learnt), Cells.of(real[is_test])
    if not is_test.any():
        test, training = halves_of(training, seed=seed)
    return Inputs(model, learnt, training, test, Cells.of(generated), bool(is_test.any()), given or GivenGenes())


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
