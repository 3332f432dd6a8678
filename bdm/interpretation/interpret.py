"""Interpretation of a model: the genes of every branch in the model, compared with real cells."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby

import pandas as pd

from bdm._core.files import provenance
from bdm._core.parallel import using_threads
from bdm._core.progress import progress
from bdm.interpretation.ancestral_states import AncestralStates, ancestral_states, commitment_of, embedding_of
from bdm.interpretation.contrasts import (
    QUERIES,
    BranchAgreement,
    ContrastGenes,
    Differences,
    column_of,
    contrasts_of,
    mean_agreement,
    without_mirrored,
)
from bdm.interpretation.genes import ComparedCells, model_differences, model_expression
from bdm.interpretation.inputs import Inputs
from bdm.interpretation.markers import (
    by_members,
    candidate_markers,
    distinct_markers,
    enrichment,
    markers_of,
    members_of_types,
)
from bdm.interpretation.results import Interpretation
from bdm.interpretation.stability import node_stability
from bdm.latent.cells import LatentCells, encode, latent_cells
from bdm.settings import InterpretationSettings

AGREEMENT_COLUMNS = [  # of a tree without nodes, too
    *("node", "level", "children", "n_types", "n_training", "n_test", "n_significant"),
    *(column_of(name, query) for name in BranchAgreement.__dataclass_fields__ for query in QUERIES),
]


@using_threads()
def interpret(inputs: Inputs, settings: InterpretationSettings, *, seed: int) -> Interpretation:
    """Find the marker genes of each branch in the model, and compare them with real test cells."""
    model, genes, given = inputs.model, inputs.genes, inputs.given
    hierarchy = model.hierarchy
    states = ancestral_states(model, n_cells=settings.n_cells, seed=seed)
    contrasts = tuple(contrast_genes(inputs, states, n_cells=settings.n_cells, seed=seed))
    by_type = members_of_types(hierarchy)
    of_types = by_members(inputs.training, by_type)
    candidates = candidate_markers(of_types, genes)
    markers = given.markers or distinct_markers(candidates, of_types, genes, tuple(by_type), n_genes=settings.n_markers)
    labels = model.gene_names.labels
    members_of_sets = {**given.markers, **given.sets} or candidates
    sets = {name: tuple(labels[[*members]]) for name, members in members_of_sets.items()}
    ranked = [(of.contrast, of.model) for of in without_mirrored(contrasts)]
    cells = encoded_cells(inputs)
    return Interpretation(
        settings=settings,
        names=model.gene_names,
        hierarchy=hierarchy,
        ancestral_states=states,
        contrasts=contrasts,
        agreement=agreement_by_node(contrasts, inputs, n_genes=settings.n_genes),
        stability=node_stability(model, cells, seed=seed),
        enrichment=enrichment(ranked, pd.Index(labels), sets, seed=seed),
        markers=markers_of(markers, inputs.training, inputs.generated, genes, hierarchy, states),
        embedding=embedding_of(model, states, cells, seed=seed),
        held_out=inputs.held_out,
        provenance=provenance(seed=seed, settings=asdict(settings)),
    )


def contrast_genes(inputs: Inputs, states: AncestralStates, *, n_cells: int, seed: int) -> Iterator[ContrastGenes]:
    """Differences of each contrast in the model, and in real cells."""
    model = inputs.model
    expression = model_expression(model, n_cells=n_cells, seed=seed)
    training = ComparedCells(inputs.training, inputs.split_training, fitted=True)
    test = ComparedCells(inputs.test, inputs.split_test, fitted=not inputs.held_out)
    sets = {"training": training, "equal": training.matched(test, seed=seed), "test": test}
    nodes = [tuple(group) for _, group in groupby(contrasts_of(model.hierarchy), key=lambda contrast: contrast.node)]
    for node in progress(nodes, total=len(nodes), doing="testing genes", unit="node"):
        tested = {name: cells.differences(node, seed=seed) for name, cells in sets.items()}
        for contrast in node:
            yield ContrastGenes(
                contrast,
                model_differences(expression, contrast),
                commitment_of(model, states, contrast),
                **{name: by_child.get(contrast.child) for name, by_child in tested.items()},
            )


def encoded_cells(inputs: Inputs) -> LatentCells:
    """Encode the cells that the model was fitted to in its latent space, as when it was fitted."""
    return latent_cells(encode(inputs.prepared, inputs.model.autoencoder))


def agreement_by_node(contrasts: tuple[ContrastGenes, ...], inputs: Inputs, *, n_genes: int) -> pd.DataFrame:
    """Agreement with the test cells by node, of the model and of training cells: means over children.

    Each measure of :class:`BranchAgreement` is of the model, and with ``_training`` and ``_equal`` appended of all
    training cells and of as many as test cells. ``n_significant`` counts genes significantly higher in any child, in
    test cells.
    """
    rows = []
    for node, group in groupby(contrasts, key=lambda of: of.contrast.node):
        children = tuple(group)
        contrast = children[0].contrast
        populations = list(contrast.inside + contrast.outside)
        means = {}
        for query in QUERIES:
            known = [child.agreement(query, n_genes=n_genes) for child in children]
            means[query] = mean_agreement(agreement for agreement in known if agreement)
        rows.append(
            {
                "node": node,
                "level": contrast.level,
                "children": " | ".join("; ".join(child.contrast.names_inside) for child in children),
                "n_types": len({*contrast.names_inside, *contrast.names_outside}),
                "n_training": int(inputs.training.n_by_type.reindex(populations, fill_value=0).sum()),
                "n_test": int(inputs.test.n_by_type.reindex(populations, fill_value=0).sum()),
                "n_significant": n_significant([child.test for child in children if child.test]),
                **{
                    column_of(name, query): means[query][name]
                    for name in BranchAgreement.__dataclass_fields__
                    for query in QUERIES
                },
            }
        )
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


def n_significant(tested: list[Differences]) -> float:
    """Count the genes that are significantly higher in any child; NaN where p-values would not be valid."""
    return float(sum(of.significant.sum() for of in tested)) if all(of.has_p for of in tested) else float("nan")
