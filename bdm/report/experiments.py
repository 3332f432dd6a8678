"""Designed experiments of a data set, as the report shows them: what was planted, and what is found in the counts."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from bdm.data.matrix import blocks_of_rows
from bdm.data.read import read_cells
from bdm.model.generated_file import is_of_model


def read_experiments(folder: Path, checksum: str) -> dict[str, dict[str, Any]]:
    """Describe the experiments in the folder of a data set, by name, that the model with a checksum simulated."""
    paths = sorted(Path(folder).glob("simulated/*.h5ad"))
    return {path.stem: read_experiment(path) for path in paths if is_of_model(path, checksum)}


def read_experiment(path: Path) -> dict[str, Any]:
    """Read the design and the truth of an experiment, and find its changes in the counts."""
    cells = read_cells(path, on_disk=True)
    with h5py.File(path) as file:
        design, truth = json.loads(read_elem(file["uns/bdm"])["design"]), read_elem(file["uns/truth"])
    genes, samples = truth["genes"], truth["samples"]
    genes = genes.assign(found=fold_changes(cells.X, cells.obs, cells.var_names, genes, samples))
    return {
        "n_cells": int(samples["n_cells"].sum()),
        "n_samples": len(samples),
        "conditions": list(dict.fromkeys(samples["condition"])),
        "n_donors": int(samples["donor"].nunique()),
        "doublets": design["doublets"]["rate"],
        "ambient": design["ambient"]["share"],
        "shifts": design["composition"]["shifts"],
        "changes": [{"name": name, **change(rows)} for name, rows in genes.groupby("change", sort=False)],
    }


def fold_changes(
    counts: Any, obs: pd.DataFrame, names: pd.Index, genes: pd.DataFrame, samples: pd.DataFrame
) -> pd.Series:
    """Compute log2 fold changes of the mean counts of changed genes, at the same depth, from singlets; NaN without."""
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


def change(rows: pd.DataFrame) -> dict[str, Any]:
    """Describe a change, and how well its fold changes are found in the counts."""
    planted = rows["log2_fold_change"]
    known = rows["found"].notna() & planted.ne(0)
    planted, found, first = planted[known], rows.loc[known, "found"], rows.iloc[0]
    return {
        "condition": first["condition"],
        "kind": first["kind"],
        "cell_types": list(dict.fromkeys(rows["cell_type"])),
        "n_genes": rows["gene"].nunique(),
        "low": float(rows["responding_log2_fold_change"].min()),
        "high": float(rows["responding_log2_fold_change"].max()),
        "n_known": len(found),
        "same_sign": float((np.sign(found) == np.sign(planted)).mean()),
        "correlation": float(planted.corr(found)) if len(planted) > 2 and planted.nunique() > 1 else np.nan,
    }
