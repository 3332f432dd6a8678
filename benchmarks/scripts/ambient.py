"""Estimate planted ambient RNA in simulated cells and in held-out real cells.

As in SoupX (Young and Behjati 2020), counts of genes in types that do not express them are ambient RNA. Real cells
already contain some; its share is estimated from training cells, and subtracted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from tidy import tidy, write_rows

from bdm._core.seeds import derive, numpy_generator
from bdm.applications.design.design import read_design
from bdm.applications.design.simulate import Droplets, add_ambient, simulate_cells
from bdm.data.read import read_cells
from bdm.model.model import BranchedModel, load_model

MAX_AMBIENT = 0.1  # maximum share of ambient RNA that explains the counts of an unexpressed gene
EMPTY_COUNTS = 10_000  # counts in empty droplets
N_BOOTSTRAP = 200


@dataclass(frozen=True)
class Cells:
    """Cells with ambient RNA."""

    counts: np.ndarray  # cells x genes
    cell_type: np.ndarray  # index of each cell's type
    ambient: np.ndarray  # share of each gene in the ambient RNA
    empty_droplets: np.ndarray  # counts of each gene in empty droplets

    def by_type(self, n_types: int, weight: np.ndarray | None = None) -> np.ndarray:
        """Sum counts by type, types x genes, with a weight for each cell."""
        member = self.cell_type == np.arange(n_types)[:, None]
        return np.asarray((member if weight is None else member * weight).astype(np.float32) @ self.counts)

    def resampled(self, n_types: int, generator: np.random.Generator) -> np.ndarray:
        """Sum the counts of a bootstrap sample by type."""
        rows = generator.integers(len(self.counts), size=len(self.counts))
        return self.by_type(n_types, np.bincount(rows, minlength=len(self.counts)))


def unexpressed(by_type: np.ndarray) -> np.ndarray:
    """Find unexpressed genes of each type (types x genes) from summed counts."""
    expected = by_type.sum(axis=1, keepdims=True) * profile_of(by_type)
    with np.errstate(divide="ignore"):
        return np.asarray((by_type + 1) / expected < MAX_AMBIENT)


def profile_of(counts: np.ndarray) -> np.ndarray:
    """Return the share of each gene in all counts."""
    return np.asarray(counts.sum(axis=0) / counts.sum())


def share_of_ambient(by_type: np.ndarray, profile: np.ndarray, genes: np.ndarray) -> float:
    """Estimate the share of ambient RNA by maximum likelihood from unexpressed genes.

    Their counts are Poisson with mean ``share * library size * profile``.
    """
    return float((by_type * genes).sum() / (by_type.sum(axis=1, keepdims=True) * profile * genes).sum())


def estimates(cells: Cells, reference: Cells, genes: np.ndarray, generator: np.random.Generator) -> pd.DataFrame:
    """Estimate the added share, with 95% intervals by a bootstrap of cells and reference.

    Parameters
    ----------
    genes
        Mask of unexpressed genes, types x genes.

    Returns
    -------
    A row for each profile, with ``found``, ``low`` and ``high``.
    """
    n_types = len(genes)

    def added(by_type: np.ndarray, profile: np.ndarray, before: float) -> float:
        return (share_of_ambient(by_type, profile, genes) - before) / (1 - before)

    def background(by_type: np.ndarray) -> float:
        return share_of_ambient(by_type, profile_of(by_type), genes)

    observed, before = cells.by_type(n_types), background(reference.by_type(n_types))
    measured = cells.empty_droplets / cells.empty_droplets.sum()
    bootstrap: dict[str, list[float]] = {"known": [], "empty": []}
    for _ in range(N_BOOTSTRAP):
        sums, share_before = cells.resampled(n_types, generator), background(reference.resampled(n_types, generator))
        empty = generator.multinomial(EMPTY_COUNTS, measured) / EMPTY_COUNTS
        for name, profile in {"known": cells.ambient, "empty": empty}.items():
            bootstrap[name].append(added(sums, profile, share_before))
    rows = []
    for name, profile in {"known": cells.ambient, "empty": measured}.items():
        low, high = np.quantile(bootstrap[name], [0.025, 0.975])
        rows.append({"profile": name, "found": added(observed, profile, before), "low": low, "high": high})
    return pd.DataFrame(rows)


def from_anndata(adata: AnnData, types: pd.Index, ambient: np.ndarray, empty_droplets: np.ndarray) -> Cells:
    """Convert an AnnData to arrays."""
    return Cells(adata.X.toarray(), types.get_indexer(adata.obs["cell_type"]), ambient, empty_droplets)


def halves_of_training(training: AnnData, types: pd.Index, generator: np.random.Generator) -> tuple[np.ndarray, Cells]:
    """Find unexpressed genes in half of the training cells, and return the other half.

    The other half gives an unbiased estimate for these genes.
    """
    zeros = np.zeros(training.n_vars)
    halves = np.array_split(generator.permutation(training.n_obs), 2)
    first, second = (from_anndata(training[rows], types, zeros, zeros) for rows in halves)
    return unexpressed(first.by_type(len(types))), second


def real_cells(held_out: AnnData, types: pd.Index, share: float, generator: np.random.Generator) -> Cells:
    """Add ambient RNA with the mean profile of the real cells."""
    counts = held_out.X.toarray()
    profile = profile_of(counts)
    cumulative = np.tile(profile.cumsum(), (len(counts), 1))
    droplets = Droplets(counts.copy(), counts)
    add_ambient(droplets, share, cumulative, generator)
    empty = generator.multinomial(EMPTY_COUNTS, profile.astype(float) / profile.sum(dtype=float))
    return Cells(droplets.counts, types.get_indexer(held_out.obs["cell_type"]), profile, empty)


def generated_cells(model: BranchedModel, types: pd.Index, n_cells: dict[str, int], share: float, seed: int) -> Cells:
    """Simulate cells with ambient RNA of the learned profile."""
    settings = {"share": share, "empty_counts": EMPTY_COUNTS}
    adata = simulate_cells(model, read_design({"samples": {"cells": n_cells}, "ambient": settings, "seed": seed}))
    ambient, empty_droplets = (adata.varm[name].iloc[:, 0].to_numpy() for name in ("ambient", "empty_droplets"))
    return from_anndata(adata, types, ambient, empty_droplets)


def main(
    prepared: Path, model: Path, out: Path, *, share: Annotated[list[float], typer.Option()], seed: int = 0
) -> None:
    """Write estimates of ambient RNA in generated and test cells by planted share."""
    adata, fitted = read_cells(prepared), load_model(model)
    types = pd.Index(fitted.cell_types)
    held_out = adata[adata.obs["split"] == "test"].copy()
    n_cells = {name: int(n) for name, n in held_out.obs["cell_type"].astype(str).value_counts().items()}
    genes, reference = halves_of_training(adata[adata.obs["split"] != "test"], types, numpy_generator(seed, "halves"))
    tables = []
    for planted in share:
        sets = {
            "real": real_cells(held_out, types, planted, numpy_generator(seed, "ambient", str(planted))),
            "generated": generated_cells(fitted, types, n_cells, planted, derive(seed, "ambient", str(planted))),
        }
        for name, cells in sets.items():
            generator = numpy_generator(seed, "bootstrap", name, str(planted))
            table = estimates(cells, reference, genes, generator)
            table["method"] = name + ", " + table.pop("profile") + " profile"
            table["covered"] = (table.pop("low") <= planted) & (planted <= table.pop("high"))
            tables.append(table.assign(planted=planted))
    write_rows(tidy(pd.concat(tables).astype({"covered": int}), ["method", "planted"]), out)


if __name__ == "__main__":
    typer.run(main)
