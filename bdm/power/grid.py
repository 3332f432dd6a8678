"""The grid of a power analysis: the design of each experiment, and what tests find of what was planted in it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm._core.seeds import derive
from bdm.design.experiment import DesignedExperiment, compile_design
from bdm.design.samples import populations_named
from bdm.design.settings import AXES, MIN_DONORS_OF_DESEQ2, Change, Design, PowerSettings
from bdm.design.simulate import simulated_cells
from bdm.design.truth import comparisons_of, composition_of
from bdm.model.model import BranchedModel
from bdm.power.experiment import Experiment, ExperimentSettings
from bdm.power.tests import expression_test, share_tests

COMPOSITION = "composition"
SMALL = 0.05  # p-values below it are 5% of those of a valid test
NULL = 1e-6  # log2 fold changes below it are none


@dataclass(frozen=True)
class Point:
    """One combination of the values of a grid; None where a value is as in the design."""

    number: int  # its position in the grid, from 0
    donors: int | None = None
    cells: int | None = None
    depth: float | None = None
    log2_fold_change: float | None = None
    log_odds: float | None = None


def points_of(power: PowerSettings) -> Iterator[Point]:
    """List all combinations of the values of a grid."""
    values = [getattr(power, name) or (None,) for name in AXES]
    for number, (donors, cells, *others) in enumerate(product(*values)):
        whole = (None if value is None else int(value) for value in (donors, cells))
        yield Point(number, *whole, *others)


def methods_of(design: Design) -> tuple[str, ...]:
    """Name the tests of expression of a power analysis, which are the same for all its experiments."""
    if design.power.methods is not None:
        return design.power.methods
    samples = design.samples
    donors = min(design.power.donors or [samples.donors_in(condition) for condition in samples.conditions])
    return ("deseq2" if donors >= MIN_DONORS_OF_DESEQ2 else "deseq2_t",)


def design_at(design: Design, point: Point, *, repeat: int) -> Design:
    """Design of one experiment; the seed depends on the repeat alone, so that its cells are alike at all points."""
    samples, depth = design.samples, design.depth
    if point.donors is not None:
        samples = replace(samples, donors=point.donors)
    if point.cells is not None:
        samples = replace(samples, cells=scaled(samples.cells, point.cells))
    if point.depth is not None:
        depth = replace(depth, factor=times(depth.factor, point.depth))
    changes, shifts = design.changes, design.composition.shifts
    if point.log2_fold_change is not None:
        changes = tuple(of_size(change, point.log2_fold_change) for change in changes)
    if point.log_odds is not None:
        shifts = tuple(replace(shift, log_odds=sized(shift.log_odds, point.log_odds)) for shift in shifts)
    return replace(
        design,
        samples=samples,
        depth=depth,
        changes=changes,
        composition=replace(design.composition, shifts=shifts),
        seed=derive(design.seed, "power", repeat),
    )


def times(value: float | dict[str, float], factor: float) -> float | dict[str, float]:
    """Multiply a number, or the numbers of conditions."""
    if isinstance(value, dict):
        return {condition: number * factor for condition, number in value.items()}
    return value * factor


def sized(value: float, size: float) -> float:
    """Give a value another size, with its sign; 0 stays 0."""
    return float(np.sign(value) * size)


def scaled(cells: str | int | dict[str, int], total: int) -> int | dict[str, int]:
    """Scale numbers of cells by type to a total; learned numbers become the total."""
    if not isinstance(cells, dict):
        return total
    before = sum(cells.values())
    return {name: round(number * total / before) for name, number in cells.items()}


def of_size(change: Change, size: float) -> Change:
    """Give fold changes another size; a distribution keeps its spread relative to the mean, or has that size."""
    given = change.log2_fold_change
    if given.distribution is None:
        fold_change = replace(given, values=tuple(sized(value, size) for value in given.values))
    elif size == 0:
        fold_change = replace(given, distribution=None, values=(0.0,))
    else:
        spread = given.sd * size / abs(given.mean) if given.mean else size
        fold_change = replace(given, mean=sized(given.mean, size), sd=spread)
    return replace(change, log2_fold_change=fold_change)


def score_experiment(model: BranchedModel, design: Design, point: Point, *, repeat: int) -> pd.DataFrame:
    """Simulate one experiment of a grid, test it, and count what is found.

    Returns: A row for each ``condition``, ``method`` and ``cell_type``, with the number, the values and the ``repeat``
    of the point, its ``n_samples`` and ``n_cells``, and numbers of genes (of cell types for ``composition``):
    ``n_planted``; ``n_found``, planted ones with a false discovery rate below the limit and the right sign;
    ``n_discoveries``; ``n_false``, discoveries where nothing was planted; ``n_null``, tested where nothing was planted,
    and ``n_null_small``, the number of those with p < 0.05.
    """
    designed = compile_design(model, design_at(design, point, repeat=repeat))
    simulated = simulated_cells(designed)
    # Shares of cell types need no counts
    no_genes = sparse.csr_matrix((len(simulated.obs), 0))
    cells = simulated.in_memory() if methods_of(design) else AnnData(no_genes, obs=simulated.obs)
    reference, *others = designed.design.samples.conditions
    changes = {of.condition: of.log2_fold_change for of in comparisons_of(designed)}
    tables = []
    for condition in others:
        settings = ExperimentSettings(
            conditions=(reference, condition),
            pair_key="donor" if designed.design.samples.paired else None,
            counts="X",
        )
        experiment = Experiment.of(cells, settings)
        scores = [
            score_expression(experiment, changes[condition], design),
            score_composition(experiment, designed, condition),
        ]
        tables.append(pd.concat(scores, ignore_index=True).assign(condition=condition))
    where = {**asdict(point), "repeat": repeat, "n_samples": len(designed.samples), "n_cells": cells.n_obs}
    found = pd.concat(tables, ignore_index=True)
    return found.assign(**{name: np.nan if value is None else value for name, value in where.items()})


def score_expression(experiment: Experiment, log2_fold_change: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Count the genes that each method finds in each cell type, by planted changes, genes x cell types."""
    rows = []
    for method in methods_of(design):
        tests = expression_test(experiment, method)
        for cell_type, change in log2_fold_change.items():
            of = tests[tests["cell_type"] == cell_type]
            planted = change.reindex(of["gene"]).to_numpy(dtype=float)
            row = counts_of(of, planted, of["log2_fold_change"].to_numpy(dtype=float), fdr=design.power.fdr)
            row["n_planted"] = int((change.abs() > NULL).sum())  # those that were not tested are not found
            rows.append({"method": method, "cell_type": cell_type, **row})
    return pd.DataFrame(rows)


def score_composition(experiment: Experiment, designed: DesignedExperiment, condition: str) -> pd.DataFrame:
    """Count the types whose share is found to differ; others, which shifts change a little, are not counted."""
    model, shifts = designed.model, [of for of in designed.design.composition.shifts if of.condition == condition]
    if not shifts:
        return pd.DataFrame()
    ratios = composition_of(designed).set_index(["condition", "cell_type"])["log_odds_ratio"].loc[condition]
    named = {model.cell_type_of[name] for shift in shifts for name in populations_named(model, shift.in_)}
    planted = ratios[ratios.index.isin(named) & (ratios.abs() > NULL)]
    tests = share_tests(experiment.n_cells, experiment.samples)
    chosen = planted if len(planted) else pd.Series(0.0, index=tests["cell_type"])
    rows = []
    for cell_type, change in chosen.items():
        of = tests[tests["cell_type"] == cell_type]
        change_of_test = np.full(len(of), change)
        row = counts_of(of, change_of_test, of["log_odds"].to_numpy(dtype=float), fdr=designed.design.power.fdr)
        row["n_planted"] = int(abs(change) > NULL)  # of a type without cells, too, which is not found
        rows.append({"method": COMPOSITION, "cell_type": cell_type, **row})
    return pd.DataFrame(rows)


def counts_of(tests: pd.DataFrame, planted: np.ndarray, estimate: np.ndarray, *, fdr: float) -> dict[str, Any]:
    """Count planted, found and false discoveries among tests, by the planted change of each."""
    changed = np.abs(planted) > NULL
    discovery = (tests["fdr"] < fdr).to_numpy()
    small = (tests["p_value"] < SMALL).to_numpy()
    tested = tests["p_value"].notna().to_numpy()
    return {
        "n_planted": int(changed.sum()),
        "n_found": int((discovery & changed & (np.sign(estimate) == np.sign(planted))).sum()),
        "n_discoveries": int(discovery.sum()),
        "n_false": int((discovery & ~changed).sum()),
        "n_null": int((tested & ~changed).sum()),
        "n_null_small": int((small & ~changed).sum()),
    }
