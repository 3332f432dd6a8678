"""Designed experiments of a data set, as the report shows them: what was planted, and what is found in the counts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from bdm.data.matrix import blocks_of_rows
from bdm.data.read import read_cells
from bdm.model.generated_file import is_of_model


@dataclass(frozen=True)
class SimulatedExperiment:
    """A simulated experiment.

    Attributes
    ----------
    design
        Content of the design.
    genes, composition, samples
        Tables of the truth.
    found
        Log2 fold change of the counts of each row of ``genes``, between all cells of the cell type in the condition and
        in the reference; NaN where there are no counts, or no such cells.
    """

    name: str
    design: dict[str, Any]
    seed: int
    genes: pd.DataFrame
    composition: pd.DataFrame
    samples: pd.DataFrame
    found: pd.Series


def read_experiments(folder: Path, checksum: str) -> dict[str, SimulatedExperiment]:
    """Read the experiments in the folder of a data set, by name, that the model with a checksum simulated."""
    paths = sorted(Path(folder).glob("simulated/*.h5ad"))
    return {path.stem: read_experiment(path) for path in paths if is_of_model(path, checksum)}


def read_experiment(path: Path) -> SimulatedExperiment:
    """Read the truth of an experiment, and sum its counts."""
    cells = read_cells(path, on_disk=True)
    with h5py.File(path) as file:
        record, truth = read_elem(file["uns/bdm"]), read_elem(file["uns/truth"])
    found = fold_changes(cells.X, cells.obs, cells.var_names, truth["genes"], truth["samples"])
    design = json.loads(record["design"])
    return SimulatedExperiment(
        path.stem, design, int(record["seed"]), truth["genes"], truth["composition"], truth["samples"], found
    )


def fold_changes(
    counts: Any, obs: pd.DataFrame, names: pd.Index, genes: pd.DataFrame, samples: pd.DataFrame
) -> pd.Series:
    """Compute the log2 fold changes of the mean counts of changed genes, at the same depth, from singlets."""
    groups = pd.Series(list(zip(obs["condition"], obs["cell_type"], strict=True)), dtype=object)
    codes, keys = pd.factorize(groups)
    codes[obs["doublet"].to_numpy()] = len(keys)
    sums, total = np.zeros((len(keys) + 1, len(names))), np.zeros(len(keys) + 1)
    for rows, block in blocks_of_rows(counts):
        depth = obs["depth_factor"].to_numpy()[rows]
        of_rows = block.multiply(1 / depth[:, None]).tocsr()
        for code in np.unique(codes[rows]):
            chosen = codes[rows] == code
            sums[code] += np.asarray(of_rows[chosen].sum(axis=0)).ravel()
            total[code] += chosen.sum()
    absent = np.zeros(len(names))
    means = {key: sums[code] / max(total[code], 1) for code, key in enumerate(keys)}
    reference = samples["condition"].iloc[0]
    values = []
    for row in genes.itertuples():
        column = names.get_loc(row.gene)
        changed, base = (means.get((name, row.cell_type), absent)[column] for name in (row.condition, reference))
        values.append(np.log2(changed / base) if changed > 0 and base > 0 else np.nan)
    return pd.Series(values, index=genes.index, dtype=float)


def summary(experiment: SimulatedExperiment) -> dict[str, Any]:
    """Collect what the report shows of an experiment."""
    samples, design = experiment.samples, experiment.design
    return {
        "name": experiment.name,
        "n_cells": int(samples["n_cells"].sum()),
        "n_samples": len(samples),
        "conditions": list(dict.fromkeys(samples["condition"])),
        "n_donors": int(samples["donor"].nunique()),
        "doublets": design["doublets"]["rate"],
        "ambient": design["ambient"]["share"],
        "shifts": [
            {"condition": of["condition"], "in": ", ".join(of["in"]), "log_odds": of["log_odds"]}
            for of in design["composition"]["shifts"]
        ],
        "changes": [change(experiment, name) for name in experiment.genes["change"].unique()],
    }


def change(experiment: SimulatedExperiment, name: str) -> dict[str, Any]:
    """Describe a change, and how well its fold changes are found in the counts."""
    rows = experiment.genes[experiment.genes["change"] == name]
    planted, found = rows["log2_fold_change"], experiment.found[rows.index]
    known = found.notna() & planted.ne(0)
    first = rows.iloc[0]
    return {
        "name": name,
        "condition": first["condition"],
        "kind": first["kind"],
        "cell_types": list(dict.fromkeys(rows["cell_type"])),
        "n_genes": rows["gene"].nunique(),
        "low": float(rows["responding_log2_fold_change"].min()),
        "high": float(rows["responding_log2_fold_change"].max()),
        "n_known": int(known.sum()),
        "same_sign": float((np.sign(found[known]) == np.sign(planted[known])).mean()) if known.any() else np.nan,
        "correlation": correlation(planted[known], found[known]),
    }


def correlation(planted: pd.Series, found: pd.Series) -> float:
    """Correlate planted and found fold changes; NaN where there are too few, or all are the same."""
    return float(planted.corr(found)) if len(planted) > 2 and planted.nunique() > 1 else np.nan
