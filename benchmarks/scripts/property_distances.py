"""Properties that benchmarks of simulators compare, and distances between sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import property_values as values
from differing_genes import GENE_TESTS, compare_genes
from property_values import BATCH, LABEL, Side
from scipy.spatial.distance import pdist
from sklearn.metrics import silhouette_samples

from bdm.data.cells import FLOOR, Cells, RealCells, TypedCells, sample_by_type, smaller_numbers
from bdm.data.modalities import has_modalities, modalities_of
from bdm.evaluation.metrics import (
    TINY,
    correlations,
    joint_components,
    kolmogorov_smirnov,
    pair_distances,
    variable_genes,
    zero_fraction,
)
from bdm.evaluation.resamples import (
    SIZE_LIMITS,
    ResampledCells,
    draw_resamples,
    match,
    sample_at_most,
    with_progress,
)
from bdm.settings import EvaluationSettings

KINDS = {
    "gene": "genes",
    "cell": "cells",
    "joint": "two values together",
    "biology": "genes that differ between cell types",
    "structure": "structure by cell type and batch",
    "use": "use in an analysis",
}
ALL = "all"  # group of all cells; groups of one cell type have LABEL
TEXTS = ["method", "property", "kind", "by", "group"]
COLUMNS = [*TEXTS, "n_cells", "value", "floor"]  # of the table of properties
MIN_CELLS_OF_GROUP = 10  # with fewer cells, distances are mostly noise
MAX_GROUPS = 50  # cell types with separate rows
MAX_COMPARED = 4000  # cells of a set in a resample
MAX_CELLS = 2000  # per side, for properties that need quadratic time
MAX_POINTS = 500  # per side, for distances in two dimensions
MIN_VALUES = 5  # per side


@dataclass(frozen=True)
class Property:
    """One property of cells, and how to compute it.

    Sets are compared by the Kolmogorov-Smirnov distance; pairs of values (``joint``) by the energy coefficient, and
    single values (``use``) by their difference.
    """

    kind: str  # one of ``KINDS``
    name: str
    values: Callable[[Side], Any] | None = None  # None if computed by :func:`compare_labels`
    most: int | None = None  # cells per side, sampled at random
    by: str | None = None  # ``LABEL`` or ``BATCH``, for comparisons between types or batches


PROPERTIES: dict[str, Property] = {
    "mean": Property("gene", "mean", lambda side: side.moments[0]),
    "variance": Property("gene", "variance", lambda side: side.moments[1]),
    "coefficient_of_variation": Property("gene", "coefficient of variation", values.coefficient_of_variation),
    "zero_fraction": Property("gene", "zeros of a gene", lambda side: zero_fraction(side.cells)),
    "dispersion": Property("gene", "dispersion", values.dispersion),
    "gene_correlation": Property("gene", "gene-gene correlation", values.correlations_within_types),
    "library_size": Property("cell", "library size", lambda side: side.cells.library_size),
    "effective_library_size": Property("cell", "effective library size", lambda side: side.effective_library_size),
    "cell_zero_fraction": Property("cell", "zeros of a cell", values.cell_zero_fraction),
    "cell_correlation": Property(
        "cell", "cell-cell correlation", lambda side: correlations(side.cells.expression.toarray()), 200
    ),
    "pca_distance": Property("cell", "distance in PCA", lambda side: pdist(side.components), 500),
    "knn_occurrence": Property("cell", "occurrence among neighbours", values.occurrence),
    "local_density": Property("cell", "local density", values.local_density),
    "mean_variance": Property("joint", "mean and variance", lambda side: np.column_stack(side.moments)),
    "mean_zeros": Property(
        "joint", "mean and zeros of a gene", lambda side: np.column_stack([side.moments[0], zero_fraction(side.cells)])
    ),
    "library_zeros": Property(
        "joint",
        "library size and zeros of a cell",
        lambda side: np.column_stack([np.log1p(side.cells.library_size), values.cell_zero_fraction(side)]),
    ),
    **{f"{test}_share": Property("biology", f"{name}, share") for test, name in GENE_TESTS.items()},
    **{f"{test}_overlap": Property("biology", f"{name}, overlap") for test, name in GENE_TESTS.items()},
    "silhouette_label": Property("structure", "silhouette by cell type"),
    "variance_by_label": Property(
        "structure", "variance between cell types", lambda side: values.variance_between(side, side.labels), by=LABEL
    ),
    "silhouette_batch": Property(
        "structure",
        "silhouette by batch",
        lambda side: silhouette_samples(side.components, side.batches),
        MAX_CELLS,
        BATCH,
    ),
    "variance_by_batch": Property(
        "structure", "variance between batches", lambda side: values.variance_between(side, side.batches), by=BATCH
    ),
    "mixing": Property("structure", "mixing of batches", values.mixing, MAX_CELLS, BATCH),
    "clustering": Property("use", "clusters and cell types (k-means)", values.agreement_of_k_means, MAX_CELLS, LABEL),
    "leiden": Property("use", "clusters and cell types (Leiden)", values.agreement_of_leiden, MAX_CELLS, LABEL),
    "classified": Property("use", "cell typing by real cells"),
    "classifies": Property("use", "cell typing of real cells"),
    "integrated_label": Property(
        "use",
        "cell types after integration",
        lambda side: values.mean_silhouette(side.integrated, side.labels),
        MAX_CELLS,
        BATCH,
    ),
    "integrated_batch": Property(
        "use",
        "batches after integration",
        lambda side: values.mean_silhouette(side.integrated, side.batches),
        MAX_CELLS,
        BATCH,
    ),
}


def compare_properties(
    real: RealCells, generated: Mapping[str, TypedCells], settings: EvaluationSettings, *, seed: int
) -> pd.DataFrame:
    """Compare the properties of each generated set with test cells, averaged over resamples.

    Returns a row per property, method and group of cells. ``value`` is the distance to test cells, 0 at best;
    ``floor`` is the distance of the floor; ``by`` is ``all`` or ``label``.
    """
    if has_modalities(real.names.var):
        rna = modalities_of(real.names.var)[0]
        real, generated = real.of_modality(rna), {name: cells.of_modality(rna) for name, cells in generated.items()}
    resamples = draw_resamples(real, generated, settings, seed=seed)
    genes = variable_genes(sample_at_most(real.test, most=SIZE_LIMITS.markers, seed=seed))
    return compare_resamples(resamples, genes, most=MAX_COMPARED)


def compare_resamples(resamples: Sequence[ResampledCells], genes: np.ndarray, *, most: int) -> pd.DataFrame:
    """Compare the properties of each set with test cells, averaged over ``resamples``."""
    rows = []
    for resample, name, cells in with_progress(resamples, doing="comparing properties"):
        matched = match(cells, resample.test, seed=resample.seed)
        query, test = (sample_at_most(side, most=most, seed=resample.seed) for side in matched)
        for by, group, n_cells, distances in compare_groups(Group.from_cells(query, test, genes, seed=resample.seed)):
            rows += [
                {"property": key, "method": name, "by": by, "group": group, "n_cells": n_cells, "value": value}
                for key, value in distances.items()
            ]
    return add_floor(pd.DataFrame(rows)) if rows else no_properties()


def no_properties() -> pd.DataFrame:
    """Return an empty table of properties."""
    return pd.DataFrame({name: pd.Series(dtype=object if name in TEXTS else float) for name in COLUMNS})


def add_floor(rows: pd.DataFrame) -> pd.DataFrame:
    """Average over resamples, and add the value of the floor to each row."""
    keys = ["property", "by", "group"]
    means = rows.groupby(["method", *keys], sort=False)[["n_cells", "value"]].mean().reset_index()
    is_floor = means["method"] == FLOOR
    floor = means[is_floor].set_index(keys)["value"].rename("floor")
    table = means[~is_floor].join(floor, on=keys)
    table["kind"] = table["property"].map({key: each.kind for key, each in PROPERTIES.items()})
    order = {key: position for position, key in enumerate(PROPERTIES)}
    table = table.sort_values("property", key=lambda column: column.map(order), kind="stable", ignore_index=True)
    return table[COLUMNS]


@dataclass(frozen=True)
class Group:
    """Query cells and test cells, in equal numbers per type."""

    query: Side
    test: Side
    seed: int

    @classmethod
    def from_cells(cls, query: Cells, test: Cells, genes: np.ndarray, *, seed: int) -> Group:
        """Compute joint principal components and effective library sizes of matched cells."""
        components = joint_components(query.expression, test.expression, seed=seed)
        reference = np.asarray(test.counts.sum(axis=0)).ravel()
        query_side, test_side = (
            Side(cells, coordinates, values.effective_library_size(cells, reference), genes, seed)
            for cells, coordinates in zip((query, test), components, strict=True)
        )
        return cls(query_side, test_side, seed)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Query cells and test cells."""
        return self.query, self.test

    @property
    def n_cells(self) -> int:
        """Number of cells of the smaller side."""
        return min(len(self.query), len(self.test))

    @cached_property
    def labels(self) -> np.ndarray:
        """Cell types with enough query cells and test cells."""
        query, test = (select_frequent(side.labels) for side in self.sides)
        return np.intersect1d(query, test)

    @property
    def commonest_labels(self) -> list[str]:
        """Cell types of :attr:`labels` with the most test cells."""
        n_cells = pd.Series(self.test.labels).value_counts()[self.labels]
        return sorted(map(str, n_cells.nlargest(MAX_GROUPS).index))

    def select(self, label: str) -> Group:
        """Select equal numbers of cells of one type."""
        query, test = (side.among(LABEL, [label]) for side in self.sides)
        numbers = smaller_numbers(query.cells.n_by_type, test.cells.n_by_type)
        query, test = (side[sample_by_type(side.cells, numbers, seed=self.seed)] for side in (query, test))
        return replace(self, query=query, test=test)

    def few(self, most: int | None) -> Group:
        """Sample at most ``most`` cells per side; None keeps all."""
        if most is None:
            return self
        query, test = (
            side[np.sort(np.random.default_rng(self.seed).permutation(len(side))[:most])] for side in self.sides
        )
        return replace(self, query=query, test=test)

    def divided(self, by: str | None) -> tuple[Side, Side] | None:
        """Select cells of frequent types or batches; None if fewer than two."""
        if by is None:
            return self.sides
        names = [self.labels if by == LABEL else select_frequent(side.column(by)) for side in self.sides]
        query, test = (side.among(by, selected) for side, selected in zip(self.sides, names, strict=True))
        return (query, test) if min(map(len, names)) > 1 else None


def select_frequent(column: np.ndarray) -> np.ndarray:
    """Return the types or batches with at least ``MIN_CELLS_OF_GROUP`` cells."""
    names, n_cells = np.unique(column, return_counts=True)
    return np.asarray(names[n_cells >= MIN_CELLS_OF_GROUP])


def compare_groups(whole: Group) -> Iterator[tuple[str, str, int, dict[str, float]]]:
    """Compute the distances of all cells, then of each common cell type.

    Yields ``by``, the name of the group, its number of cells, and distances by property.
    """
    by_label = compare_labels(whole)
    yield ALL, "", whole.n_cells, distances(whole) | by_label.get("", {})
    within = [kind for kind in KINDS if kind != "use"]
    for label in whole.commonest_labels:
        group = whole.select(label)
        yield LABEL, label, group.n_cells, distances(group, kinds=within) | by_label.get(label, {})


def distances(group: Group, *, kinds: Sequence[str] = tuple(KINDS)) -> dict[str, float]:
    """Compare query cells and test cells, for properties with values."""
    by_property: dict[str, float] = {}
    selected: dict[tuple[int | None, str | None], tuple[Side, Side] | None] = {}
    for key, each in PROPERTIES.items():
        if each.values is None or each.kind not in kinds or (key == "leiden" and not find_spec("igraph")):
            continue
        if (each.most, each.by) not in selected:
            selected[each.most, each.by] = group.few(each.most).divided(each.by)
        if sides := selected[each.most, each.by]:
            query, test = each.values(sides[0]), each.values(sides[1])
            if each.kind == "joint":
                by_property[key] = energy_coefficient(query, test, seed=group.seed)
            else:
                by_property[key] = float(abs(query - test)) if each.kind == "use" else ks(query, test)
    return {key: value for key, value in by_property.items() if PROPERTIES[key].kind != "use" or np.isfinite(value)}


def compare_labels(group: Group) -> dict[str, dict[str, float]]:
    """Compare the differences between cell types, by type and property.

    The label ``""`` has the values of all types together.
    """
    by_label: dict[str, dict[str, float]] = defaultdict(dict)
    for part in (compare_biology(group), compare_silhouettes(group), compare_typing(group)):
        for label, by_property in part.items():
            by_label[label] |= by_property
    return by_label


def compare_biology(group: Group) -> dict[str, dict[str, float]]:
    """Compare the genes that differ between each type and all others.

    The label ``""`` has the mean over types.
    """
    labels = [
        name for name in group.labels if all((side.labels != name).sum() >= MIN_CELLS_OF_GROUP for side in group.sides)
    ]
    by_label = compare_genes(group.query.cells, group.test.cells, labels)
    return {"": pd.DataFrame(by_label).mean(axis=1).to_dict(), **by_label} if labels else {}


def compare_silhouettes(group: Group) -> dict[str, dict[str, float]]:
    """Compare silhouette widths of each type, and of all types (``""``)."""
    sides = [side.among(LABEL, group.labels) for side in group.few(MAX_CELLS).sides]
    if any(len(np.unique(side.labels)) < 2 for side in sides):
        return {}
    widths = [silhouette_samples(side.components, side.labels) for side in sides]
    by_type = {
        label: [width[side.labels == label] for width, side in zip(widths, sides, strict=True)]
        for label in group.labels
    }
    return {label: {"silhouette_label": ks(*pair)} for label, pair in {"": widths, **by_type}.items()}


def compare_typing(group: Group) -> dict[str, dict[str, float]]:
    """Compare F1 of cell typing with test cells, by type and on average (``""``).

    For ``classified``, test cells type query cells; for ``classifies``, query cells type test cells. Both are absolute
    differences from F1 when test cells type each other.
    """
    labels = group.labels
    if len(labels) < 2:
        return {}
    among_test = values.nearest_f1(group.test)
    errors = {
        "classified": (values.nearest_f1(group.test, group.query) - among_test).abs()[labels],
        "classifies": (values.nearest_f1(group.query, group.test) - among_test).abs()[labels],
    }
    by_label = {label: {name: float(error[label]) for name, error in errors.items()} for label in labels}
    return {"": {name: float(error.mean()) for name, error in errors.items()}, **by_label}


def ks(query: np.ndarray, test: np.ndarray) -> float:
    """Compute the Kolmogorov-Smirnov distance without NaN values, in [0, 1].

    NaN with fewer than five values of either.
    """
    query, test = query[~np.isnan(query)], test[~np.isnan(test)]
    return kolmogorov_smirnov(query, test) if min(len(query), len(test)) >= MIN_VALUES else float("nan")


def energy_coefficient(query: np.ndarray, test: np.ndarray, *, seed: int) -> float:
    """Compute the energy coefficient of scaled points, in [0, 1].

    ``sqrt((2 E|x - y| - E|x - x'| - E|y - y'|) / (2 E|x - y|))`` (Székely and Rizzo 2013,
    https://doi.org/10.1016/j.jspi.2013.03.018). Dimensions are divided by the standard deviations
    of test cells. Means include the distance of each point to itself, which keeps the root real; the coefficient is
    above 0 for samples of one distribution, so compare it with the floor.
    """
    query, test = (points[np.isfinite(points).all(axis=1)] for points in (query, test))
    if min(len(query), len(test)) < MIN_VALUES:
        return float("nan")
    scale = np.maximum(test.std(axis=0), TINY)
    x, y = (np.random.default_rng(seed).permutation(points)[:MAX_POINTS] / scale for points in (query, test))
    distances, n = pair_distances(x, y), len(x)
    across, within = 2 * distances[:n, n:].mean(), distances[:n, :n].mean() + distances[n:, n:].mean()
    return float(np.sqrt(max(across - within, 0) / max(across, TINY)))
