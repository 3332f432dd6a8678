"""Comparison of the properties of sets of cells with test cells: by cell type, by batch, and of all cells."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from bdm._core.progress import progress
from bdm.evaluation.cells import FLOOR, Cells, match, thin
from bdm.evaluation.properties import biology, cell, gene, joint, structure, use
from bdm.evaluation.properties.catalogue import ALL, BATCH, COLUMNS, LABEL, PROPERTIES, no_properties
from bdm.evaluation.properties.group import MIN_CELLS_OF_GROUP, Group
from bdm.evaluation.resampling import ResampledCells

MAX_GROUPS = 50  # cell types, or batches, with rows of their own

Found = tuple[str, str, int, dict[str, float]]  # by what, the name of the group, its cells, and distances


def compare_properties(resamples: Sequence[ResampledCells], genes: np.ndarray, *, most: int) -> pd.DataFrame:
    """Compare each set with test cells, averaged over resamples.

    Parameters
    ----------
    genes
        Column indices of the variable genes, whose correlations are compared.
    most
        Most cells of a set.

    Returns
    -------
    A row for each ``property`` (of a ``kind``), ``set`` but the floor, and group of cells: ``by`` is ``all``,
    ``label`` or ``batch``, and ``group`` the name of the cell type or batch. ``value`` is the distance to test cells,
    0 at best, ``floor`` that of the floor, and ``n_cells`` the number of cells of the group.
    """
    rows = []
    for resample in progress(resamples, total=len(resamples), doing="comparing properties", unit="resample"):
        for name, cells in resample.query.items():
            for by, group, n_cells, distances in found_distances(cells, resample, genes, most=most):
                rows += [
                    {"property": key, "set": name, "by": by, "group": group, "n_cells": n_cells, "value": value}
                    for key, value in distances.items()
                ]
    return with_floor(pd.DataFrame(rows)) if rows else no_properties()


def with_floor(rows: pd.DataFrame) -> pd.DataFrame:
    """Average over resamples, and put the values of the floor next to those of each other set."""
    keys = ["property", "by", "group"]
    means = rows.groupby(["set", *keys], sort=False)[["n_cells", "value"]].mean().reset_index()
    is_floor = means["set"] == FLOOR
    floor = means[is_floor].set_index(keys)["value"].rename("floor")
    table = means[~is_floor].join(floor, on=keys)
    table["kind"] = table["property"].map({key: one.kind for key, one in PROPERTIES.items()})
    order = {key: place for place, key in enumerate(PROPERTIES)}
    table = table.sort_values("property", key=lambda column: column.map(order), kind="stable", ignore_index=True)
    return table[COLUMNS]


def found_distances(query: Cells, resample: ResampledCells, genes: np.ndarray, *, most: int) -> Iterator[Found]:
    """Compare one set in one resample with test cells, group by group."""
    seed = resample.seed
    matched = thin(match(query, resample.test, seed=seed), most=most, seed=seed)
    whole = Group.of(matched, genes, seed=seed)
    by_label = distances_by_label(whole)
    yield ALL, "", whole.n_cells, of_group(whole) | use.distances(whole) | by_label.get("", {})
    for label in most_common(whole, whole.labels, matched.test.cell_type):
        group = whole.of_label(label)
        yield LABEL, label, group.n_cells, of_group(group) | by_label.get(label, {})
    if len(whole.batches) > 1 and matched.test.batch is not None:
        for batch in most_common(whole, whole.batches, matched.test.batch):
            group = whole.of_batch(batch)
            if group.n_cells >= MIN_CELLS_OF_GROUP:
                yield (
                    BATCH,
                    batch,
                    group.n_cells,
                    {
                        **of_group(group),
                        **use.distances(group),
                        **distances_by_label(group).get("", {}),
                    },
                )


def most_common(group: Group, names: np.ndarray, column: np.ndarray) -> list[str]:
    """Select the names with the most test cells."""
    n_cells = pd.Series(column).value_counts()[names]
    return sorted(map(str, n_cells.nlargest(MAX_GROUPS).index))


def of_group(group: Group) -> dict[str, float]:
    """Compare what needs no more than the cells of the group."""
    return {
        **gene.distances(group),
        **cell.distances(group),
        **joint.distances(group),
        **structure.distances(group),
    }


def distances_by_label(group: Group) -> dict[str, dict[str, float]]:
    """Compare what sets cell types apart: of each type, and of all, by the name ``""``."""
    of_genes = biology.distances_by_label(group)
    found: dict[str, dict[str, float]] = {}
    if of_genes:
        found[""] = pd.DataFrame(of_genes).mean(axis=1).to_dict()
    for by_label in (of_genes, structure.distances_by_label(group), use.distances_by_label(group)):
        for label, distances in by_label.items():
            found[label] = found.get(label, {}) | distances
    return found
