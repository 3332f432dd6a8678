"""Power analyses: the tests of all experiments of a grid, in memory and as tables."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from bdm._core.parallel import threads
from bdm.design.settings import AXES, Design, read_design
from bdm.errors import InputError
from bdm.model.model import BranchedModel
from bdm.power.grid import Point, methods_of, points_of, score_experiment
from bdm.power.tests import deseq2_test

logger = logging.getLogger(__name__)

TABLES = {"power": "power.csv", "by_type": "power_by_type.csv", "repeats": "repeats.csv"}
POINT = ["number", *AXES]
SUMS = ["n_planted", "n_found", "n_discoveries", "n_false", "n_null", "n_null_small"]
CONFIDENCE = 0.95


@dataclass(frozen=True, repr=False)
class PowerAnalysis:
    """What tests find in the experiments of a grid.

    Attributes
    ----------
    repeats
        A row for each experiment, method and cell type, see :func:`bdm.power.grid.score_experiment`; ``n_points`` and
        ``n_repeats`` are the size of the grid, and ``fdr`` is the limit of discoveries.
    """

    repeats: pd.DataFrame

    def __repr__(self) -> str:
        columns = [axis for axis in AXES if self.power[axis].nunique() > 1]
        shown = self.power[[*columns, "method", "n_cells", "power", "low", "high", "false_discovery_rate"]]
        return f"Power analysis of {self.power['number'].nunique()} experiments\n{shown.to_string(index=False)}"

    @property
    def power(self) -> pd.DataFrame:
        """Table with a row for each combination of values and each method.

        ``power`` is the share of planted genes that are found (of planted shifts for ``composition``), from ``low`` to
        ``high`` by 95% intervals; ``false_discovery_rate`` the mean share of false ones among the discoveries of an
        experiment, and ``small_p_values`` the share of tests with p < 0.05 where nothing was planted. ``n_samples`` and
        ``n_cells`` are the cost of an experiment.
        """
        return summary(self.repeats, [*POINT, "fdr", "method"])

    @property
    def by_type(self) -> pd.DataFrame:
        """The table :attr:`power` for each cell type."""
        return summary(self.repeats, [*POINT, "fdr", "method", "cell_type"])

    def save(self, folder: Path | str) -> None:
        """Write the tables into a folder, for :meth:`load`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, file in TABLES.items():
            getattr(self, name).to_csv(Path(folder) / file, index=False, float_format="%.6g")

    @classmethod
    def load(cls, folder: Path | str) -> "PowerAnalysis":
        """Read an analysis that ``bdm power`` or :meth:`save` wrote."""
        path = Path(folder) / TABLES["repeats"]
        if not path.is_file():
            raise InputError(f"{folder} has no file {path.name}; name a folder that bdm power wrote.")
        return cls(pd.read_csv(path))


def power_analysis(model: BranchedModel, design: Design | dict[str, Any] | Path | str) -> PowerAnalysis:
    """Simulate and test the experiments of a grid, the section ``power`` of a design."""
    checked = read_design(design)
    check_testable(checked)
    return PowerAnalysis(pd.concat(experiments(model, checked), ignore_index=True))


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
    of_repeat = repeats.groupby([*by, "repeat"], dropna=False, sort=False)[SUMS].sum()
    cost = repeats.groupby(own, dropna=False, sort=False)[["n_samples", "n_cells"]].mean().round()
    rows = []
    for key, of in of_repeat.groupby(level=by, dropna=False, sort=False):
        total, mean = of.sum(), of.mean()
        low, high = interval(of["n_found"].to_numpy(), of["n_planted"].to_numpy())
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "power": total["n_found"] / total["n_planted"] if total["n_planted"] else np.nan,
                "low": low,
                "high": high,
                "false_discovery_rate": (of["n_false"] / of["n_discoveries"].clip(lower=1)).mean(),
                "small_p_values": total["n_null_small"] / total["n_null"] if total["n_null"] else np.nan,
                "n_planted": mean["n_planted"],
                "n_discoveries": mean["n_discoveries"],
                "n_repeats": len(of),
            }
        )
    return pd.DataFrame(rows).merge(cost.reset_index(), on=own, how="left")


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
