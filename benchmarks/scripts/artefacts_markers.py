"""In which cell types tests find a marker that was planted on an inner node of the tree."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from bdm.design.experiment import compile_design
from bdm.design.read import read_design
from bdm.design.settings import Design
from bdm.design.simulate import simulated_cells
from bdm.hierarchy.tree import Hierarchy
from bdm.model.model import BranchedModel, load_model
from bdm.power.experiment import Experiment, ExperimentSettings
from bdm.power.expression import expression_tests
from bdm.seeds import derive

CONDITIONS = ("without", "with")
N_DONORS = 6
N_CELLS = 40  # of each type in each sample
N_GENES = 20
VARIATION = 0.3  # of log expression between donors
METHODS = ("deseq2", "wilcoxon")
FDR = 0.05


def node_above(hierarchy: Hierarchy, types: list[str]) -> str:
    """Name the lowest node that has all of the types below it."""
    below = {name: set(hierarchy.leaves(name)) for name in hierarchy.children}
    of_types = set().union(*(below[name] for name in types))
    return min((name for name in below if of_types <= below[name]), key=lambda name: len(below[name]))


def design_of(model: BranchedModel, node: str, log2_fold_change: float, seed: int) -> Design:
    """Design an experiment with genes that are higher below a node in one condition, and not in the other."""
    marker = {
        "name": "marker",
        "condition": CONDITIONS[1],
        "in": [node],
        "genes": {"n": N_GENES, "expression": [0.8, 1]},
        "log2_fold_change": log2_fold_change,
    }
    cells = dict.fromkeys(model.cell_types, N_CELLS)
    samples = {"donors": N_DONORS, "conditions": list(CONDITIONS), "cells": cells, "variation": VARIATION}
    return read_design({"samples": samples, "changes": [marker], "seed": seed})


def found(model: BranchedModel, design: Design, node: str) -> pd.DataFrame:
    """Simulate and test an experiment.

    Returns
    -------
    A row for each method and cell type: whether it is ``below`` the node, the numbers of planted genes (``n_planted``)
    and of those that are found to be higher (``n_found``), of all other tested genes (``n_null``) and of those that are
    found (``n_false``).
    """
    experiment = compile_design(model, design)
    cells = simulated_cells(experiment).in_memory()
    tests = expression_tests(Experiment.of(cells, ExperimentSettings(conditions=CONDITIONS)), METHODS)
    marker = set(experiment.model.autoencoder.genes.index[experiment.plants[0].genes])
    of_types = {model.cell_type_of[population] for population in model.hierarchy.leaves(node)}
    rows = []
    for (method, cell_type), of in tests.groupby(["method", "cell_type"]):
        planted = of["gene"].isin(marker).to_numpy()
        discovery = (of["fdr"] < FDR).to_numpy()
        up = (of["log2_fold_change"] > 0).to_numpy()
        row = {"method": method, "cell_type": cell_type, "below": cell_type in of_types, "n_planted": len(marker)}
        row |= {"n_found": (discovery & planted & up).sum(), "n_null": (~planted).sum()}
        rows.append(row | {"n_false": (discovery & ~planted).sum()})
    return pd.DataFrame(rows)


def main(
    model: Path,
    out: Path,
    *,
    cell_type: Annotated[list[str], typer.Option(help="Types below the node.")],
    log2_fold_change: Annotated[list[float], typer.Option()],
    n_repeats: int = 1,
    seed: int = 0,
) -> None:
    """Write how many genes of a marker tests find in each cell type, by the log2 fold change."""
    fitted = load_model(model)
    node = node_above(fitted.hierarchy, cell_type)
    tables = []
    for size in log2_fold_change:
        for repeat in range(n_repeats):
            design = design_of(fitted, node, size, derive(seed, "marker", repeat))
            tables.append(found(fitted, design, node).assign(log2_fold_change=size, repeat=repeat, node=node))
    pd.concat(tables, ignore_index=True).to_csv(out, index=False)


if __name__ == "__main__":
    typer.run(main)
