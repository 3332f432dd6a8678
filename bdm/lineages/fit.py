"""Fit of a lineage: measure it, find the law of expression, and leave each sampled node and time out in turn."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.files import provenance
from bdm._core.parallel import using_threads
from bdm.data.read import rna_in
from bdm.hierarchy.tree import Clade
from bdm.kriging.law import calibration, fit_law, left_out, most_significant
from bdm.lineages.measured import MeasuredLineage, measure
from bdm.lineages.results import ERRORS, N_COMPARED, Lineage, kernels_of, measurements
from bdm.lineages.tree import LineageTree, read_lineage_tree
from bdm.settings import LineageSettings


@using_threads()
def fit_lineage(
    adata: AnnData,
    settings: LineageSettings = LineageSettings(),
    *,
    tree: LineageTree | Clade | Path | str | None = None,
) -> Lineage:
    """Measure expression along a lineage, and fit the law by which it follows where nobody sampled.

    Parameters
    ----------
    adata
        Cells with raw counts, and the columns that ``settings`` name.
    tree
        The lineage tree in Newick, as a file or text, with a node for each cell type; that of the lineage names, if not
        given.

    Raises
    ------
    InputError
        If a column is missing or no time, a name has no node, times contradict the tree, or counts are not raw.
    """
    found = measure(rna_in(adata), settings, None if tree is None else read_lineage_tree(tree))
    kernels = kernels_of(found, found.places, settings.relations, timed=settings.time_key is not None)
    data = measurements(found)
    law = fit_law(data, kernels, levels=(0.0,))
    compared = most_significant(data)[:N_COMPARED]
    groups = {"node": groups_of(found.points["node"])}
    if settings.time_key is not None:
        groups["time"] = groups_of(found.points["bin"])
    errors = []
    for kind, of_kind in groups.items():
        predicted = left_out(law, data.genes(compared), kernels, of_kind)[0]
        errors += [errors_of(found, kind, group, predicted, compared) for group in of_kind]
    return Lineage(
        **vars(found),
        law=law,
        calibration=calibration(law, data, kernels, found.log_share, groups["node"]),
        errors=pd.concat(errors, ignore_index=True),
        relation=settings.relations,
        label_key=settings.label_key,
        lineage_key=settings.lineage_key,
        time_key=settings.time_key,
        provenance=provenance(seed=0, settings=asdict(settings)),
    )


def groups_of(column: pd.Series) -> list[np.ndarray]:
    """Rows of the points of each value of a column."""
    return [np.sort(np.asarray(rows)) for rows in column.groupby(column).indices.values()]


def errors_of(
    found: MeasuredLineage, kind: str, group: np.ndarray, predicted: np.ndarray, genes: np.ndarray
) -> pd.DataFrame:
    """Compute errors of points that were left out together, apart for those between others and beyond them."""
    n, real = len(found.points), (found.log_share - found.log_share.mean(axis=0))[:, genes]
    others = np.setdiff1d(np.arange(n), group)
    path, ancestral = found.places.path(found.tree, found.end), found.places.ancestral(found.tree)
    time = found.places.time
    rows: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for point in group:
        before, after = others[ancestral[others, point]], others[ancestral[point, others]]
        between = bool(len(before) and len(after))
        nearest = others[path[point, others].argmin()]
        blend = real[nearest]
        if between:
            first, last = before[time[before].argmax()], after[time[after] == time[after].min()]
            share = (time[point] - time[first]) / max(time[last[0]] - time[first], 1e-9)
            blend = (1 - share) * real[first] + share * real[last].mean(axis=0)
        values = {"predicted": predicted[:, point], "nearest": real[nearest], "blend": blend}
        row = {name: float(np.mean((value - real[point]) ** 2)) for name, value in values.items()}
        row |= {"halves": float(found.halves[point, genes].mean()), "size": float(np.mean(real[point] ** 2))}
        rows[between].append(row | {"weight": float(found.points["n_cells"].iloc[point])})
    tables = []
    for between, of_kind in rows.items():
        if of_kind:
            table = pd.DataFrame(of_kind)
            mean = table.mul(table["weight"], axis=0).sum() / table["weight"].sum()
            of_group = found.points.iloc[group]
            name = str(of_group["node"].iloc[0]) if kind == "node" else f"{of_group['time'].mean():.6g}"
            relative = {error: float(np.sqrt(mean[error] / max(mean["size"], 1e-12))) for error in ERRORS}
            tables.append({"left_out": kind, "name": name, "between": between, "n_points": len(of_kind), **relative})
    return pd.DataFrame(tables)
