"""What tests find in a simulated experiment, compared with what was planted."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm.design.experiment import Experiment as Designed
from bdm.design.experiment import compile_design
from bdm.design.samples import populations_named
from bdm.design.settings import Design
from bdm.design.simulate import simulated_cells
from bdm.design.truth import composition_of, truth_of
from bdm.model.model import BranchedModel
from bdm.power.composition import composition_table
from bdm.power.experiment import Experiment, ExperimentSettings, read_samples
from bdm.power.expression import expression_tests
from bdm.power.grid import Point, design_at, methods_of

COMPOSITION = "composition"
SMALL = 0.05  # p-values below it are 5% of those of a valid test
NULL = 1e-6  # log2 fold changes below it are none


def score_experiment(model: BranchedModel, design: Design, point: Point, *, repeat: int) -> pd.DataFrame:
    """Simulate one experiment of a grid, test it, and count what is found.

    Returns
    -------
    A row for each ``condition``, ``method`` and ``cell_type``, with the number, the values and the ``repeat`` of the
    point, its ``n_samples`` and ``n_cells``, and numbers of genes (of cell types for ``composition``): ``n_planted``;
    ``n_found``, planted ones with a false discovery rate below the limit and the right sign; ``n_discoveries``;
    ``n_false``, discoveries where nothing was planted; ``n_null``, tested where nothing was planted, and
    ``n_null_small``, the number of those with p < 0.05.
    """
    designed = compile_design(model, design_at(design, point, repeat=repeat))
    simulated = simulated_cells(designed)
    # Shares of cell types need no counts
    cells = simulated.in_memory() if methods_of(design) else without_counts(simulated.obs)
    reference, *others = designed.design.samples.conditions
    changes = {of.condition: of.log2_fold_change for of in truth_of(designed).comparisons}
    tables = []
    for condition in others:
        settings = ExperimentSettings(
            conditions=(reference, condition), pair_key="donor" if designed.design.samples.paired else None
        )
        table, samples, kept = read_samples(cells.obs, settings)
        experiment = Experiment.of_counts(cells.X[kept], cells.var_names, table, samples, settings)
        scores = [
            score_expression(experiment, changes[condition], design),
            score_composition(experiment, designed, condition),
        ]
        tables.append(pd.concat(scores, ignore_index=True).assign(condition=condition))
    where = {**asdict(point), "repeat": repeat, "n_samples": len(designed.samples), "n_cells": cells.n_obs}
    found = pd.concat(tables, ignore_index=True)
    return found.assign(**{name: np.nan if value is None else value for name, value in where.items()})


def without_counts(obs: pd.DataFrame) -> AnnData:
    """Cells of no genes."""
    return AnnData(sparse.csr_matrix((len(obs), 0)), obs=obs)


def score_expression(experiment: Experiment, log2_fold_change: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Count the genes that are found in each cell type by each method; nothing if there is no method.

    Parameters
    ----------
    log2_fold_change
        Planted, genes x cell types; 0 for null genes.
    """
    methods = methods_of(design)
    if not methods:
        return pd.DataFrame()
    tests = expression_tests(experiment, methods)
    by = dict(list(tests.groupby(["method", "cell_type"])))
    rows = []
    for method in methods:
        for cell_type, change in log2_fold_change.items():
            of = by.get((method, cell_type), tests.iloc[:0])
            planted = change.reindex(of["gene"]).to_numpy(dtype=float)
            row = counts_of(of, planted, of["log2_fold_change"].to_numpy(dtype=float), fdr=design.power.fdr)
            row["n_planted"] = int((change.abs() > NULL).sum())  # those that were not tested are not found
            rows.append({"method": method, "cell_type": cell_type, **row})
    return pd.DataFrame(rows)


def score_composition(experiment: Experiment, designed: Designed, condition: str) -> pd.DataFrame:
    """Count the cell types whose share is found to differ; nothing where the design shifts none.

    A shift changes the shares of all other cell types a little, so that these are neither planted nor null.
    """
    model, shifts = designed.model, [of for of in designed.design.composition.shifts if of.condition == condition]
    if not shifts:
        return pd.DataFrame()
    ratios = composition_of(designed).set_index(["condition", "cell_type"])["log_odds_ratio"].loc[condition]
    named = {model.cell_type_of[name] for shift in shifts for name in populations_named(model, shift.in_)}
    planted = ratios[ratios.index.isin(named) & (ratios.abs() > NULL)]
    tests = composition_table(experiment)
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
