from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import pandas as pd

from bdm.data.symbols import GeneNames
from bdm.evaluation.cells import Cells, sample_by_type, smaller_numbers
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.ancestral_states import AncestralStates, Embedding, ancestral_states, embedding_of
from bdm.interpretation.commitment import Commitment, commitment_of
from bdm.interpretation.contrasts import Contrast, Differences, contrasts_of
from bdm.interpretation.gene_sets import enrichment
from bdm.interpretation.genes import (
    BranchAgreement,
    mean_agreement,
    model_differences,
    model_expression,
    real_differences,
    real_expression,
)
from bdm.interpretation.inputs import Inputs
from bdm.interpretation.markers import Markers, candidate_markers, distinct_markers, markers_of
from bdm.interpretation.stability import node_stability
from bdm.latent.cells import LatentCells, encode, latent_cells
from bdm.progress import progress
from bdm.settings import InterpretationSettings
from bdm.threads import using_threads

QUERIES = ("model", "training", "equal")


@dataclass(frozen=True)
class ContrastGenes:
    """The genes of one contrast, in the model and in real cells; None where these are too few.

    Attributes
    ----------
    training
        In the training cells.
    equal
        In as many training cells of each type as there are test cells.
    test
        In the test cells, by which the others are judged.
    """

    contrast: Contrast
    model: Differences
    commitment: Commitment
    training: Differences | None
    equal: Differences | None
    test: Differences | None

    def agreement(self, judged: str, *, n_genes: int) -> BranchAgreement | None:
        """Agreement with the test cells of one of ``QUERIES``."""
        ours = getattr(self, judged)
        return BranchAgreement.of(ours, self.test, n_genes=n_genes) if ours and self.test else None


@dataclass(frozen=True, repr=False)
class Interpretation:
    """The states and genes of every branch, how far they hold in real cells, and the markers of cell types.

    Attributes
    ----------
    agreement
        By node, see :func:`agreement_by_node`.
    stability
        By node, see :func:`bdm.interpretation.stability.node_stability`.
    enrichment
        By contrast and gene set, see :func:`bdm.interpretation.gene_sets.enrichment`.
    held_out
        Whether the model has not learnt from the test cells.
    """

    settings: InterpretationSettings
    names: GeneNames
    hierarchy: Hierarchy
    ancestral_states: AncestralStates
    contrasts: tuple[ContrastGenes, ...]
    agreement: pd.DataFrame
    stability: pd.DataFrame
    enrichment: pd.DataFrame
    markers: Markers
    embedding: Embedding
    held_out: bool

    def __repr__(self) -> str:
        n_types = len(self.hierarchy.cell_types)
        return f"Interpretation of {len(self.nodes)} branch points, {n_types} cell types x {len(self.genes):,} genes"

    @property
    def genes(self) -> pd.Index:
        """Names of the genes, as the data have them."""
        return self.names.index

    @cached_property
    def labels(self) -> pd.Index:
        """What figures and tables show genes as."""
        return pd.Index(self.names.labels)

    @property
    def nodes(self) -> dict[str, tuple[ContrastGenes, ...]]:
        """Contrasts by node."""
        grouped = groupby(self.contrasts, key=lambda of: of.contrast.node)
        return {node: tuple(contrasts) for node, contrasts in grouped}


@using_threads()
def interpret(inputs: Inputs, settings: InterpretationSettings, *, seed: int) -> Interpretation:
    """Find the genes that part the children of each node in the model, and judge them by real test cells."""
    model, genes, given = inputs.model, inputs.genes, inputs.given
    hierarchy = model.hierarchy
    states = ancestral_states(model, n_cells=settings.n_cells, seed=seed)
    contrasts = tuple(contrast_genes(inputs, states, n_cells=settings.n_cells, seed=seed))
    candidates = candidate_markers(inputs.training, genes)
    markers = given.markers or distinct_markers(
        candidates, inputs.training, genes, hierarchy.cell_types, n_genes=settings.n_markers
    )
    sets, labels = {**given.markers, **given.sets} or candidates, model.gene_names.labels
    ranked = [(of.contrast, of.model) for of in without_mirrored(contrasts)]
    cells = learned_cells(inputs)
    return Interpretation(
        settings,
        model.gene_names,
        hierarchy,
        states,
        contrasts,
        agreement_by_node(contrasts, inputs, n_genes=settings.n_genes),
        node_stability(model, cells, seed=seed),
        enrichment(ranked, pd.Index(labels), {name: tuple(labels[[*of]]) for name, of in sets.items()}, seed=seed),
        markers_of(markers, inputs.training, inputs.generated, genes, hierarchy, states),
        embedding_of(model, states, cells, seed=seed),
        inputs.held_out,
    )


def contrast_genes(inputs: Inputs, states: AncestralStates, *, n_cells: int, seed: int) -> Iterator[ContrastGenes]:
    """Differences of each contrast in the model, and in real cells."""
    model = inputs.model
    expression = model_expression(model, n_cells=n_cells, seed=seed)
    sets = {
        "training": inputs.training,
        "equal": match_numbers(inputs.training, inputs.test, seed=seed),
        "test": inputs.test,
    }
    real = {name: real_expression(cells) for name, cells in sets.items()}
    nodes = [tuple(group) for _, group in groupby(contrasts_of(model.hierarchy), key=lambda contrast: contrast.node)]
    for node in progress(nodes, total=len(nodes), doing="testing genes", unit="node"):
        tested = {name: real_differences(cells, real[name], node) for name, cells in sets.items()}
        for contrast in node:
            yield ContrastGenes(
                contrast,
                model_differences(expression, contrast),
                commitment_of(model, states, contrast),
                **{name: found.get(contrast.child) for name, found in tested.items()},
            )


def without_mirrored(contrasts: tuple[ContrastGenes, ...]) -> list[ContrastGenes]:
    """Leave out, of nodes with two children, the second's contrast, which mirrors the first's."""
    nodes = [list(group) for _, group in groupby(contrasts, key=lambda of: of.contrast.node)]
    return [of for node in nodes for of in (node[:1] if len(node) == 2 else node)]


def match_numbers(training: Cells, test: Cells, *, seed: int) -> Cells:
    """Draw as many training cells of each type as there are test cells, or all where these are fewer."""
    return training[sample_by_type(training, smaller_numbers(training.n_by_type, test.n_by_type), seed=seed)]


def learned_cells(inputs: Inputs) -> LatentCells:
    """Place the cells that the model has learnt from in its latent space, as they were when it was made."""
    adata = inputs.prepared.copy()
    adata.obs["cell_type"] = pd.Categorical(adata.obs["cell_type"].astype(str), categories=inputs.model.cell_types)
    return latent_cells(encode(adata, inputs.model.autoencoder))


def agreement_by_node(contrasts: tuple[ContrastGenes, ...], inputs: Inputs, *, n_genes: int) -> pd.DataFrame:
    """Agreement of the model with the test cells by node, and that of the training cells with them.

    The training cells are what the model has learnt from, so all of them tell what it could have known; as many as
    there are test cells, what one half of real cells tells about the other half.

    Returns
    -------
    Table of nodes with their level, cell types and numbers of cells, ``n_significant`` (genes significantly higher in
    any child, in the test cells), and each measure of :class:`BranchAgreement`: of the model, and with ``_training``
    and ``_equal`` appended of all training cells and of as many as there are test cells; all means over children, NaN
    where there are too few cells.
    """
    rows = []
    for node, group in groupby(contrasts, key=lambda of: of.contrast.node):
        children = tuple(group)
        contrast = children[0].contrast
        cell_types = list(contrast.inside + contrast.outside)
        means = {}
        for judged in QUERIES:
            known = [child.agreement(judged, n_genes=n_genes) for child in children]
            means[judged] = mean_agreement(agreement for agreement in known if agreement)
        rows.append(
            {
                "node": node,
                "level": contrast.level,
                "children": " | ".join("; ".join(child.contrast.inside) for child in children),
                "n_types": len(cell_types),
                "n_training": int(inputs.training.n_by_type.reindex(cell_types, fill_value=0).sum()),
                "n_test": int(inputs.test.n_by_type.reindex(cell_types, fill_value=0).sum()),
                "n_significant": sum(int(child.test.significant.sum()) for child in children if child.test),
                **{
                    column_of(name, judged): means[judged][name]
                    for name in BranchAgreement.__dataclass_fields__
                    for judged in QUERIES
                },
            }
        )
    return pd.DataFrame(rows)


def column_of(measure: str, judged: str) -> str:
    """Name the column of a measure."""
    return measure if judged == "model" else f"{measure}_{judged}"
