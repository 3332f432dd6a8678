"""The table of scores: each score of each group and set of cells, with its floor and limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bdm.data.cells import FLOOR
from bdm.evaluation.metrics import Chance

LEVEL = 0.01  # probability that a score of a type of real cells exceeds its limit by chance
LEVEL_OF_ALL = 0.002  # the same for a score of all cells, or of all batches, all donors and so on, together
MIN_SCALE = 0.5  # of limits that are shares of the floor; a lower floor is mostly noise
MIN_CELLS = 10  # of a group, for a verdict
MANY_CELLS = 60  # of a group; with fewer, the relative energy distance is mostly noise, and a verdict warns

ALL, TYPE, POPULATION, COVARIATE = "all", "type", "sub_population", "covariate"
SPACE, MODALITY, BATCH, DONOR, SECTION = "space", "modality", "batch", "donor", "section"
OTHER_GENES = "other_genes"  # those that are not highly variable; the scores of other kinds are from these
KINDS = {  # of groups; those of the verdict on all cells, and their names where one is not checked
    ALL: "all cells",
    OTHER_GENES: "other genes",
    MODALITY: "modalities",
    BATCH: "batches",
    DONOR: "donors",
    SECTION: "sections",
    COVARIATE: "covariates",
    SPACE: "positions",
}
EVERY = "all"  # name of the group of a kind that has all cells
KEYS = ["kind", "group", "score"]
COLUMNS = ["kind", "group", "set", "score", "value", "floor", "first_limit", "second_limit"]
COLUMNS += ["error", "n_cells", "missing"]
SUFFIXES = ("_error", "_chance", "_skewness")  # of measured scores: standard error, and null distribution


@dataclass(frozen=True)
class Score:
    """Name of a score, its ideal, and limits of its excess over the floor.

    The limits are explained in ``reading_results.md``. The limits of the relative energy distance correspond to samples
    of 200 and 50 real cells: the distance of m cells to their population is ``1 / m``. The limits of AUCs correspond to
    shifts by 0.2 and 0.5 standard deviations, for which the best classifier has an AUC of 0.56 and 0.64.
    """

    name: str  # in figures, reports and verdicts
    ideal: float = np.nan  # expected score of a perfect model; NaN: the floor's
    same: float = np.nan  # maximum excess of cells that cannot be distinguished from real ones; NaN: not judged
    near: float = np.nan  # maximum excess of cells that are nearly like real ones
    chance: float = np.nan  # the excess of n real cells has a standard deviation of about chance / n**power
    power: float = 0.5
    higher: bool = True  # whether a higher score is worse
    relative: bool = False  # whether the limits are shares of the floor
    deviation_of: str = "set"  # whose standard deviation is that of the excess: "set", "floor" or "both"
    needs: str = "two cells"  # where it has no value
    about: str = ""

    @property
    def judged(self) -> bool:
        """Whether the score has limits."""
        return bool(np.isfinite(self.same))

    @property
    def title(self) -> str:
        """Name in headings and columns."""
        return self.name[0].upper() + self.name[1:]

    def base(self, floor: float) -> float:
        """Return the score from which the excess is measured: the floor, or the ideal if chance makes it better."""
        return float(np.fmax(floor, self.ideal) if self.higher else np.fmin(floor, self.ideal))

    def excess(self, value: float, floor: float) -> float:
        """Return how much worse a score is than both floor and ideal."""
        return value - self.base(floor) if self.higher else self.base(floor) - value

    def limits(self, floor: float, chance: float) -> tuple[float, float]:
        """Return the scores at the two limits, which are at least the largest excess by chance."""
        scale, sign = (max(floor, MIN_SCALE) if self.relative else 1.0), (1 if self.higher else -1)
        first, second = (self.base(floor) + sign * max(scale * limit, chance) for limit in (self.same, self.near))
        return first, second

    def null(self, n_cells: float, deviation: float, floor_deviation: float, skewness: float) -> Chance:
        """Return the null distribution of the excess; an unknown deviation is approximated by the number of cells."""
        known = {"set": deviation, "floor": floor_deviation, "both": np.hypot(deviation, floor_deviation)}
        if not np.isfinite(chance := known[self.deviation_of]):
            return Chance(self.chance / max(n_cells, 1) ** self.power)
        return Chance(float(chance), float(np.nan_to_num(skewness)))


def auc_score(name: str, about: str = "", chance: float = 0.48) -> Score:
    """Return a judged AUC."""
    return Score(name, 0.5, 0.06, 0.14, chance, about=about)


def correlation_score(name: str, about: str = "", *, needs: str) -> Score:
    """Return a judged correlation, whose standard deviation is the floor's, see :class:`Agreement`."""
    return Score(name, 1, 0.05, 0.15, 0.4, higher=False, deviation_of="floor", needs=needs, about=about)


def slope_score(name: str, about: str = "", **options: Any) -> Score:
    """Return a judged slope, whose limits are shares of the floor's."""
    return Score(name, 1, 0.2, 0.5, 0.4, higher=False, relative=True, about=about, **options)


TYPES, GENES_IN_SPACE = "two cell types", "genes that vary in space"
SCORES: dict[str, Score] = {
    "energy": Score("energy distance", 0),
    "relative_energy": Score(
        *("relative energy distance", 0, 0.005, 0.02, 0.4, 1),
        about="Energy distance to test cells of a type, relative to the distance between two such cells.",
    ),
    "mmd": Score("MMD²", 0),
    "forest_auc": auc_score(
        "forest AUC", "How well a random forest on principal components separates generated from test cells."
    ),
    "gene_auc": auc_score("gene AUC", "The same for a logistic regression on all genes."),
    "slope": Score("slope of log fold changes", 1, needs=TYPES),
    "fold_change_correlation": correlation_score(
        "correlation of log fold changes",
        "Correlation of the log fold changes of marker genes with those in test cells.",
        needs=TYPES,
    ),
    "f1": Score(
        *("F1 of cell typing", 1, 0.05, 0.15, 0.35),
        higher=False,
        deviation_of="floor",
        needs=TYPES,
        about="How well a classifier of cell types that was trained on these cells labels test cells (F1).",
    ),
    "memorisation": Score(
        *("memorisation", 0.5, 0.15, 0.25, 1.0),
        deviation_of="both",
        about="Share of cells nearer to a training cell than to a test cell; 0.5 without memorisation.",
    ),
    "outlying_counts": Score("outlying counts per 1,000 cells"),
    "pair_correlation": Score("r of gene-gene correlations", 1),
    "gene_correlation": Score("r of gene-gene correlations within types", 1, needs="150 cells of a type"),
    "variance_ratio": Score("variance ratio of counts", 1, needs="30 cells of a type with a mean count of 1"),
    "library_size_ks": Score("KS of library sizes", 0),
    "share": Score("share of the type's cells"),
    # by batch, donor and section
    "library_size_auc": auc_score(
        "AUC by library size", "How well library size alone separates generated from test cells of a type.", 0.45
    ),
    "group_slope": slope_score(
        "slope of log fold changes",
        "Log fold changes between groups within a type, relative to test cells.",
        needs="ten cells of a type in two groups",
    ),
    "donor_slope": Score(
        *("resemblance of one donor", 0, 0.15, 0.35, 0.4),
        needs="ten cells of a type in two donors",
        about="Largest slope of log fold changes from training cells on those of one donor; 1 for cells of this donor.",
    ),
    # by modality
    "feature_auc": auc_score("AUC by all features", "The same for a logistic regression on all features.", 0.6),
    "feature_correlation": correlation_score(
        "correlations with genes: r",
        "Agreement with test cells in the correlations of proteins and peaks with their most related genes.",
        needs="features that vary",
    ),
    "feature_slope": Score("correlations with genes: slope", 1),
    # in space
    "moran_correlation": correlation_score(
        "Moran's I: r", "Agreement with real cells in Moran's I, over genes.", needs=GENES_IN_SPACE
    ),
    "moran_slope": slope_score(
        "Moran's I: slope", "Whether Moran's I is as high.", needs=GENES_IN_SPACE, deviation_of="floor"
    ),
    "moran_mean": Score("Moran's I: mean", needs=GENES_IN_SPACE),
    "moran_mean_real": Score("Moran's I: mean in real cells", needs=GENES_IN_SPACE),
    "moran_within_correlation": correlation_score(
        "Moran's I within types: r", "The same among neighbours of a type.", needs="types of 50 cells"
    ),
    "moran_within_slope": slope_score(
        "Moran's I within types: slope", "The same within types.", needs="types of 50 cells", deviation_of="floor"
    ),
    "moran_within_mean": Score("Moran's I within types: mean", needs="types of 50 cells"),
    "moran_within_mean_real": Score("Moran's I within types: mean in real cells", needs="types of 50 cells"),
    "neighbourhood_distance": Score(
        *("types of neighbours: distance", 0, 0.05, 0.15, 0.5),
        needs=TYPES,
        about="Total variation distance between the types of a cell's neighbours and those in real cells.",
    ),
    "neighbourhood_distance_permuted": Score("types of neighbours: distance at random positions", needs=TYPES),
    # of transmuted cells
    "mean_r2": Score("R² of mean expression", 1),
    "variance_r2": Score("R² of variances", 1),
    "sign": Score("genes that change in the right direction", 1),
    "library_kept": Score("correlation of library sizes before and after", 1),
    "variation_kept": Score("correlation of the variation before and after", 1),
}
JUDGED = {name: score for name, score in SCORES.items() if score.judged}

Row = dict[str, Any]


def floor_of(name: str) -> str:
    """Return the name of the floor of one set, which has as many cells."""
    return f"{FLOOR} of {name}"


def score_rows(scores: Mapping[str, float], **where: Any) -> Iterator[Row]:
    """Yield a row per score, with ``where`` (kind, group, set, n_cells); :data:`SUFFIXES` become columns."""
    for name, value in scores.items():
        if not name.endswith(SUFFIXES):
            columns = {suffix[1:]: scores.get(name + suffix, np.nan) for suffix in SUFFIXES}
            yield {**where, "score": name, "value": value, **columns}


def missing_row(kind: str, set: str, score: str, missing: str, *, group: str = EVERY, n_cells: int = 0) -> Row:
    """Return a row of a group without scores."""
    return {"kind": kind, "group": group, "set": set, "score": score, "n_cells": n_cells, "missing": missing}


def score_table(rows: Iterable[Row], sets: list[str]) -> pd.DataFrame:
    """Average rows over resamples, and add the floor and limits of each score of ``sets``.

    Returns the columns :data:`COLUMNS`. Rows of the set :data:`FLOOR`, or :func:`floor_of` a set, are the floors.
    """
    numbers = ["value", "error", "chance", "skewness", "n_cells"]
    table = pd.DataFrame(rows, columns=[*KEYS, "set", *numbers, "missing"])
    table = table.astype(dict.fromkeys(numbers, float))
    grouped = table.groupby([*KEYS, "set"], sort=False)
    averaged = grouped[numbers].mean().assign(missing=grouped["missing"].first()).reset_index("set")
    floors = averaged[["set", "value", "chance"]].rename(columns={"value": "floor", "chance": "floor_chance"})
    by_set = dict(iter(averaged.groupby("set", sort=False)))
    keys = averaged.index.unique()
    tables = [averaged[:0].assign(floor=np.nan, floor_chance=np.nan).reset_index()]
    for name in sets:
        own, shared = (floors[floors["set"] == key].drop(columns="set") for key in (floor_of(name), FLOOR))
        scored = by_set.get(name, averaged[:0])
        known = keys[keys.isin(scored.index) | keys.isin(own.index.union(shared.index))]
        rows_of_set = scored.reindex(known).assign(set=name)
        tables.append(rows_of_set.join(own.reindex(known).combine_first(shared.reindex(known))).reset_index())
    table = pd.concat(tables, ignore_index=True)
    needs = table["score"].map(lambda name: f"needs {SCORES[name].needs}" if name in SCORES else "")
    table["missing"] = (
        table["missing"].where(table["missing"].notna(), needs).where(table["value"].isna(), "").astype(str)
    )
    table["n_cells"] = table["n_cells"].fillna(0.0)
    n_groups = table[table["score"].isin(JUDGED)].groupby(["kind", "set", "score"])["value"].count()
    limits = []
    for row in table.to_dict("records"):
        limits.append((np.nan, np.nan))
        if row["score"] in JUDGED and np.isfinite(row["value"]) and np.isfinite(row["floor"]):
            score, of_type = JUDGED[row["score"]], row["kind"] in (TYPE, POPULATION)
            null = score.null(row["n_cells"], row["chance"], row["floor_chance"], row["skewness"])
            level = LEVEL if of_type else LEVEL_OF_ALL / n_groups[row["kind"], row["set"], row["score"]]
            limits[-1] = score.limits(row["floor"], null.largest(level))
    table[["first_limit", "second_limit"]] = np.array(limits, dtype=float).reshape(-1, 2)
    return table[COLUMNS]


def wide(table: pd.DataFrame, *index: str) -> pd.DataFrame:
    """Return scores x sets, or ``index`` x sets, with the floor of the first set that has one."""
    floor = table.groupby([*index], sort=False)["floor"].first().rename(FLOOR)
    values = table.set_index([*index, "set"])["value"].unstack("set")[list(table["set"].unique())]
    return pd.concat([floor, values.reindex(floor.index)], axis=1)
