"""Kernels between conditions, by features of perturbations, doses, and the parts of combinations.

A condition is a perturbation, or a combination of several (its parts), each with a dose; doses are 1 if there are none.
For conditions c and d,

    K(c, d) = (n_c n_d)**-a sum over parts p of c, q of d of A(p, q) D(c_p, d_q),

where n_c is the number of parts of c, and c_p the dose of p. A relates perturbations by a set or by numbers that a user
names; the identity only relates conditions with the same perturbation. With a = 0 the effects of parts add up, with
a = 1 a combination has their mean. D is the covariance of dose curves that are 0 at the control, or smooth in
the log dose; without doses it is 1.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from bdm._core.errors import InputError, abbreviated, error_prefix
from bdm._core.files import reading
from bdm._core.validation import nearest_or, shown
from bdm.applications.relations.condition_names import doses_of

logger = logging.getLogger(__name__)

EXPONENTS = (0.0, 0.5, 1.0)  # candidates for a
LENGTHS = (0.3, 1.0)  # length scales of smooth dose curves; the largest dose is at 1, the control at 0
# Names of sets of features that no column has, as a prefix before a colon is not empty
ALL_SETS = ":all sets"  # the responses to sets add up
NUMBERS = ":numbers"  # all columns of numbers together
LENGTHS_OF_NUMBERS = (0.5, 1.0, 2.0)  # of smooth functions, in standard deviations of each number
N_EC50 = 3  # half-maximal doses of saturating curves, from the smallest dose to the largest


Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]  # kernel between doses


@dataclass(frozen=True)
class ConditionKernel:
    """Candidate kernel between conditions."""

    feature: str  # name of the set of features; empty for the parts alone
    without: str | None  # perturbation that does not follow the set; None for all without cells, empty for none
    values: np.ndarray | None  # F of A = F F', parts x columns; None for the identity
    exponent: float  # a
    curve: Curve  # D
    scale: float = 1.0  # mean of the diagonal, over the conditions of the cells that the kernel relates
    matrix: np.ndarray = field(default_factory=lambda: np.empty(0))  # between the conditions of the cells

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the kernel between conditions by the doses of their parts, each conditions x parts."""
        (row, part), (column, other) = left.nonzero(), right.nonzero()
        same = np.equal.outer(part, other) if self.values is None else self.values[part] @ self.values[other].T
        each = same * self.curve(left[row, part], right[column, other])
        sums = np.add.reduceat(np.add.reduceat(each, starts_of(row), axis=0), starts_of(column), axis=1)
        n = np.outer(np.count_nonzero(left, axis=1), np.count_nonzero(right, axis=1))
        return np.asarray(sums / n**self.exponent / self.scale)

    def scaled(self, dose: np.ndarray) -> Self:
        """Scale the kernel to a mean diagonal of 1 over conditions of the cells, and keep its matrix between them."""
        matrix = self(dose, dose)
        diagonal = np.diag(matrix)
        scale = float(diagonal[diagonal > 0].mean()) if diagonal.any() else 1.0
        return replace(self, scale=scale, matrix=matrix / scale)


@dataclass(frozen=True)
class RelatedConditions:
    """Perturbations, doses and features of conditions."""

    conditions: tuple[str, ...]  # the conditions of the cells without the control
    parts: tuple[str, ...]  # single perturbations of the cells or the table of features, sorted
    dose: np.ndarray  # conditions x parts; 0 of perturbations that are no part, 1 of parts without doses
    features: pd.DataFrame  # parts x features; without columns if there is no table, NaN for parts that it lacks
    limits: pd.DataFrame  # lowest and highest measured value of each feature that is a number, also in the control
    separator: str | None  # joins the parts of a combination in its name
    is_dosed: bool
    expanded: tuple[str, ...] = ()  # sets of features that have further kernels, each without one member

    @classmethod
    def from_names(
        cls,
        names: Sequence[str],
        *,
        features: pd.DataFrame | None,
        separator: str | None,
        dosed: bool,
        control: str | None = None,
    ) -> Self:
        """Relate the conditions ``names`` of the cells, without the control.

        Perturbations that only ``features`` has become parts, so that they can be predicted. The control is no part:
        "KLF1+ctrl" is KLF1 alone.
        """
        parsed = [doses_of(name, separator, dosed=dosed, control=control) for name in names]
        known = {part for doses in parsed for part in doses}
        table = pd.DataFrame() if features is None else features.drop(index=[control], errors="ignore")
        if features is not None:
            check_perturbations(table.index, known, separator)
        index = pd.Index(sorted(known.union(table.index)), dtype=str)
        dose = np.array([[doses.get(part, 0.0) for part in index] for doses in parsed])
        table, has_part = table.reindex(index).astype(float), dose > 0
        numbers = [*numbers_of(table)]
        measured = pd.DataFrame(has_part @ table[numbers].fillna(0).to_numpy(), columns=numbers)
        measured = measured[(has_part @ table.notna().all(axis=1).to_numpy()) == has_part.sum(axis=1)]
        if features is not None and control in features.index:
            measured = pd.concat([measured, features.loc[[control], numbers]])
        limits = pd.DataFrame([measured.min(), measured.max()])
        return cls(tuple(names), tuple(index), dose, table, limits, separator, dosed)

    @property
    def has_part(self) -> np.ndarray:
        """Whether each condition has each part."""
        return self.dose > 0

    def place(self, condition: str) -> np.ndarray:
        """Return the doses of the parts of a condition, measured or not, 1 x parts; reject unknown parts."""
        if condition in self.conditions:
            return self.dose[[self.conditions.index(condition)]]
        doses = doses_of(condition, self.separator, dosed=self.is_dosed)
        for part in sorted({*doses}.difference(self.parts)):
            remedy = nearest_or(part, self.parts, f"there are {abbreviated(self.parts, n_shown=10)}.")
            raise InputError(f"Neither cells nor features have the perturbation {part!r}; {remedy}")
        place = np.array([[doses.get(part, 0.0) for part in self.parts]])
        if (same := (self.dose == place).all(axis=1)).any():
            raise InputError(f"There is no condition {condition!r}; did you mean {self.conditions[same.argmax()]!r}?")
        return place

    def extrapolation(self, condition: str) -> str | None:
        """Describe how a condition is beyond the measured ones by its dose or by a number among its features.

        The dose of each part is compared with the doses of the same perturbation, alone or in combinations, or of all
        if it has no measured dose. All doses down to the control, which has a dose of 0, are between measured ones.
        """
        dose = self.place(condition)[0]
        for part in np.flatnonzero(dose):
            highest = float(self.dose[:, part].max() or self.dose.max())
            if dose[part] > highest:
                of_part = f"{self.parts[part]!r} in " if np.count_nonzero(dose) > 1 else ""
                return f"the dose of {of_part}{condition!r} is above the measured doses, up to {highest:g}"
        for name, (low, high) in self.limits.items():
            value = float((dose > 0) @ self.values[str(name)])
            if not low - 1e-9 <= value <= high + 1e-9:
                return f"{name!r} of {condition!r} is {value:g}, but that of measured conditions is {low:g} to {high:g}"
        return None

    @property
    def values(self) -> pd.DataFrame:
        """Features, 0 for parts without them."""
        return self.features.fillna(0.0)

    @cached_property
    def kernels(self) -> list[ConditionKernel]:
        """Candidate kernels.

        Sets in ``expanded`` also have a candidate without each of their members: that this member does not respond as
        the others do. Candidates without the members that no cell has come last; cells cannot tell them from the set.
        """
        exponents = EXPONENTS if self.has_part.sum(axis=1).max() > 1 else EXPONENTS[:1]
        curves = dose_curves(self.dose[self.has_part]) if self.is_dosed else [curve(np.ones_like, np.multiply)]
        candidates: list[tuple[str, str | None, np.ndarray | None]] = [*self.part_features]
        if (self.has_part.sum(axis=0) > 1).any():
            candidates.insert(0, ("", "", None))
        kernels: list[ConditionKernel] = []
        for candidate in candidates:
            alike: list[ConditionKernel] = []
            for each in product(exponents, curves):
                kernel = ConditionKernel(*candidate, *each).scaled(self.dose)
                if kernel.matrix.any() and not any(np.allclose(kernel.matrix, known.matrix) for known in alike):
                    alike.append(kernel)
            kernels += alike
        return sorted(kernels, key=lambda kernel: kernel.without is None)

    @property
    def part_features(self) -> list[tuple[str, str | None, np.ndarray]]:
        """Each set, the member that it lacks (see :class:`ConditionKernel`), and its features F, parts x columns.

        The kernel between parts is A = F F'.

        Columns with a prefix in common, such as "embedding:1" and "embedding:2", form a set with cosines of their rows.
        Binary columns are sets of their own, too, and all of them together are a set of features.
        """
        candidates: list[tuple[str, str | None, np.ndarray]] = []
        joined: dict[str, list[str]] = {}  # columns by the prefix before a colon
        for name in self.features:
            joined.setdefault(name.partition(":")[0], []).append(name)
        is_measured: np.ndarray = np.asarray(self.has_part.any(axis=0))
        table = self.values
        binary = [name for name in table if is_binary(table[name].to_numpy())]
        if len(binary) > 1:
            candidates.append((ALL_SETS, "", table[binary].to_numpy()))
        candidates += [(NUMBERS, "", values) for values in self.functions_of_numbers(is_measured)]
        for prefix, names in joined.items():
            columns = table[names].to_numpy()
            if len(names) > 1:
                candidates.append((prefix, "", unit_rows(columns)))
            for name, column in zip(names, columns.T, strict=True):
                if len(names) == 1 or is_binary(column):
                    candidates.append((name, "", column[:, None]))
                if is_binary(column) and (column > is_measured).any():
                    candidates.append((name, None, (column * is_measured)[:, None]))
                for row in np.flatnonzero(column * is_measured) if is_binary(column) and name in self.expanded else ():
                    others = np.where(np.arange(len(column)) == row, 0, column)
                    candidates.append((name, self.parts[row], others[:, None]))
        unique = dict[tuple[bool, bytes], tuple[str, str | None, np.ndarray]]()
        for feature, without, values in candidates:
            is_set = values.any(axis=1).sum() > 1  # one perturbation alone relates nothing
            if is_set or without is None:
                unique.setdefault((without is None, values.tobytes()), (feature, without, values))
        return [*unique.values()]

    def functions_of_numbers(self, is_measured: np.ndarray) -> list[np.ndarray]:
        """Return bases of linear and of smooth functions of all numbers together, parts x columns each."""
        known = self.features.notna().all(axis=1).to_numpy()
        if not len(self.limits.columns) or (known & is_measured).sum() < 2:
            return []
        table = self.values[self.limits.columns].to_numpy()
        z = standardised(table, table[known & is_measured])
        distance = ((z[:, None] - z) ** 2).mean(axis=2)
        kernels = [np.exp(-distance / (2 * length**2)) for length in LENGTHS_OF_NUMBERS]
        linear = np.hstack([np.ones((len(z), 1)), z])
        return [values * known[:, None] for values in (linear, *map(square_root, kernels))]

    def own_transcripts(self, genes: pd.Index, places: np.ndarray) -> np.ndarray:
        """Count the parts that are named as the gene, genes x conditions."""
        rows = pd.Index(self.parts).get_indexer(genes)
        return np.where(rows[:, None] < 0, 0.0, places.T[rows] > 0)

    def simple_weights(self, method: str, place: np.ndarray | None = None) -> np.ndarray:
        """Weigh the conditions of the cells in a simple prediction of a new one (1 x conditions), or of each other.

        By the method ``"the mean"``, all have the same weight. By ``"the nearest"``, a combination is the sum of its
        parts if each was measured alone. Otherwise its prediction is the nearest dose of the same parts, else the
        condition with the most similar features (cosine; with columns of numbers, the smallest distance), else
        unchanged cells, as a row of zeros. Equally near conditions have equal weights.
        """
        places = self.dose if place is None else place
        others = ~np.eye(len(self.dose), dtype=bool) if place is None else np.ones((1, len(self.dose)), dtype=bool)
        if method == "the mean":
            return np.asarray(others / np.maximum(others.sum(axis=1, keepdims=True), 1))
        similarity, weights = self.similarity(places), np.zeros(others.shape)
        with np.errstate(divide="ignore"):
            log_dose = np.log(self.dose)
        mean_dose = np.array([np.log(dose[dose > 0]).mean() for dose in self.dose])
        is_single = self.has_part.sum(axis=1) == 1
        for row, dose in enumerate(places):
            parts, other = np.flatnonzero(dose), others[row]
            difference = np.abs(log_dose[:, parts] - np.log(dose[parts]))
            alone = [other & is_single & self.has_part[:, part] for part in parts]
            same = other & (self.has_part == (dose > 0)).all(axis=1)
            nearest = [(same, difference.sum(axis=1))]
            if len(parts) > 1 and all(candidates.any() for candidates in alone):
                nearest = [*zip(alone, difference.T, strict=True)]
            elif not same.any():
                alike = np.isclose(similarity[row], similarity[row, other].max(initial=0))
                nearest = [(other & (similarity[row] > 0) & alike, np.abs(mean_dose - np.log(dose[parts]).mean()))]
            for candidates, distance in nearest:
                distance = np.where(candidates, distance, np.inf)
                is_nearest = candidates & np.isclose(distance, distance.min())
                weights[row] += is_nearest / max(is_nearest.sum(), 1)
        return weights

    def similarity(self, places: np.ndarray) -> np.ndarray:
        """Compare the features of places with the conditions of the cells, by cosine or distance of numbers."""
        table = self.values.to_numpy()
        if len(self.limits.columns):
            z, known = ((each > 0) @ table for each in (places, self.dose))
            z, known = (standardised(each, known) for each in (z, known))
            return np.asarray(1 / (1 + ((z[:, None] - known) ** 2).sum(axis=2)))
        scale = [1.0 if is_binary(column) else np.sqrt((column**2).mean()) for column in table.T]
        features, known = (unit_rows((each > 0) @ (table / scale)) for each in (places, self.dose))
        return np.asarray(features @ known.T)


def curve(scale: Callable[[np.ndarray], np.ndarray], kernel: Curve) -> Curve:
    """Return a kernel of doses on another scale."""
    return lambda left, right: kernel(scale(left)[:, None], scale(right))


def smooth(length: float) -> Curve:
    """Return a squared exponential kernel."""
    return lambda left, right: np.exp(-((left - right) ** 2) / (2 * length**2))


def smooth_from_control(length: float) -> Curve:
    """Return a smooth kernel that is 0 at the control."""
    return lambda left, right: left * right * smooth(length)(left, right)


def dose_curves(dose: np.ndarray) -> list[Curve]:
    """Return candidate kernels between doses, by the range of measured doses."""
    lowest, highest = dose.min(), dose.max()

    def level(dose: np.ndarray) -> np.ndarray:
        return np.asarray(np.log1p(dose / lowest) / np.log1p(highest / lowest))

    def log_dose(dose: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(dose / lowest) / max(np.log(highest / lowest), 1e-12))

    def saturating(ec50: float) -> Curve:
        return curve(lambda dose: dose / (dose + ec50), np.multiply)

    of_level: list[Curve] = [np.minimum, *map(smooth_from_control, LENGTHS)]
    bell_shaped, linear = curve(log_dose, smooth(LENGTHS[0])), curve(level, np.multiply)
    of_control = [curve(level, each) for each in of_level]
    return [*of_control, bell_shaped, linear, *map(saturating, np.geomspace(lowest, highest, N_EC50))]


def starts_of(group: np.ndarray) -> np.ndarray:
    """Return the first row of each group of equal consecutive numbers."""
    return np.flatnonzero(np.diff(group, prepend=-1))


def check_perturbations(perturbations: pd.Index, known: Collection[str], separator: str | None) -> None:
    """Check rows of features, and log how they differ from the ``known`` perturbations."""
    for name in perturbations:
        if separator is not None and separator in name:
            raise InputError(f"The features have the combination {name!r}; give features of its parts instead.")
    if not perturbations.isin([*known]).any():
        cells, rows = abbreviated(sorted(known)), abbreviated(perturbations)
        raise InputError(f"The features have no perturbation of the cells ({cells}); name their rows ({rows}) alike.")
    if without_features := sorted(set(known).difference(perturbations)):
        logger.warning("Perturbations of the cells without features: %s.", abbreviated(without_features))
    if without_cells := sorted(set(perturbations).difference(known)):
        logger.info("Perturbations with features but no cells, which can be predicted: %s.", abbreviated(without_cells))


def is_binary(column: np.ndarray) -> bool:
    """Return whether a column is the membership of a set."""
    return bool(np.isin(column, (0, 1)).all())


def numbers_of(features: pd.DataFrame) -> Iterator[str]:
    """Yield the columns of numbers that are no part of an embedding, whose columns have a prefix in common."""
    prefixes = pd.Series([name.partition(":")[0] for name in features], dtype=str)
    for name, is_alone in zip(features, ~prefixes.duplicated(keep=False), strict=True):
        if is_alone and not is_binary(features[name].dropna().to_numpy()):
            yield str(name)


def standardised(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Standardise columns by the mean and standard deviation of known rows; constant ones are only centred."""
    spread = known.std(axis=0)
    return np.asarray((values - known.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0))


def square_root(kernel: np.ndarray) -> np.ndarray:
    """Return a matrix L with L L' equal to a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(kernel)
    kept = values > 1e-6
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; rows of zeros stay."""
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))


def read_features(features: pd.DataFrame | Path | str) -> pd.DataFrame:
    """Read features, perturbations x features, and check their values.

    A CSV file has the perturbations in its first column.
    """
    place, table = "features", features
    if not isinstance(table, pd.DataFrame):
        place = str(features)
        with reading(Path(place), "a CSV table"):
            cells = pd.read_csv(place, header=None, dtype=str, keep_default_na=False)  # keeps names of repeated columns
        table = cells.iloc[1:, 1:].set_axis(cells.iloc[1:, 0]).set_axis(cells.iloc[0, 1:], axis=1)
    rows, columns = pd.Index(table.index.map(str), name=None), pd.Index(table.columns.map(str), name=None)
    values = np.empty(table.shape)
    with error_prefix(place):
        if table.empty:
            raise InputError("it is empty; give a row for each perturbation, and a column for each feature.")
        for kind, names in {"row": rows, "column": columns}.items():
            if names.has_duplicates:
                raise InputError(f"it has the {kind} {names[names.duplicated()][0]!r} twice; keep one.")
        for i, name in enumerate(columns):
            column = table.iloc[:, i].astype(object)
            values[:, i] = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
            if len(wrong := np.flatnonzero(~np.isfinite(values[:, i]))):
                value = shown(column.iloc[wrong[0]]) if str(column.iloc[wrong[0]]) else "missing"
                raise InputError(f"{name!r} of {rows[wrong[0]]!r} is {value}, but must be a finite number.")
            if np.ptp(values[:, i]) == 0:
                raise InputError(f"{name!r} is the same for all perturbations; leave this column out.")
    return pd.DataFrame(values, rows, columns)
