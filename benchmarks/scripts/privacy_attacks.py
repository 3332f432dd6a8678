"""Attack models with noise of several sizes, and their cells, and compare their cells with cells of other donors."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from privacy_divisions import divide

from bdm.audit.attacks import attack
from bdm.audit.folds import MEMBERS, NON_MEMBERS, REFERENCE, Fold, members_by_type
from bdm.audit.scores import curves, of_units, score_columns, standardised
from bdm.data.matrix import take_cells
from bdm.data.prepare import read_prepared
from bdm.evaluation.cells import Cells, sample_by_type
from bdm.evaluation.genes import marker_genes, variable_genes
from bdm.evaluation.resampling import SIZE_LIMITS
from bdm.evaluation.scores import Reference, score_cells
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.model.likelihood import bounds_of_cells, denoising_gains
from bdm.model.model import BranchedModel, load_model
from bdm.model.protection import protected
from bdm.settings import GenerationSettings

FIDELITY = ("energy", "forest_auc", "gene_auc", "f1", "slope", "fold_change_correlation")
MOST = 400  # cells of a type that are compared
FEWEST = 3  # generated cells of a type


@dataclass(frozen=True)
class Plan:
    """Sizes of the noise, and shares of the cells that are attacked alone, each in several draws."""

    noise: tuple[float, ...]
    shares: tuple[float, ...]
    draws: int


def attacks_on(
    prepared: AnnData, fold: Fold, generated: Cells, model: BranchedModel | None, reference_bounds: np.ndarray | None
) -> dict[str, float]:
    """Compute the areas under the ROC curves of donors, by attack; the model is attacked, too, if it is given."""
    attacked, reference = np.flatnonzero(np.isin(fold.part, (MEMBERS, NON_MEMBERS))), fold.rows(REFERENCE)
    cells = Cells.from_anndata(prepared)
    scores = attack(cells[attacked], generated, cells[reference], fold.unit[reference], seed=fold.number)
    if model is not None and reference_bounds is not None:
        taken = take_cells(prepared, attacked)
        scores["denoiser_loss"] = denoising_gains(model, taken, take_cells(prepared, reference), seed=0)
        scores["bound"] = bounds_of_cells(model, taken, seed=0) - reference_bounds
    keys = {"fold": fold.number, "unit": fold.unit[attacked], "cell_type": cells.cell_type[attacked]}
    keys["member"] = (fold.part[attacked] == MEMBERS).astype(int)
    donors = of_units(standardised(pd.concat([pd.DataFrame(keys), scores], axis=1)))
    return {f"attack/{name}": area for name, area, _ in curves(donors, score_columns(donors))}


def fidelity(cells: Cells, others: Cells, *, seed: int) -> dict[str, float]:
    """Compare cells with as many cells of donors that no model was fitted to."""
    n_cells = np.minimum(cells.n_by_type.reindex(others.n_by_type.index, fill_value=0), others.n_by_type).clip(
        upper=MOST
    )
    test = others[sample_by_type(others, n_cells, seed=seed)]
    reference = Reference(test, marker_genes(others), variable_genes(others), SIZE_LIMITS)
    query = cells[sample_by_type(cells, n_cells, seed=seed + 1)]
    scores = asdict(score_cells(query, reference, seed=seed).overall)
    return {name: scores[name] for name in FIDELITY}


def rows(
    prepared: AnnData, fold: Fold, model: BranchedModel, reference: BranchedModel | None, plan: Plan
) -> Iterator[dict[str, object]]:
    """Yield measures of each size of the noise, and of each share of the cells without noise."""
    cells = Cells.from_anndata(prepared)
    others, n_members = cells[fold.rows(NON_MEMBERS)], members_by_type(prepared.obs, fold)
    attacked = np.flatnonzero(np.isin(fold.part, (MEMBERS, NON_MEMBERS)))
    bounds = None if reference is None else bounds_of_cells(reference, take_cells(prepared, attacked), seed=0)
    yield {"set": "floor", **fidelity(cells[fold.rows(MEMBERS)], others, seed=0)}
    for noise in plan.noise:
        for draw in range(plan.draws if noise else 1):
            moved = protected(model, noise=noise, seed=draw) if noise else model
            generated = Cells.from_anndata(
                generate_cells(moved, request_cells(moved, n_members), GenerationSettings(), seed=draw)
            )
            found = attacks_on(prepared, fold, generated, moved, bounds)
            scores = {} if draw else fidelity(generated, others, seed=0)
            yield {"set": "noise", "noise": noise, "draw": draw, "n_cells": len(generated), **found, **scores}
            if noise:
                continue
            for share in plan.shares:
                for again in range(plan.draws):
                    n_cells = (generated.n_by_type * share).round().clip(lower=FEWEST).astype(int)
                    some = generated[sample_by_type(generated, n_cells, seed=again)]
                    found = attacks_on(prepared, fold, some, None, None)
                    yield {"set": "cells", "share": share, "draw": again, "n_cells": len(some), **found}


def main(
    prepared: Path,
    out: Path,
    *,
    division: Annotated[str, typer.Option()],
    n_others: Annotated[int, typer.Option()],
    members: Annotated[Path, typer.Option()],
    reference: Path | None = None,
    noise: Annotated[list[float], typer.Option()],
    share: list[float] = [],  # noqa: B006, as typer takes a list
    draws: int = 2,
    seed: int = 0,
) -> None:
    """Write a row for each set of cells."""
    read = read_prepared(prepared)
    fold = divide(read, division, n_others=n_others, seed=seed)
    of_reference = None if reference is None else load_model(reference)
    plan = Plan(tuple(noise), tuple(share), draws)
    table = pd.DataFrame(rows(read, fold, load_model(members), of_reference, plan))
    donors = pd.Series(fold.part).groupby(fold.unit).first().value_counts()
    table.insert(0, "n_donors", int(donors[MEMBERS]))
    table.to_csv(out, index=False, float_format="%.5f")


if __name__ == "__main__":
    typer.run(main)
