"""How much ambient RNA is found in cells to which it was added: of a design, and of real cells that were held out.

The estimator is the one of SoupX (Young and Behjati 2020): counts of genes in cell types that do not express them are
ambient RNA. Cells have a little of it before any is added, whose share is estimated from the training cells.
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

MAX_AMBIENT = 0.1  # share of ambient RNA in a type by the counts of a gene that the type does not express
EMPTY_COUNTS = 10_000  # counts in empty droplets
N_BOOTSTRAP = 200


@dataclass(frozen=True)
class Cells:
    """Cells with ambient RNA.

    Attributes
    ----------
    counts
        Cells x genes.
    cell_type
        Index of the type of each cell.
    ambient, empty_droplets
        Share of each gene in the ambient RNA, and counts in empty droplets.
    """

    counts: np.ndarray
    cell_type: np.ndarray
    ambient: np.ndarray
    empty_droplets: np.ndarray

    def by_type(self, n_types: int, weight: np.ndarray | None = None) -> np.ndarray:
        """Sum the counts of cells by type, types x genes; cells count as often as their weight."""
        member = self.cell_type == np.arange(n_types)[:, None]
        return np.asarray((member if weight is None else member * weight).astype(np.float32) @ self.counts)

    def resampled(self, n_types: int, generator: np.random.Generator) -> np.ndarray:
        """Sum the counts of as many cells, drawn with replacement, by type."""
        drawn = generator.integers(len(self.counts), size=len(self.counts))
        return self.by_type(n_types, np.bincount(drawn, minlength=len(self.counts)))


def unexpressed(by_type: np.ndarray) -> np.ndarray:
    """Find the genes that each type does not express (types x genes), from counts summed by type."""
    expected = by_type.sum(axis=1, keepdims=True) * profile_of(by_type)
    with np.errstate(divide="ignore"):
        return np.asarray((by_type + 1) / expected < MAX_AMBIENT)


def profile_of(counts: np.ndarray) -> np.ndarray:
    """Share of each gene in all counts."""
    return np.asarray(counts.sum(axis=0) / counts.sum())


def share_of_ambient(by_type: np.ndarray, profile: np.ndarray, genes: np.ndarray) -> float:
    """Estimate the share of ambient RNA by maximum likelihood, from genes that types do not express.

    Their counts are Poisson with the mean ``share * library size * profile``.
    """
    return float((by_type * genes).sum() / (by_type.sum(axis=1, keepdims=True) * profile * genes).sum())


def estimates(cells: Cells, reference: Cells, genes: np.ndarray, generator: np.random.Generator) -> pd.DataFrame:
    """Estimate the share beyond what reference cells have, with 95% intervals by a bootstrap of both sets of cells.

    Parameters
    ----------
    genes
        Whether each type does not express each gene, types x genes.

    Returns
    -------
    A row for each profile, with ``found``, ``low`` and ``high``.
    """
    n_types = len(genes)

    def beyond(by_type: np.ndarray, profile: np.ndarray, before: float) -> float:
        return (share_of_ambient(by_type, profile, genes) - before) / (1 - before)

    def background(by_type: np.ndarray) -> float:
        return share_of_ambient(by_type, profile_of(by_type), genes)

    observed, before = cells.by_type(n_types), background(reference.by_type(n_types))
    measured = cells.empty_droplets / cells.empty_droplets.sum()
    drawn: dict[str, list[float]] = {"known": [], "empty": []}
    for _ in range(N_BOOTSTRAP):
        sums, at_first = cells.resampled(n_types, generator), background(reference.resampled(n_types, generator))
        empty = generator.multinomial(EMPTY_COUNTS, measured) / EMPTY_COUNTS
        for name, profile in {"known": cells.ambient, "empty": empty}.items():
            drawn[name].append(beyond(sums, profile, at_first))
    rows = []
    for name, profile in {"known": cells.ambient, "empty": measured}.items():
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        found = beyond(observed, profile, before)
        rows.append({"profile": name, "found": found, "low": low, "high": high})
    return pd.DataFrame(rows)


def with_profile(adata: AnnData, types: pd.Index, ambient: np.ndarray, empty_droplets: np.ndarray) -> Cells:
    """Bring cells to arrays."""
    return Cells(adata.X.toarray(), types.get_indexer(adata.obs["cell_type"]), ambient, empty_droplets)


def halves_of_training(training: AnnData, types: pd.Index, generator: np.random.Generator) -> tuple[np.ndarray, Cells]:
    """Find unexpressed genes in one half of the training cells; the others, in which they are no fewer by choice."""
    none = np.zeros(training.n_vars)
    halves = np.array_split(generator.permutation(training.n_obs), 2)
    first, second = (with_profile(training[rows], types, none, none) for rows in halves)
    return unexpressed(first.by_type(len(types))), second


def real_cells(held_out: AnnData, types: pd.Index, share: float, generator: np.random.Generator) -> Cells:
    """Add ambient RNA to real cells as a design does, with the profile of all of them."""
    counts = held_out.X.toarray()
    profile = profile_of(counts)
    cumulative = np.tile(profile.cumsum(), (len(counts), 1))
    with_share = add_ambient(Droplets(counts.copy(), counts), share, cumulative, generator).counts
    empty = generator.multinomial(EMPTY_COUNTS, profile.astype(float) / profile.sum(dtype=float))
    return Cells(with_share, types.get_indexer(held_out.obs["cell_type"]), profile, empty)


def generated_cells(model: BranchedModel, types: pd.Index, n_cells: dict[str, int], share: float, seed: int) -> Cells:
    """Simulate a design with ambient RNA of the learned profile."""
    ambient = {"share": share, "empty_counts": EMPTY_COUNTS}
    adata = simulate_cells(model, read_design({"samples": {"cells": n_cells}, "ambient": ambient, "seed": seed}))
    return with_profile(
        adata, types, *(adata.varm[name].iloc[:, 0].to_numpy() for name in ("ambient", "empty_droplets"))
    )


def main(
    prepared: Path, model: Path, out: Path, *, share: Annotated[list[float], typer.Option()], seed: int = 0
) -> None:
    """Write the estimated share of ambient RNA in generated cells and in test cells, by the share that was planted."""
    adata, fitted = read_cells(prepared), load_model(model)
    types = pd.Index(fitted.cell_types)
    held_out = adata[adata.obs["split"] == "test"].copy()
    n_cells = {name: int(n) for name, n in held_out.obs["cell_type"].astype(str).value_counts().items()}
    genes, reference = halves_of_training(adata[adata.obs["split"] != "test"], types, numpy_generator(seed, "halves"))
    tables = []
    for one in share:
        sets = {
            "real": real_cells(held_out, types, one, numpy_generator(seed, "ambient", str(one))),
            "generated": generated_cells(fitted, types, n_cells, one, derive(seed, "ambient", str(one))),
        }
        for name, cells in sets.items():
            generator = numpy_generator(seed, "bootstrap", name, str(one))
            found = estimates(cells, reference, genes, generator)
            found["method"] = name + ", " + found.pop("profile") + " profile"
            found["covered"] = (found.pop("low") <= one) & (one <= found.pop("high"))
            tables.append(found.assign(planted=one))
    write_rows(tidy(pd.concat(tables).astype({"covered": int}), ["method", "planted"]), out)


if __name__ == "__main__":
    typer.run(main)
