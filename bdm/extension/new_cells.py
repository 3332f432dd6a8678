import logging

import pandas as pd
from anndata import AnnData

from bdm.data.split import split_by_type
from bdm.errors import InputError
from bdm.model.match import batches_of, counts_of, labels_of
from bdm.model.model import BranchedModel

logger = logging.getLogger(__name__)

FEWEST = 5  # cells of a type, of which one is kept to choose the best training step


def new_cells(
    adata: AnnData,
    model: BranchedModel,
    *,
    cell_types: tuple[str, ...] = (),
    label_key: str | None = None,
    counts: str = "auto",
    missing_as_zero: bool = False,
    validation: float = 0.1,
    seed: int,
) -> dict[str, AnnData]:
    """Prepare the cells of new types for a model.

    Parameters
    ----------
    cell_types
        New types, in the order that they are to be added in; if none are named, all that the model lacks and that have
        ``FEWEST`` cells, the largest first.
    validation
        Fraction of each type's cells to choose the best training step by.

    Returns
    -------
    Prepared cells of each new type, with the model's genes in its order.

    Raises
    ------
    InputError
        If there is no new type, one is known already or has too few cells, or genes are missing.
    """
    labels = labels_of(adata, model, label_key)
    n_cells = labels[~labels.isin(model.cell_types)].value_counts()
    for name in cell_types:
        if name in model.cell_types:
            raise InputError(f"The model knows the type {name!r} already.")
        if n_cells.get(name, 0) < FEWEST:
            raise InputError(f"There are {n_cells.get(name, 0)} cells of type {name!r}; {FEWEST} are needed.")
    few = n_cells.index[n_cells < FEWEST]
    if len(few) and not cell_types:
        logger.warning("Not added, having fewer than %d cells: %s.", FEWEST, ", ".join(few))
    chosen = cell_types or tuple(n_cells.index[n_cells >= FEWEST])
    if not chosen:
        raise InputError(f"There are no new cell types; the model knows all of {', '.join(labels.unique()[:5])}.")
    taken = labels.isin(chosen).to_numpy()
    cells = counts_of(adata[taken], model.autoencoder.genes, source=counts, missing_as_zero=missing_as_zero)
    cells.obs = pd.DataFrame({"cell_type": labels[taken]}, index=cells.obs_names)
    if model.autoencoder.batches:
        cells.obs["batch"] = pd.Categorical(batches_of(adata[taken], model), categories=model.autoencoder.batches)
    cells = cells[cells.X.getnnz(axis=1) > 0].copy()
    return {name: prepared(cells[cells.obs["cell_type"] == name], name, validation, seed) for name in chosen}


def prepared(cells: AnnData, name: str, validation: float, seed: int) -> AnnData:
    """Split the cells of one type."""
    if cells.n_obs < FEWEST:
        raise InputError(f"{cells.n_obs} cells of type {name!r} have counts of the model's genes; {FEWEST} are needed.")
    cells = cells.copy()
    cells.obs["cell_type"] = pd.Categorical([name] * cells.n_obs)
    cells.obs["split"] = split_by_type(cells.obs["cell_type"], validation=validation, test=0.0, seed=seed)
    return cells
