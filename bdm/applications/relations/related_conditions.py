"""Kernels between conditions, by features of perturbations, doses, and the parts of combinations.

A condition is a perturbation, or a combination of several (its parts), at a dose. For conditions c and d,

    K(c, d) = D(dose_c, dose_d) (n_c n_d)**-a sum over parts p of c, q of d of A(p, q),

where n_c is the number of parts of c. A relates perturbations by a set or by numbers that a user names; the identity
only relates conditions with the same perturbation. With a = 0 the effects of parts add up, with a = 1 a combination
has their mean. D is the covariance of dose curves that are 0 at the control, or smooth in
the log dose; without doses it is 1.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from bdm._core.errors import InputError, abbreviated, error_prefix
from bdm._core.files import reading
from bdm._core.validation import SEPARATOR, nearest_or, shown

logger = logging.getLogger(__name__)

EXPONENTS = (0.0, 0.5, 1.0)  # candidates for a
LENGTHS = (0.3, 1.0)  # length scales of smooth dose curves; the largest dose is at 1, the control at 0
UNMEASURED = "unmeasured"
ALL_SETS = "all sets"  # the responses to sets add up
NUMBERS = "numbers"  # all columns of numbers together
LENGTHS_OF_NUMBERS = (0.5, 1.0, 2.0)  # of smooth functions, in standard deviations of each number
N_EC50 = 3  # half-maximal doses of saturating curves, from the smallest dose to the largest


@dataclass(frozen=True)
class ConditionKernel:
    """Candidate kernel between conditions."""

    feature: str  # name of the set of features; empty for the parts alone
    without: str  # perturbation that does not follow the set; UNMEASURED for all without cells, empty for none
    matrix: np.ndarray  # conditions x conditions, with a mean diagonal of 1 over the conditions that it relates


@dataclass(frozen=True)
class RelatedConditions:
    """Perturbations, doses and features of conditions."""

    conditions: tuple[str, ...]  # the conditions of the cells without the control, then those that `add` appended
    parts: tuple[str, ...]  # single perturbations of the cells or the table of features, sorted
    has_part: np.ndarray  # conditions x parts
    dose: np.ndarray  # of each condition; NaN without doses
    features: pd.DataFrame  # parts x features; without columns if there is no table, NaN for parts that it lacks
    limits: pd.DataFrame  # lowest and highest measured value of each feature that is a number, also in the control
    separator: str | None  # joins the parts of a combination in its name
    n_measured: int  # number of conditions of the cells

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

        Perturbations that only ``features`` has become parts, so that :meth:`add` knows them. The control is no part:
        "KLF1+ctrl" is KLF1 alone.
        """
        parsed = [parse_name(name, separator, dosed=dosed) for name in names]
        parsed = [(parts - {control} or parts, dose) for parts, dose in parsed]
        known = {part for parts, _ in parsed for part in parts}
        table = pd.DataFrame() if features is None else features.drop(index=[control], errors="ignore")
        if features is not None:
            check_perturbations(table.index, known, separator)
        index = pd.Index(sorted(known.union(table.index)), dtype=str)
        has_part = np.array([index.isin([*parts]) for parts, _ in parsed])
        dose = np.array([dose for _, dose in parsed])
        table = table.reindex(index).astype(float)
        numbers = [*numbers_of(table)]
        measured = pd.DataFrame(has_part @ table[numbers].fillna(0).to_numpy(), columns=numbers)
        measured = measured[(has_part @ table.notna().all(axis=1).to_numpy()) == has_part.sum(axis=1)]
        if features is not None and control in features.index:
            measured = pd.concat([measured, features.loc[[control], numbers]])
        limits = pd.DataFrame([measured.min(), measured.max()])
        return cls(tuple(names), tuple(index), has_part, dose, table, limits, separator, len(names))

    @property
    def is_dosed(self) -> bool:
        """Whether conditions have doses."""
        return bool(np.isfinite(self.dose).all())

    def add(self, condition: str) -> Self:
        """Append a condition that was not measured; return itself if it is known."""
        if condition in self.conditions:
            return self
        parts, dose = parse_name(condition, self.separator, dosed=self.is_dosed)
        for part in sorted(parts.difference(self.parts)):
            remedy = nearest_or(part, self.parts, f"there are {abbreviated(self.parts, n_shown=10)}.")
            raise InputError(f"Neither cells nor features have the perturbation {part!r}; {remedy}")
        has_part = [part in parts for part in self.parts]
        same = (self.has_part == has_part).all(axis=1) & ((self.dose == dose) | np.isnan(dose))
        if same.any():
            raise InputError(f"There is no condition {condition!r}; did you mean {self.conditions[same.argmax()]!r}?")
        return replace(
            self,
            conditions=(*self.conditions, condition),
            has_part=np.vstack([self.has_part, has_part]),
            dose=np.append(self.dose, dose),
        )

    def extrapolation(self, condition: str) -> str | None:
        """Describe how a condition is beyond the measured ones by its dose or by a number among its features.

        Doses are compared with those of the same perturbations, or of all if these have no measured dose. All doses
        down to the control, which has a dose of 0, are between measured ones.
        """
        row, measured = self.conditions.index(condition), np.arange(len(self.conditions)) < self.n_measured
        same = measured & (self.has_part == self.has_part[row]).all(axis=1)
        highest = float(self.dose[same if same.any() else measured].max())
        if self.dose[row] > highest:
            return f"the dose of {condition!r} is above the measured doses, up to {highest:g}"
        for name, (low, high) in self.limits.items():
            value = float(self.has_part[row] @ self.values[str(name)])
            if not low - 1e-9 <= value <= high + 1e-9:
                return f"{name!r} of {condition!r} is {value:g}, but that of measured conditions is {low:g} to {high:g}"
        return None

    @property
    def values(self) -> pd.DataFrame:
        """Features, 0 for parts without them."""
        return self.features.fillna(0.0)

    def kernels(self, expanded: Collection[str] = ()) -> list[ConditionKernel]:
        """Return candidate kernels; their number and scale do not depend on added conditions.

        Sets in ``expanded`` also have a candidate without each of their members: that this member does not respond as
        the others do. Candidates without the members that no cell has come last; cells cannot tell them from the set.
        """
        membership, n = self.has_part.astype(float), self.n_measured
        n_parts = membership.sum(axis=1, keepdims=True)
        exponents = EXPONENTS if n_parts[:n].max() > 1 else EXPONENTS[:1]
        candidates = [(*names, membership @ values) for *names, values in self.part_features(expanded)]
        if (membership[:n].sum(axis=0) > 1).any():
            candidates.insert(0, ("", "", membership))
        kernels: list[ConditionKernel] = []
        for feature, without, values in candidates:
            alike: list[np.ndarray] = []
            for exponent, curve in product(exponents, self.dose_kernels()):
                matrix = values @ values.T / (n_parts * n_parts.T) ** exponent * curve
                diagonal = np.diag(matrix)[:n]
                if not diagonal.any():
                    continue
                matrix /= diagonal[diagonal > 0].mean()
                if not any(np.allclose(matrix[:n, :n], known) for known in alike):
                    alike.append(matrix[:n, :n])
                    kernels.append(ConditionKernel(feature, without, matrix))
        return sorted(kernels, key=lambda kernel: kernel.without == UNMEASURED)

    def part_features(self, expanded: Collection[str]) -> list[tuple[str, str, np.ndarray]]:
        """Return each set, the member that it lacks, and its features F, parts x columns.

        The kernel between parts is A = F F'.

        Columns with a prefix in common, such as "embedding:1" and "embedding:2", form a set with cosines of their rows.
        Binary columns are sets of their own, too, and all of them together are a set of features.
        """
        candidates: list[tuple[str, str, np.ndarray]] = []
        joined: dict[str, list[str]] = {}  # columns by the prefix before a colon
        for name in self.features:
            joined.setdefault(name.partition(":")[0], []).append(name)
        is_measured: np.ndarray = np.asarray(self.has_part[: self.n_measured].any(axis=0))
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
                    candidates.append((name, UNMEASURED, (column * is_measured)[:, None]))
                for row in np.flatnonzero(column * is_measured) if is_binary(column) and name in expanded else ():
                    others = np.where(np.arange(len(column)) == row, 0, column)
                    candidates.append((name, self.parts[row], others[:, None]))
        unique = dict[tuple[bool, bytes], tuple[str, str, np.ndarray]]()
        for feature, without, values in candidates:
            is_set = values.any(axis=1).sum() > 1  # one perturbation alone relates nothing
            if is_set or without == UNMEASURED:
                unique.setdefault((without == UNMEASURED, values.tobytes()), (feature, without, values))
        return [*unique.values()]

    def functions_of_numbers(self, is_measured: np.ndarray) -> list[np.ndarray]:
        """Return bases of linear and of smooth functions of all numbers together, parts x columns each."""
        known = self.features.notna().all(axis=1).to_numpy()
        if not len(self.limits.columns) or (known & is_measured).sum() < 2:
            return []
        z = standardised(self.values[self.limits.columns].to_numpy(), known & is_measured)
        distance = ((z[:, None] - z) ** 2).mean(axis=2)
        kernels = [np.exp(-distance / (2 * length**2)) for length in LENGTHS_OF_NUMBERS]
        linear = np.hstack([np.ones((len(z), 1)), z])
        return [values * known[:, None] for values in (linear, *map(square_root, kernels))]

    def dose_kernels(self) -> list[np.ndarray]:
        """Return candidate kernels between doses, conditions x conditions."""
        if not self.is_dosed:
            return [np.ones((1, 1))]
        dose, known = self.dose, self.dose[: self.n_measured]
        lowest, highest = known.min(), known.max()
        z = np.log1p(dose / lowest) / np.log1p(highest / lowest)
        distance, linear = np.subtract.outer(z, z), np.outer(z, z)
        smooth = [linear * np.exp(-(distance**2) / (2 * length**2)) for length in LENGTHS]
        log_dose = np.log(dose / lowest) / max(np.log(highest / lowest), 1e-12)
        bell_shaped = np.exp(-(np.subtract.outer(log_dose, log_dose) ** 2) / (2 * LENGTHS[0] ** 2))
        saturating = [dose / (dose + ec50) for ec50 in np.geomspace(lowest, highest, N_EC50)]
        return [np.minimum.outer(z, z), *smooth, bell_shaped, linear, *(np.outer(curve, curve) for curve in saturating)]

    def own_transcripts(self, genes: Sequence[str]) -> np.ndarray:
        """Count the parts that are named as the gene, genes x conditions."""
        rows = pd.Index(self.parts).get_indexer(pd.Index(genes))
        return np.where(rows[:, None] < 0, 0.0, self.has_part.T[rows])

    def simple_weights(self, measured: np.ndarray, *, nearest: bool) -> np.ndarray:
        """Weigh the other ``measured`` conditions in the mean, or in the nearest prediction, conditions x measured."""
        is_measured, numbers = np.isin(np.arange(len(self.conditions)), measured), np.arange(len(self.conditions))
        if nearest:
            return self.baseline_weights(is_measured)[:, measured]
        others = (numbers[:, None] != measured).astype(float)
        return np.asarray(others / np.maximum(others.sum(axis=1, keepdims=True), 1))

    def baseline_weights(self, measured: np.ndarray) -> np.ndarray:
        """Weigh other conditions in the simplest prediction of each, conditions x conditions.

        Only ``measured`` conditions (a mask) have weights. A combination is the sum of its parts if each was measured
        alone. Otherwise its prediction is the nearest dose of the same parts, else the condition with the most similar
        features (cosine; with columns of numbers, the smallest distance), else unchanged cells, as a row of zeros.
        Equally near conditions have equal weights.
        """
        table = self.values.to_numpy()
        scale = [1.0 if is_binary(column) else np.sqrt((column**2).mean()) for column in table.T]
        features = unit_rows(self.has_part @ (table / scale))
        cosine, log_dose = features @ features.T, np.nan_to_num(np.log(self.dose))
        if len(self.limits.columns):
            z = standardised(self.has_part @ table, measured)
            cosine = 1 / (1 + ((z[:, None] - z) ** 2).sum(axis=2))
        weights, is_single = np.zeros(cosine.shape), self.has_part.sum(axis=1) == 1
        for row, has_part in enumerate(self.has_part):
            others = measured & (np.arange(len(measured)) != row)
            alone = [others & is_single & self.has_part[:, part] for part in np.flatnonzero(has_part)]
            same = others & (self.has_part == has_part).all(axis=1)
            similar = others & (cosine[row] > 0) & np.isclose(cosine[row], cosine[row, others].max(initial=0))
            is_sum = len(alone) > 1 and all(candidates.any() for candidates in alone)
            for candidates in alone if is_sum else [same if same.any() else similar]:
                distance = np.where(candidates, np.abs(log_dose - log_dose[row]), np.inf)
                is_nearest = candidates & np.isclose(distance, distance.min())
                weights[row] += is_nearest / max(is_nearest.sum(), 1)
        return weights


def dose_name(dose: float) -> str:
    """Return a dose with six digits, or as many as tell it from other numbers in single precision."""
    texts = (f"{dose:.{n_digits}g}" for n_digits in range(6, 10))
    return next((text for text in texts if np.float32(text) == np.float32(dose)), str(dose))


def separator_in(name: str, known: Collection[str]) -> str | None:
    """Return the text without letters and digits between two known names, such as "+" in "A+B"; else None."""
    pairs = product(filter(name.startswith, known), filter(name.endswith, known))
    between = (name[len(first) : len(name) - len(last)] for first, last in pairs)
    return next((text for text in between if text and not any(map(str.isalnum, text))), None)


def parse_name(name: str, separator: str | None, *, dosed: bool) -> tuple[frozenset[str], float]:
    """Return the parts of a condition and its dose, which is NaN without doses."""
    combination, dose = name, np.nan
    if dosed:
        combination, comma, text = name.rpartition(SEPARATOR)
        if not comma:
            raise InputError(f"Condition {name!r} has no dose; name it by `dose=`.")
        dose = float(pd.to_numeric(text, errors="coerce"))
        if not 0 < dose < np.inf:
            raise InputError(f"The dose of condition {name!r} must be a finite number above 0.")
    parts = frozenset([combination] if separator is None else map(str.strip, combination.split(separator)))
    if "" in parts:
        raise InputError(f"The combination {combination!r} has an empty part; name it on both sides of {separator!r}.")
    return parts, dose


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


def standardised(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Standardise columns by the mean and standard deviation of some rows; constant ones are only centred."""
    spread = values[rows].std(axis=0)
    return np.asarray((values - values[rows].mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0))


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
