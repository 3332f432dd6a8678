"""Power analysis: simulate a grid of experiments, test them, and summarise discoveries."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.stats import norm

from bdm._core.errors import InputError, abbreviated
from bdm._core.files import write_table
from bdm._core.parallel import threads
from bdm._core.seeds import derive
from bdm._core.store import Result
from bdm.applications.design.design import AXES, MIN_DONORS_OF_DESEQ2, Change, Design, PowerSettings, read_design
from bdm.applications.design.experiment import DesignedExperiment, compile_design
from bdm.applications.design.samples import resolve_populations
from bdm.applications.design.simulate import simulated_cells
from bdm.applications.design.truth import compare_conditions, composition_table
from bdm.applications.power.differential import (
    MIN_SAMPLES,
    Experiment,
    ExperimentSettings,
    deseq2_test,
    expression_test,
    share_tests,
)
from bdm.model.model import BranchedModel

logger = logging.getLogger(__name__)

COMPOSITION = "composition"
SMALL_P = 0.05  # a valid test has 5% of its p-values below
MIN_EFFECT = 1e-6  # smaller effects count as zero
POINT_COLUMNS = ["number", *AXES]
SUMMED_COLUMNS = ["n_planted", "n_found", "n_discoveries", "n_false", "n_null", "n_null_small"]
CONFIDENCE = 0.95


@dataclass(frozen=True, repr=False)
class PowerAnalysis(Result):
    """Discoveries of tests in a grid of simulated experiments.

    Attributes
    ----------
    repeats
        Table with a row for each experiment, method and cell type, see
        :func:`bdm.applications.power.analysis.score_experiment`; ``n_points`` and ``n_repeats`` are the size of the
        grid, and ``fdr`` is the false discovery rate at which tests are significant.
    """

    kind = "power"

    repeats: pd.DataFrame

    def __repr__(self) -> str:
        columns = [axis for axis in AXES if self.power[axis].nunique() > 1]
        shown = self.power[[*columns, "method", "n_cells", "power", "low", "high", "false_discovery_rate"]]
        return f"Power analysis of {self.power['number'].nunique()} experiments\n{shown.to_string(index=False)}"

    @property
    def power(self) -> pd.DataFrame:
        """Table with a row for each point of the grid and method.

        ``power`` is the share of planted genes (planted shifts for ``composition``) that are found, with a 95% interval
        from ``low`` to ``high``. ``false_discovery_rate`` is the mean false discovery proportion (0 without
        discoveries) over conditions, repeats and families of tests adjusted together: genes of a cell type, or all cell
        types for ``composition``. ``false_discovery_error`` is its standard error. ``small_p_values`` is the share of
        p-values below 0.05 among tests without a planted change. ``n_samples`` and ``n_cells`` are the cost.
        """
        return summarise(self.repeats, [*POINT_COLUMNS, "fdr", "method"])

    @property
    def by_type(self) -> pd.DataFrame:
        """Table :attr:`power`, split by cell type."""
        return summarise(self.repeats, [*POINT_COLUMNS, "fdr", "method", "cell_type"])

    def _write_tables(self, folder: Path) -> None:
        for name, table in {"power": self.power, "power_by_type": self.by_type, "repeats": self.repeats}.items():
            write_table(table, folder / f"{name}.csv")


def power_analysis(model: BranchedModel, design: Design | dict[str, Any] | Path | str) -> PowerAnalysis:
    """Simulate and test all experiments in the grid of a design."""
    checked = read_design(design)
    check_testable(checked)
    repeats = pd.concat(score_experiments(model, checked), ignore_index=True)
    warn_of_untested(repeats)
    return PowerAnalysis(repeats)


def warn_of_untested(repeats: pd.DataFrame) -> None:
    """Warn of cell types with planted genes but no test."""
    planted = repeats[(repeats["method"] != COMPOSITION) & (repeats["n_planted"] > 0)]
    untested = planted.loc[planted["n_tested"] == 0, "cell_type"].value_counts()
    if len(untested):
        logger.warning(
            "No gene was tested in %s in up to %d of %d tests: a test needs %d samples of each condition with %d cells "
            "or more of the type, and genes with counts; give more cells, donors or depth.",
            abbreviated(untested.index),
            untested.max(),
            planted["cell_type"].value_counts().max(),
            MIN_SAMPLES,
            ExperimentSettings.min_cells,
        )


def score_experiments(model: BranchedModel, design: Design) -> Iterator[pd.DataFrame]:
    """Score all experiments of the grid, in parallel."""
    points, power = grid_points(design.power), design.power
    size = {"n_points": len(points), "n_repeats": power.n_repeats, "fdr": power.fdr}
    with threads() as run:
        for number, point in enumerate(points):
            values = [f"{axis} {value:g}" for axis, value in point.items()]
            logger.info("%d of %d: %s", number + 1, len(points), ", ".join(values) or "the design")

            def scored(repeat: int, number: int = number, point: dict[str, Any] = point) -> pd.DataFrame:
                return score_experiment(model, design, point, repeat=repeat).assign(number=number, **size)

            yield from run(scored, range(power.n_repeats))


def check_testable(design: Design) -> None:
    """Raise an InputError if a design has nothing to test."""
    conditions = design.samples.conditions
    if len(conditions) < 2:
        raise InputError(
            f"samples.conditions has one condition, {conditions[0]}; name two or more to compare, the reference first."
        )
    for name, values in (design.samples.covariates or {}).items():
        if isinstance(values, dict):
            raise InputError(
                f"samples.covariates.{name} differs between samples, so that all genes change; give all samples the "
                "same value, or test the cells of bdm simulate."
            )
    donors = design.power.donors or [design.samples.donors_in(condition) for condition in conditions]
    if min(donors) < 2:
        raise InputError(
            "samples.donors is 1 in a condition; tests need 2 or more, because a single donor shows no variation "
            "between donors."
        )
    if not design.changes and not design.composition.shifts:
        raise InputError("there is nothing to find; give changes of expression, or composition.shifts.")
    if design.changes and not expression_methods(design):
        raise InputError("power.methods is empty, but there are changes of expression; name a test, such as deseq2.")
    if any(name.startswith("deseq2") for name in expression_methods(design)):
        deseq2_test()
    if design.power.log2_fold_change and not design.changes:
        raise InputError("power.log2_fold_change needs changes of expression; add changes, or leave it out.")
    if design.power.log_odds and not design.composition.shifts:
        raise InputError("power.log_odds needs composition.shifts; add shifts, or leave it out.")


# ---- experiments of the grid


def grid_points(power: PowerSettings) -> list[dict[str, Any]]:
    """Return all combinations of the values of a grid, by axis; axes without values are left out."""
    axes = {name: getattr(power, name) for name in AXES if getattr(power, name)}
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def expression_methods(design: Design) -> tuple[str, ...]:
    """Return the tests of expression that all experiments share."""
    if design.power.methods is not None:
        return design.power.methods
    samples = design.samples
    donors = min(design.power.donors or [samples.donors_in(condition) for condition in samples.conditions])
    return ("deseq2" if donors >= MIN_DONORS_OF_DESEQ2 else "deseq2_t",)


def design_at(design: Design, point: dict[str, Any], *, repeat: int) -> Design:
    """Return an experiment's design; its seed depends on the repeat alone."""
    samples, depth = design.samples, design.depth
    if "donors" in point:
        samples = replace(samples, donors=point["donors"])
    if "cells" in point:
        cells = total = point["cells"]
        if isinstance(samples.cells, dict):
            before = sum(samples.cells.values())
            cells = {name: round(number * total / before) for name, number in samples.cells.items()}
        samples = replace(samples, cells=cells)
    if "depth" in point:
        factor, times = depth.factor, point["depth"]
        scale = {name: value * times for name, value in factor.items()} if isinstance(factor, dict) else factor * times
        depth = replace(depth, factor=scale)
    changes, shifts = design.changes, design.composition.shifts
    if "log2_fold_change" in point:
        changes = tuple(resize_change(change, point["log2_fold_change"]) for change in changes)
    if "log_odds" in point:
        shifts = tuple(replace(shift, log_odds=set_size(shift.log_odds, point["log_odds"])) for shift in shifts)
    return replace(
        design,
        samples=samples,
        depth=depth,
        changes=changes,
        composition=replace(design.composition, shifts=shifts),
        seed=derive(design.seed, "power", repeat),
    )


def set_size(value: float, size: float) -> float:
    """Set the absolute value of a number; 0 stays 0."""
    return float(np.sign(value) * size)


def resize_change(change: Change, size: float) -> Change:
    """Set the absolute size of the fold changes of a planted change.

    The standard deviation of a distribution is scaled with its mean; if the mean is 0, it becomes ``size``.
    """
    fold_change = change.log2_fold_change
    if fold_change.distribution is None:
        fold_change = replace(fold_change, values=tuple(set_size(value, size) for value in fold_change.values))
    elif size == 0:
        fold_change = replace(fold_change, distribution=None, values=(0.0,))
    else:
        spread = fold_change.sd * size / abs(fold_change.mean) if fold_change.mean else size
        fold_change = replace(fold_change, mean=set_size(fold_change.mean, size), sd=spread)
    return replace(change, log2_fold_change=fold_change)


def score_experiment(model: BranchedModel, design: Design, point: dict[str, Any], *, repeat: int) -> pd.DataFrame:
    """Simulate an experiment of the grid, test it, and count discoveries.

    Returns
    -------
    Table with a row for each ``condition``, ``method`` and ``cell_type``, with the point, ``repeat``, ``n_samples`` and
    ``n_cells``. The other columns count genes, or cell types for ``composition``: ``n_planted``, ``n_tested``,
    ``n_found`` (planted, and discovered with the right sign), ``n_discoveries``, and among tests without a planted
    change ``n_false`` discoveries, ``n_null`` tests and ``n_null_small`` with p < 0.05.
    """
    designed = compile_testable(model, design_at(design, point, repeat=repeat))
    simulated = simulated_cells(designed)
    no_genes = sparse.csr_matrix((len(simulated.obs), 0))  # tests of composition need no counts
    cells = simulated.in_memory() if expression_methods(design) else AnnData(no_genes, obs=simulated.obs)
    reference, *conditions = designed.design.samples.conditions
    changes = {comparison.condition: comparison.log2_fold_change for comparison in compare_conditions(designed)}
    tables = []
    for condition in conditions:
        pair_key = "donor" if designed.design.samples.paired else None
        settings = ExperimentSettings(conditions=(reference, condition), pair_key=pair_key, counts="X")
        experiment = Experiment.from_anndata(cells, settings)
        scores = [
            score_expression(experiment, changes[condition], design),
            score_composition(experiment, designed, condition),
        ]
        tables.append(pd.concat(scores, ignore_index=True).assign(condition=condition))
    facts = {**dict.fromkeys(AXES, np.nan), **point, "repeat": repeat}
    counts = pd.concat(tables, ignore_index=True)
    return counts.assign(**facts, n_samples=len(designed.samples), n_cells=cells.n_obs)


def compile_testable(model: BranchedModel, design: Design) -> DesignedExperiment:
    """Compile a design; reject changes without genes of RNA."""
    designed = compile_design(model, design)
    n_genes = designed.modalities[0].features.stop
    if designed.changes and not any((planted.genes < n_genes).any() for planted in designed.changes):
        raise InputError("no gene of RNA changes, but only RNA is tested; give changes of genes.")
    return designed


def score_expression(experiment: Experiment, log2_fold_change: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Count discoveries by method and cell type; planted changes: genes x types."""
    rows = []
    for method in expression_methods(design):
        tests = expression_test(experiment, method)
        for cell_type, change in log2_fold_change.loc[experiment.genes].items():  # RNA only
            tested = tests[tests["cell_type"] == cell_type]
            counts = count_discoveries(tested, change, by="gene", effect="log2_fold_change", fdr=design.power.fdr)
            rows.append({"method": method, "cell_type": cell_type, **counts})
    return pd.DataFrame(rows)


def score_composition(experiment: Experiment, designed: DesignedExperiment, condition: str) -> pd.DataFrame:
    """Count the cell types found to shift in composition.

    Only types named by a shift are counted; the shares of the rest change slightly. If no shift has an effect, every
    type is counted as null.
    """
    shifts = [shift for shift in designed.design.composition.shifts if shift.condition == condition]
    if not shifts:
        return pd.DataFrame()
    ratios = composition_table(designed).set_index(["condition", "cell_type"])["log_odds_ratio"].loc[condition]
    shifted = {
        designed.model.cell_type_of[name] for shift in shifts for name in resolve_populations(designed.model, shift.in_)
    }
    planted = ratios[ratios.index.isin(shifted) & (ratios.abs() > MIN_EFFECT)]
    tests = share_tests(experiment.n_cells, experiment.samples)
    changes = planted if len(planted) else pd.Series(0.0, index=tests["cell_type"])
    rows = []
    for cell_type in changes.index:
        tested, change, fdr = tests[tests["cell_type"] == cell_type], changes[[cell_type]], designed.design.power.fdr
        counts = count_discoveries(tested, change, by="cell_type", effect="log_odds", fdr=fdr)
        rows.append({"method": COMPOSITION, "cell_type": cell_type, **counts})
    return pd.DataFrame(rows)


def count_discoveries(tests: pd.DataFrame, planted: pd.Series, *, by: str, effect: str, fdr: float) -> dict[str, Any]:
    """Count true and false discoveries.

    ``planted`` are the changes of genes or cell types, whose names are in the column ``by`` of tests. ``effect`` is the
    column of estimates.
    """
    change = planted.reindex(tests[by]).to_numpy(dtype=float)
    changed, has_sign = np.abs(change) > MIN_EFFECT, np.sign(tests[effect].to_numpy(dtype=float)) == np.sign(change)
    discovery = (tests["fdr"] < fdr).to_numpy()
    small = (tests["p_value"] < SMALL_P).to_numpy()
    tested = tests["p_value"].notna().to_numpy()
    return {
        "n_planted": int((planted.abs() > MIN_EFFECT).sum()),  # including what was not tested
        "n_tested": int(tested.sum()),
        "n_found": int((discovery & changed & has_sign).sum()),
        "n_discoveries": int(discovery.sum()),
        "n_false": int((discovery & ~changed).sum()),
        "n_null": int((tested & ~changed).sum()),
        "n_null_small": int((small & ~changed).sum()),
    }


# ---- summary over repeats


def summarise(repeats: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Summarise experiments over repeats, grouped by columns."""
    keys_of_cost = [column for column in by if column != "cell_type"]
    cost = repeats.groupby(keys_of_cost, dropna=False, sort=False)[["n_samples", "n_cells"]].mean().round()
    repeats = repeats.assign(false_proportion=false_proportion(repeats))
    rows = []
    for key, table in repeats.groupby(by, dropna=False, sort=False):
        by_repeat = table.groupby("repeat")
        sums, proportion = by_repeat[SUMMED_COLUMNS].sum(), by_repeat["false_proportion"].mean()
        total, mean = sums.sum(), sums.mean()
        low, high = interval(sums["n_found"].to_numpy(), sums["n_planted"].to_numpy())
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "power": total["n_found"] / total["n_planted"] if total["n_planted"] else np.nan,
                "low": low,
                "high": high,
                "false_discovery_rate": proportion.mean(),
                "false_discovery_error": proportion.sem(),
                "small_p_values": total["n_null_small"] / total["n_null"] if total["n_null"] else np.nan,
                "n_planted": mean["n_planted"],
                "n_discoveries": mean["n_discoveries"],
                "n_repeats": len(sums),
            }
        )
    return pd.DataFrame(rows).merge(cost.reset_index(), on=keys_of_cost, how="left")


def false_proportion(repeats: pd.DataFrame) -> pd.Series:
    """Return false discovery proportions of tests adjusted together; NaN without null tests."""
    cell_type = repeats["cell_type"].where(repeats["method"] != COMPOSITION, COMPOSITION)  # a family has all types
    family = [*(repeats[column] for column in ("number", "repeat", "condition", "method")), cell_type]
    total = repeats[["n_false", "n_discoveries", "n_null"]].groupby(family, sort=False).transform("sum")
    return (total["n_false"] / total["n_discoveries"].clip(lower=1)).where(total["n_null"] > 0)


def interval(n_found: np.ndarray, n_planted: np.ndarray) -> tuple[float, float]:
    """Return Wilson's interval of the share of planted effects that are found.

    If repeats differ by more than chance, the number of effects is divided by the design effect.
    """
    total = n_planted.sum()
    if not total:
        return np.nan, np.nan
    share, z = n_found.sum() / total, norm.ppf((1 + CONFIDENCE) / 2)
    binomial = share * (1 - share) / total
    design_effect = 1.0
    if len(n_found) > 1 and binomial and n_planted.all():
        design_effect = max(np.var(n_found / n_planted, ddof=1) / len(n_found) / binomial, 1.0)
    n = total / design_effect
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    width = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float(max(centre - width, 0)), float(min(centre + width, 1))
