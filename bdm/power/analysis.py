"""Power analyses: the experiments of a grid, what tests find of what was planted in each, and the tables of all."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.stats import norm

from bdm._core.errors import InputError, abbreviated
from bdm._core.parallel import threads
from bdm._core.seeds import derive
from bdm._core.store import Result
from bdm.design.experiment import DesignedExperiment, compile_design
from bdm.design.samples import resolve_populations
from bdm.design.settings import AXES, MIN_DONORS_OF_DESEQ2, Change, Design, PowerSettings, read_design
from bdm.design.simulate import simulated_cells
from bdm.design.truth import compare_conditions, composition_table
from bdm.model.model import BranchedModel
from bdm.power.differential import (
    MIN_SAMPLES,
    Experiment,
    ExperimentSettings,
    deseq2_test,
    expression_test,
    share_tests,
)

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
        factor, times = depth.factor, point.depth
        own = {name: value * times for name, value in factor.items()} if isinstance(factor, dict) else factor * times
        depth = replace(depth, factor=own)
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

    Returns: A row for each ``condition``, ``method`` and ``cell_type``, with the point, the ``repeat``, ``n_samples``
    and ``n_cells``, and numbers of genes (of cell types for ``composition``): ``n_planted``; ``n_tested``; ``n_found``,
    planted ones with a false discovery rate below the limit and the right sign; ``n_discoveries``; and where nothing
    was planted, ``n_false`` discoveries, ``n_null`` tests, and ``n_null_small`` with p < 0.05.
    """
    designed = compile_testable(model, design_at(design, point, repeat=repeat))
    simulated = simulated_cells(designed)
    no_genes = sparse.csr_matrix((len(simulated.obs), 0))  # as shares of cell types need no counts
    cells = simulated.in_memory() if methods_of(design) else AnnData(no_genes, obs=simulated.obs)
    reference, *others = designed.design.samples.conditions
    changes = {comparison.condition: comparison.log2_fold_change for comparison in compare_conditions(designed)}
    tables = []
    for condition in others:
        pair_key = "donor" if designed.design.samples.paired else None
        settings = ExperimentSettings(conditions=(reference, condition), pair_key=pair_key, counts="X")
        experiment = Experiment.of(cells, settings)
        scores = [
            score_expression(experiment, changes[condition], design),
            score_composition(experiment, designed, condition),
        ]
        tables.append(pd.concat(scores, ignore_index=True).assign(condition=condition))
    where = {**asdict(point), "repeat": repeat, "n_samples": len(designed.samples), "n_cells": cells.n_obs}
    found = pd.concat(tables, ignore_index=True)
    return found.assign(**{name: np.nan if value is None else value for name, value in where.items()})


def compile_testable(model: BranchedModel, design: Design) -> DesignedExperiment:
    """Bring a design to a model, and reject changes of other modalities than RNA, of which the tests are."""
    designed = compile_design(model, design)
    genes = designed.modalities[0].features.stop
    if designed.changes and not any((planted.genes < genes).any() for planted in designed.changes):
        raise InputError("no gene of RNA changes, and tests are of RNA alone; give changes of genes.")
    return designed


def score_expression(experiment: Experiment, log2_fold_change: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Count the genes that each method finds in each cell type, by planted changes, genes x cell types."""
    rows = []
    for method in methods_of(design):
        tests = expression_test(experiment, method)
        for cell_type, change in log2_fold_change.loc[experiment.genes].items():  # of RNA, which is tested
            tested = tests[tests["cell_type"] == cell_type]
            planted = change.reindex(tested["gene"]).to_numpy(dtype=float)
            row = counts_of(tested, planted, tested["log2_fold_change"].to_numpy(dtype=float), fdr=design.power.fdr)
            row["n_planted"] = int((change.abs() > NULL).sum())  # those that were not tested are not found
            rows.append({"method": method, "cell_type": cell_type, **row})
    return pd.DataFrame(rows)


def score_composition(experiment: Experiment, designed: DesignedExperiment, condition: str) -> pd.DataFrame:
    """Count the types whose share is found to differ; others, which shifts change a little, are not counted."""
    shifts = [shift for shift in designed.design.composition.shifts if shift.condition == condition]
    if not shifts:
        return pd.DataFrame()
    ratios = composition_table(designed).set_index(["condition", "cell_type"])["log_odds_ratio"].loc[condition]
    named = {
        designed.model.cell_type_of[name] for shift in shifts for name in resolve_populations(designed.model, shift.in_)
    }
    planted = ratios[ratios.index.isin(named) & (ratios.abs() > NULL)]
    tests = share_tests(experiment.n_cells, experiment.samples)
    chosen = planted if len(planted) else pd.Series(0.0, index=tests["cell_type"])
    rows = []
    for cell_type, change in chosen.items():
        tested = tests[tests["cell_type"] == cell_type]
        change_of_test = np.full(len(tested), change)
        row = counts_of(tested, change_of_test, tested["log_odds"].to_numpy(dtype=float), fdr=designed.design.power.fdr)
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
        "n_tested": int(tested.sum()),
        "n_found": int((discovery & changed & (np.sign(estimate) == np.sign(planted))).sum()),
        "n_discoveries": int(discovery.sum()),
        "n_false": int((discovery & ~changed).sum()),
        "n_null": int((tested & ~changed).sum()),
        "n_null_small": int((small & ~changed).sum()),
    }


logger = logging.getLogger(__name__)

POINT = ["number", *AXES]
SUMS = ["n_planted", "n_found", "n_discoveries", "n_false", "n_null", "n_null_small"]
CONFIDENCE = 0.95


@dataclass(frozen=True, repr=False)
class PowerAnalysis(Result):
    """What tests find in the experiments of a grid.

    Attributes
    ----------
    repeats
        A row for each experiment, method and cell type, see :func:`bdm.power.analysis.score_experiment`; ``n_points``
        and ``n_repeats`` are the size of the grid, and ``fdr`` is the limit of discoveries.
    """

    kind = "power"

    repeats: pd.DataFrame

    def __repr__(self) -> str:
        columns = [axis for axis in AXES if self.power[axis].nunique() > 1]
        shown = self.power[[*columns, "method", "n_cells", "power", "low", "high", "false_discovery_rate"]]
        return f"Power analysis of {self.power['number'].nunique()} experiments\n{shown.to_string(index=False)}"

    @property
    def power(self) -> pd.DataFrame:
        """Table with a row for each combination of values and each method.

        ``power`` is the share of planted genes that are found (of planted shifts for ``composition``), from ``low`` to
        ``high`` by 95% intervals. ``false_discovery_rate`` is the mean false discovery proportion (0 without
        discoveries) of the tests that are adjusted together, the genes of a cell type, over types, conditions and
        repeats, and ``false_discovery_error`` its standard error. ``small_p_values`` is the share of tests with
        p < 0.05 where nothing was planted. ``n_samples`` and ``n_cells`` are the cost of an experiment.
        """
        return summary(self.repeats, [*POINT, "fdr", "method"])

    @property
    def by_type(self) -> pd.DataFrame:
        """The table :attr:`power` for each cell type."""
        return summary(self.repeats, [*POINT, "fdr", "method", "cell_type"])

    def _write_tables(self, folder: Path) -> None:
        for name, table in {"power": self.power, "power_by_type": self.by_type, "repeats": self.repeats}.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")


def power_analysis(model: BranchedModel, design: Design | dict[str, Any] | Path | str) -> PowerAnalysis:
    """Simulate and test the experiments of a grid, the section ``power`` of a design."""
    checked = read_design(design)
    check_testable(checked)
    repeats = pd.concat(experiments(model, checked), ignore_index=True)
    warn_of_untested(repeats)
    return PowerAnalysis(repeats)


def warn_of_untested(repeats: pd.DataFrame) -> None:
    """Warn of cell types whose planted genes cannot be found, as too few samples have enough cells for a test."""
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


def experiments(model: BranchedModel, design: Design) -> Iterator[pd.DataFrame]:
    """Score the experiments of a grid, several at once."""
    points, power = list(points_of(design.power)), design.power
    size = {"n_points": len(points), "n_repeats": power.n_repeats, "fdr": power.fdr}
    with threads() as run:
        for point in points:
            values = [f"{axis} {getattr(point, axis):g}" for axis in AXES if getattr(point, axis) is not None]
            logger.info("%d of %d: %s", point.number + 1, len(points), ", ".join(values) or "the design")

            def scored(repeat: int, point: Point = point) -> pd.DataFrame:
                return score_experiment(model, design, point, repeat=repeat).assign(**size)

            yield from run(scored, range(power.n_repeats))


def check_testable(design: Design) -> None:
    """Raise an InputError if there is nothing to test in a design."""
    conditions = design.samples.conditions
    if len(conditions) < 2:
        raise InputError(
            f"samples.conditions has one condition, {conditions[0]}; a power analysis compares two or more, the first "
            "of which is the reference."
        )
    for name, values in (design.samples.covariates or {}).items():
        if isinstance(values, dict):
            raise InputError(
                f"samples.covariates.{name} differs between samples, so that all genes change and none is null; give "
                "one value for all samples, or test the cells of bdm simulate."
            )
    donors = design.power.donors or [design.samples.donors_in(condition) for condition in conditions]
    if min(donors) < 2:
        raise InputError(
            "samples.donors is 1 in a condition; tests need 2 or more, as differences between donors are not known "
            "from one."
        )
    if not design.changes and not design.composition.shifts:
        raise InputError("there is nothing to find; give changes of expression, or composition.shifts.")
    if design.changes and not methods_of(design):
        raise InputError("power.methods is empty, but there are changes of expression; name a test, such as deseq2.")
    if any(name.startswith("deseq2") for name in methods_of(design)):
        deseq2_test()
    if design.power.log2_fold_change and not design.changes:
        raise InputError("power.log2_fold_change needs changes of expression, of which there are none.")
    if design.power.log_odds and not design.composition.shifts:
        raise InputError("power.log_odds needs composition.shifts, of which there are none.")


def summary(repeats: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Average experiments over repeats, by some columns."""
    own = [column for column in by if column != "cell_type"]
    cost = repeats.groupby(own, dropna=False, sort=False)[["n_samples", "n_cells"]].mean().round()
    with_proportion = repeats.assign(false_proportion=false_proportion(repeats))
    rows = []
    for key, table in with_proportion.groupby(by, dropna=False, sort=False):
        by_repeat = table.groupby("repeat")
        repeats_of, proportion = by_repeat[SUMS].sum(), by_repeat["false_proportion"].mean()
        total, mean = repeats_of.sum(), repeats_of.mean()
        low, high = interval(repeats_of["n_found"].to_numpy(), repeats_of["n_planted"].to_numpy())
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
                "n_repeats": len(repeats_of),
            }
        )
    return pd.DataFrame(rows).merge(cost.reset_index(), on=own, how="left")


def false_proportion(repeats: pd.DataFrame) -> pd.Series:
    """Compute the false discovery proportion of tests adjusted together; NaN if all of them were planted."""
    together = repeats["cell_type"].where(repeats["method"] != COMPOSITION, COMPOSITION)  # types, in tests of shares
    family = [*(repeats[column] for column in ("number", "repeat", "condition", "method")), together]
    total = repeats[["n_false", "n_discoveries", "n_null"]].groupby(family, sort=False).transform("sum")
    return (total["n_false"] / total["n_discoveries"].clip(lower=1)).where(total["n_null"] > 0)


def interval(found: np.ndarray, planted: np.ndarray) -> tuple[float, float]:
    """Wilson's interval of a share; genes of one experiment count as fewer if repeats differ by more than chance."""
    total = planted.sum()
    if not total:
        return np.nan, np.nan
    share, z = found.sum() / total, norm.ppf((1 + CONFIDENCE) / 2)
    binomial = share * (1 - share) / total
    effect = 1.0
    if len(found) > 1 and binomial and planted.all():
        effect = max(np.var(found / planted, ddof=1) / len(found) / binomial, 1.0)
    n = total / effect
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    width = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float(max(centre - width, 0)), float(min(centre + width, 1))
