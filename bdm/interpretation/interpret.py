from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import pandas as pd
from tqdm import tqdm

from bdm.evaluation.cells import Cells
from bdm.interpretation.agreement import BranchAgreement, mean_agreement
from bdm.interpretation.contrasts import Contrast, contrasts_of
from bdm.interpretation.differences import Differences
from bdm.interpretation.inputs import Inputs
from bdm.interpretation.markers import Markers, markers_of
from bdm.interpretation.model_genes import ModelExpression, model_differences, model_expression
from bdm.interpretation.real_genes import halves_of, real_differences


@dataclass(frozen=True)
class InterpretationSettings:
    """Settings of an interpretation.

    Attributes
    ----------
    n_genes
        Top genes of the model and of real cells that are listed, and compared.
    n_cells
        Cells of each type whose expected expression tells the model's.
    n_markers
        Markers of each type.
    """

    n_genes: int = 20
    n_cells: int = 500
    n_markers: int = 3


@dataclass(frozen=True)
class ContrastGenes:
    """The genes of one contrast.

    Attributes
    ----------
    real
        In real training cells; None where these are too few.
    halves
        In two random halves of these cells; None where either has too few.
    """

    contrast: Contrast
    model: Differences
    real: Differences | None
    halves: tuple[Differences, Differences] | None

    def agreements(self, *, n_genes: int) -> list[BranchAgreement]:
        """Agreement of the model with each half of the real cells."""
        return [BranchAgreement.of(self.model, half, n_genes=n_genes) for half in self.halves or ()]

    def agreements_of_halves(self, *, n_genes: int) -> list[BranchAgreement]:
        """Agreement of each half of the real cells with the other: what that number of real cells attains."""
        pairs = [self.halves, self.halves[::-1]] if self.halves else []
        return [BranchAgreement.of(judged, half, n_genes=n_genes) for judged, half in pairs]


@dataclass(frozen=True)
class Interpretation:
    """The genes of every branch, their agreement with real cells by node, and the markers of cell types."""

    settings: InterpretationSettings
    genes: pd.Index
    contrasts: tuple[ContrastGenes, ...]
    agreement: pd.DataFrame
    markers: Markers

    @property
    def nodes(self) -> dict[str, tuple[ContrastGenes, ...]]:
        """Contrasts by node."""
        grouped = groupby(self.contrasts, key=lambda of: of.contrast.node)
        return {node: tuple(contrasts) for node, contrasts in grouped}


def interpret(inputs: Inputs, settings: InterpretationSettings, *, seed: int) -> Interpretation:
    """Find the genes that part the children of each node, in the model and, to check it, in real cells."""
    expression = model_expression(inputs.model, n_cells=settings.n_cells, seed=seed)
    contrasts = tuple(contrast_genes(expression, inputs.training, contrasts_of(inputs.model.hierarchy), seed=seed))
    cell_types = inputs.model.hierarchy.cell_types
    return Interpretation(
        settings,
        inputs.genes,
        contrasts,
        agreement_by_node(contrasts, inputs.training.n_by_type, n_genes=settings.n_genes),
        markers_of(inputs.training, inputs.generated, inputs.genes, cell_types, n_genes=settings.n_markers),
    )


def contrast_genes(
    expression: ModelExpression, training: Cells, contrasts: tuple[Contrast, ...], *, seed: int
) -> Iterator[ContrastGenes]:
    """Differences of each contrast in the model, in real cells, and in each half of these."""
    halves = halves_of(training, seed=seed)
    nodes = [tuple(group) for _, group in groupby(contrasts, key=lambda contrast: contrast.node)]
    for node in tqdm(nodes, disable=None, desc="testing genes", unit="node"):
        real, first, second = (real_differences(cells, node) for cells in (training, *halves))
        for contrast in node:
            child = contrast.child
            both = (first[child], second[child]) if child in first and child in second else None
            yield ContrastGenes(contrast, model_differences(expression, contrast), real.get(child), both)


def agreement_by_node(contrasts: tuple[ContrastGenes, ...], n_cells: pd.Series, *, n_genes: int) -> pd.DataFrame:
    """Agreement of the model with real cells by node, and that of real cells with each other.

    The model is compared with each of two halves of the real cells, and so is the other half: what that number of
    real cells attains. The model has learnt from both halves and smooths, so it may well do better.

    Returns
    -------
    Table of nodes with their level, cell types and number of training cells, ``n_significant`` (genes significantly
    higher in any child, in all training cells), and each measure of :class:`BranchAgreement`, of the model and, with
    ``_real_half`` appended, of the other half; all means over children and halves, NaN where there are too few cells.
    """
    rows = []
    for node, group in groupby(contrasts, key=lambda of: of.contrast.node):
        children = tuple(group)
        contrast = children[0].contrast
        model = mean_agreement(a for child in children for a in child.agreements(n_genes=n_genes))
        half = mean_agreement(a for child in children for a in child.agreements_of_halves(n_genes=n_genes))
        measures = pd.concat([model, half.add_suffix("_real_half")])
        rows.append(
            {
                "node": node,
                "level": contrast.level,
                "children": " | ".join("; ".join(child.contrast.inside) for child in children),
                "n_types": len(contrast.inside + contrast.outside),
                "n_cells": int(n_cells[list(contrast.inside + contrast.outside)].sum()),
                "n_significant": sum(int(child.real.significant.sum()) for child in children if child.real),
                **measures[[column for name in model.index for column in (name, f"{name}_real_half")]],
            }
        )
    return pd.DataFrame(rows)
