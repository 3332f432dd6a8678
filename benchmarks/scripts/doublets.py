"""Detect planted doublets by scrublet in simulated and held-out real cells."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import scanpy as sc
import typer
from anndata import AnnData
from sklearn.metrics import roc_auc_score
from tidy import tidy, write_rows

from bdm._core.seeds import derive, numpy_generator
from bdm.applications.design.design import read_design
from bdm.applications.design.simulate import simulate_cells
from bdm.data.read import read_cells
from bdm.model.model import BranchedModel, load_model

WITHIN = 0.5  # share of doublets within a type
PARTNERS = 0.25  # share of real cells reserved as second cells of doublets
KINDS = ("within a type", "between types")


def divided(cells: AnnData, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divide cells of each type randomly into first and second cells."""
    first, second = [], []
    for rows in cells.obs.groupby("cell_type", observed=True).indices.values():
        shuffled = generator.permutation(rows)
        n_second = max(round(PARTNERS * len(rows)), 1)
        second.append(shuffled[:n_second])
        first.append(shuffled[n_second:])
    return np.concatenate(first), np.concatenate(second)


def real_droplets(cells: AnnData, rate: float, generator: np.random.Generator) -> AnnData:
    """Add second cells to a share of real cells, as `bdm simulate` does."""
    first, second = divided(cells, generator)
    cell_type = cells.obs["cell_type"].astype(str).to_numpy()
    droplets = cells[first].copy()
    doublets = np.flatnonzero(generator.random(len(first)) < rate)
    partners = []
    for row in doublets:
        same = cell_type[second] == cell_type[first[row]]
        partners.append(generator.choice(second[same if generator.random() < WITHIN else ~same]))
    counts = droplets.X.tolil()
    counts[doublets] = droplets.X[doublets] + cells.X[partners]
    droplets.X = counts.tocsr()
    return with_truth(droplets, doublets, cell_type[partners])


def generated_droplets(model: BranchedModel, n_cells: dict[str, int], rate: float, seed: int) -> AnnData:
    """Simulate cells with doublets."""
    doublets = {"rate": rate, "within": WITHIN}
    cells = simulate_cells(model, read_design({"samples": {"cells": n_cells}, "doublets": doublets, "seed": seed}))
    rows = np.flatnonzero(cells.obs["doublet"])
    return with_truth(cells, rows, cells.obs["doublet_partner"].iloc[rows].map(model.cell_type_of).to_numpy())


def with_truth(droplets: AnnData, rows: np.ndarray, partner_type: np.ndarray) -> AnnData:
    """Add the kind of each doublet to ``obs``; empty for single cells."""
    kind = np.full(droplets.n_obs, "", dtype=object)
    same = droplets.obs["cell_type"].iloc[rows].astype(str).to_numpy() == partner_type
    kind[rows] = np.where(same, *KINDS)
    droplets.obs["kind"] = kind
    return droplets


def score_doublets(droplets: AnnData, rate: float) -> pd.DataFrame:
    """Score droplets by scrublet, and compare with the truth.

    Returns
    -------
    A row for each kind of doublet: ``auc`` against single cells, and ``recall`` if as many droplets are called as there
    are doublets.
    """
    adata = AnnData(droplets.X.copy())
    sc.pp.scrublet(adata, expected_doublet_rate=rate, threshold=0.2, random_state=0, verbose=False)
    score, kind = adata.obs["doublet_score"].to_numpy(), droplets.obs["kind"].to_numpy()
    called = score >= np.sort(score)[-(kind != "").sum()]
    rows = []
    for name in KINDS:
        is_kind = kind == name
        compared = is_kind | (kind == "")
        auc = roc_auc_score(is_kind[compared], score[compared])
        rows.append({"kind": name, "auc": auc, "recall": called[is_kind].mean()})
    return pd.DataFrame(rows)


def main(
    prepared: Path, model: Path, out: Path, *, rate: Annotated[list[float], typer.Option()], seed: int = 0
) -> None:
    """Write AUC and recall of scrublet by doublet kind and rate."""
    cells, fitted = read_cells(prepared), load_model(model)
    held_out = cells[cells.obs["split"] == "test"].copy()
    tables = []
    for planted in rate:
        real = real_droplets(held_out, planted, numpy_generator(seed, "doublets", str(planted)))
        n_cells = {str(name): int(n) for name, n in real.obs["cell_type"].value_counts().items() if n}
        generated = generated_droplets(fitted, n_cells, planted, derive(seed, "doublets", str(planted)))
        for name, droplets in {"real": real, "generated": generated}.items():
            tables.append(score_doublets(droplets, planted).assign(method=name, rate=planted))
    write_rows(tidy(pd.concat(tables), ["method", "kind", "rate"]), out)


if __name__ == "__main__":
    typer.run(main)
