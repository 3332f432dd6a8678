"""Interpretation of a model: input cells, genes of each branch, agreement with real cells."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError, abbreviated
from bdm._core.files import provenance
from bdm._core.parallel import using_threads
from bdm._core.progress import progress
from bdm.autoencoder.latent import populations_of_cells
from bdm.data.cell_sets import DEFAULT_KEYS, open_cells
from bdm.data.cells import (
    MIN_CELLS_FOR_MEANS,
    Cells,
    StoredCells,
    check_genes,
    checked_counts,
    modalities_if_several,
    sample_by_type,
    split_in_halves,
)
from bdm.data.filters import capped
from bdm.data.matrix import take_cells
from bdm.interpretation.ancestral_states import (
    AncestralStates,
    ancestral_states,
    compute_commitment,
    compute_markers,
    distinct_markers,
    interleave,
    populations_by_type,
)
from bdm.interpretation.branch_genes import (
    ComparedCells,
    model_differences,
    model_expression,
    split_counts,
)
from bdm.interpretation.contrasts import MEASURES, QUERIES, ContrastGenes, agreement_column, list_contrasts
from bdm.interpretation.interpretation import Interpretation
from bdm.model.match import read_fitted_cells
from bdm.model.model import BranchedModel, load_model
from bdm.settings import InputKeys, InterpretationSettings

logger = logging.getLogger(__name__)

MAX_CELLS = 50_000  # cells to read of each set (training, test, generated); more would not change the genes
AGREEMENT_COLUMNS = [  # of the empty table for trees without nodes
    *("node", "level", "children", "n_types", "n_training", "n_test", "n_significant"),
    *(agreement_column(name, query) for name in MEASURES for query in QUERIES),
]


@dataclass(frozen=True)
class Inputs:
    """Model, real cells and generated cells, with features in the order of the model."""

    model: BranchedModel
    training: Cells  # cells that the model was fitted to; a random half of them if there are no test cells
    test: Cells  # test cells, or the other half
    split_training: Cells  # cells of divided types with half of their counts, see split_counts
    split_test: Cells
    generated: Cells
    held_out: bool  # False if the model was fitted to `test`

    @property
    def genes(self) -> pd.Index:
        """Names of the genes."""
        return self.model.gene_names.index


@using_threads()
def interpret(inputs: Inputs, settings: InterpretationSettings, *, seed: int) -> Interpretation:
    """Find the genes of each branch, and compare them with test cells."""
    model, genes, hierarchy = inputs.model, inputs.genes, inputs.model.hierarchy
    states = ancestral_states(model, n_cells=settings.n_cells, seed=seed)
    contrasts = tuple(contrast_genes(inputs, states, n_cells=settings.n_cells, seed=seed))
    by_type = populations_by_type(hierarchy)
    type_of = {population: name for name, populations in by_type.items() for population in populations}
    # Inputs are labelled by population, and markers are chosen by type
    training = replace(inputs.training, cell_type=np.array([type_of[name] for name in inputs.training.cell_type]))
    markers = interleave(
        distinct_markers(part, genes[modality.features], tuple(by_type), n_genes=settings.n_markers)
        for part, modality in zip(training.by_modality, model.autoencoder.modalities, strict=True)
    )
    return Interpretation(
        settings=settings,
        names=model.gene_names,
        hierarchy=hierarchy,
        ancestral_states=states,
        contrasts=contrasts,
        agreement=agreement_by_node(contrasts, inputs, n_genes=settings.n_genes),
        markers=compute_markers(markers, inputs.training, inputs.generated, genes, hierarchy),
        held_out=inputs.held_out,
        provenance=provenance(seed=seed, settings=asdict(settings)),
    )


def contrast_genes(inputs: Inputs, states: AncestralStates, *, n_cells: int, seed: int) -> Iterator[ContrastGenes]:
    """Yield the genes of each contrast, in the model and in real cells."""
    model = inputs.model
    expression = model_expression(model, n_cells=n_cells, seed=seed)
    training = ComparedCells(inputs.training, inputs.split_training, fitted=True)
    test = ComparedCells(inputs.test, inputs.split_test, fitted=not inputs.held_out)
    sets = {"training": training, "equal": training.matched(test, seed=seed), "test": test}
    nodes = [tuple(group) for _, group in groupby(list_contrasts(model.hierarchy), key=lambda contrast: contrast.node)]
    for node in progress(nodes, total=len(nodes), doing="testing genes", unit="node"):
        tested = {name: cells.differences(node, seed=seed) for name, cells in sets.items()}
        for contrast in node:
            yield ContrastGenes(
                contrast,
                model_differences(expression, contrast),
                compute_commitment(model, states, contrast),
                **{name: by_child.get(contrast.child) for name, by_child in tested.items()},
            )


def agreement_by_node(contrasts: tuple[ContrastGenes, ...], inputs: Inputs, *, n_genes: int) -> pd.DataFrame:
    """Tabulate the agreement with test cells by node and modality, averaged over children.

    Columns named as in ``MEASURES`` are for the model. The suffix ``_training`` is for all training cells, ``_equal``
    for a sample of as many training cells as test cells. ``n_significant`` counts genes that are significantly higher
    in any child, in test cells.
    """
    rows, modalities = [], inputs.model.autoencoder.modalities
    nodes = [tuple(group) for _, group in groupby(contrasts, key=lambda genes: genes.contrast.node)]
    for children, modality in product(nodes, modalities):
        contrast, features = children[0].contrast, modality.features
        populations = list(contrast.inside + contrast.outside)
        means = {}
        for query in QUERIES:
            by_child = [child.agreement(query, features, n_genes=n_genes) for child in children]
            means[query] = pd.DataFrame(by_child, dtype=float).mean()
        tested = [child.test.of_features(features) for child in children if child.test]
        n_significant = np.nan  # if p-values are not valid, or there are too few test cells
        if tested and all(test.has_p for test in tested):
            n_significant = float(np.any([test.significant for test in tested], axis=0).sum())
        rows.append(
            {
                "node": contrast.node,
                **({"modality": modality.name} if len(modalities) > 1 else {}),
                "level": contrast.level,
                "children": " | ".join("; ".join(child.contrast.names_inside) for child in children),
                "n_types": len({*contrast.names_inside, *contrast.names_outside}),
                "n_training": int(inputs.training.n_by_type.reindex(populations, fill_value=0).sum()),
                "n_test": int(inputs.test.n_by_type.reindex(populations, fill_value=0).sum()),
                "n_significant": n_significant,
                **{
                    agreement_column(name, query): means[query].get(name, np.nan)
                    for name in MEASURES
                    for query in QUERIES
                },
            }
        )
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else AGREEMENT_COLUMNS)


# ---- inputs


def read_inputs(
    model: Path,
    prepared: Path,
    generated: Path,
    keys: InputKeys = DEFAULT_KEYS,
    *,
    seed: int = 0,
) -> Inputs:
    """Read a model and the cells to compare it with, sampled by ``seed`` if there are many.

    The cells ``prepared``, which the model was fitted to, may be raw; ``keys`` name their columns, by default as in the
    model. Genes and cell types must be the same as in the model.
    """
    loaded = load_model(model)
    genes = loaded.autoencoder.genes.index
    real = read_fitted_cells(prepared, loaded, keys, on_disk=True)
    new, _ = open_cells(generated, DEFAULT_KEYS, by_option=False)
    check_genes(genes, real.var_names, model)
    check_genes(new.var_names, real.var_names, generated)
    is_test = (real.obs["split"] == "test").to_numpy()
    check_same_types(real.obs[~is_test], loaded, prepared)
    check_same_types(new.obs, loaded, generated)
    if not is_test.any():
        logger.warning("%s has no test cells, so genes are compared with cells that the model was fitted to.", prepared)
    splits = [
        StoredCells.from_anndata(prepared, real, np.flatnonzero(mask), real.var_names) for mask in (~is_test, is_test)
    ]
    real = take_cells(real, np.sort(np.concatenate([sample_rows_to_read(cells, seed=seed) for cells in splits])))
    new_cells = StoredCells.from_anndata(generated, new, np.arange(new.n_obs), new.var_names)
    new = checked_counts(take_cells(new, sample_rows_to_read(new_cells, seed=seed)), generated)
    return prepare_inputs(loaded, real, new[:, genes], seed=seed)


def sample_rows_to_read(cells: StoredCells, *, seed: int) -> np.ndarray:
    """Return the rows of at most ``MAX_CELLS`` cells, dropping cells of the largest types."""
    if len(cells) <= MAX_CELLS:
        return cells.rows
    n_by_type = capped(cells.n_by_type, most=MAX_CELLS, fewest=MIN_CELLS_FOR_MEANS)
    return np.asarray(cells.rows[sample_by_type(cells, n_by_type, seed=seed)])


def prepare_inputs(model: BranchedModel, real: AnnData, generated: AnnData, *, seed: int) -> Inputs:
    """Divide prepared cells into training and test cells; without these, into halves."""
    real = real[:, model.autoencoder.genes.index]
    is_test = (real.obs["split"] == "test").to_numpy()
    fitted = real[~is_test]
    dividing = [contrast for contrast in list_contrasts(model.hierarchy) if contrast.divides_type]
    divided = {model.cell_type_of[name] for contrast in dividing for name in (*contrast.inside, *contrast.outside)}

    def whole(cells: AnnData) -> Cells:
        return replace(Cells.from_anndata(cells), cell_type=populations_of_cells(cells, model.autoencoder))

    def split(cells: AnnData) -> Cells:
        return split_counts(cells, divided, model, seed=seed)

    if is_test.any():
        sets = [(take(fitted), take(real[is_test])) for take in (whole, split)]
    else:  # the first half, with fewer cells of odd numbers, is for testing
        sets = [split_in_halves(take(fitted), seed=seed)[::-1] for take in (whole, split)]
    (training, test), (split_training, split_test) = sets
    new = convert_generated(generated, model)
    return Inputs(model, training, test, split_training, split_test, new, bool(is_test.any()))


def convert_generated(adata: AnnData, model: BranchedModel) -> Cells:
    """Convert generated cells, with their recorded or else most probable populations."""
    recorded = adata.obs["sub_population" if "sub_population" in adata.obs else "cell_type"].astype(str)
    population = recorded.to_numpy(dtype=object, copy=True)
    unnamed = recorded.isin(model.autoencoder.sub_populations.cell_type).to_numpy()
    if unnamed.any():
        population[unnamed] = populations_of_cells(adata[unnamed], model.autoencoder)
    if unknown := sorted(set(population) - set(model.populations)):
        raise InputError(
            f"The generated cells have sub-populations that this model lacks ({abbreviated(unknown)}), so another "
            "model generated them; generate cells with this model."
        )
    modalities = modalities_if_several(model.autoencoder.genes)
    return replace(Cells.from_anndata(adata), cell_type=population, modalities=modalities)


def check_same_types(obs: pd.DataFrame, model: BranchedModel, path: Path) -> None:
    """Check that cells have the same cell types as the model."""
    present, known = pd.Index(np.unique(obs["cell_type"].astype(str))), pd.Index(model.cell_types)
    if len(missing := known.difference(present)):
        problem = f"lacks cells of the types {abbreviated(missing)}"
    elif len(unknown := present.difference(known)):
        problem = f"has cells of types that the model lacks ({abbreviated(unknown)})"
    else:
        return
    raise InputError(f"{path} {problem}; use cells of the data that the model was fitted to.")
