"""Count the populations of one donor in the models of an audit, and compare their cells with cells of other donors."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import typer
from audit_scores import fidelity

from bdm.audit.folds import MEMBERS, NON_MEMBERS, Division, divide, members_by_type
from bdm.audit.results import GENERATED
from bdm.audit.settings import AuditSettings
from bdm.data.filters import effective_donors
from bdm.data.matrix import take_cells
from bdm.data.prepare import read_prepared
from bdm.evaluation.cells import FLOOR, Cells
from bdm.files import atomic_write
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.latent.cells import populations_of_cells
from bdm.model.model import BranchedModel, load_model
from bdm.settings import GenerationSettings

TWO = 2.0  # donors in effect: a population of fewer has more than half of its cells of one donor


def of_one_donor(model: BranchedModel, division: Division, rows: np.ndarray) -> dict[str, float]:
    """Count the populations of a model, those of fewer than two donors in effect, and their cells."""
    members = take_cells(division.cells, rows)
    population = pd.Series(populations_of_cells(members, model.autoencoder))
    n_donors = effective_donors(population, members.obs["donor"])
    few = n_donors.index[n_donors < TWO]
    return {
        "n_populations": len(n_donors),
        "n_of_one_donor": len(few),
        "share_of_one_donor": population.isin(few).mean(),
        "fewest_donors": n_donors.min(),
    }


def rows(division: Division, models: Path, *, seed: int) -> Iterator[dict[str, object]]:
    """Yield the scores of each fold: real cells of the members (the floor), and generated cells."""
    cells = Cells.from_anndata(division.cells)
    for fold in division.folds:
        others, of_members = cells[fold.rows(NON_MEMBERS)], fold.rows(MEMBERS)
        model = load_model(models / f"fold-{fold.number}" / MEMBERS)
        request = request_cells(model, members_by_type(division.cells.obs, fold))
        made = Cells.from_anndata(generate_cells(model, request, GenerationSettings(), seed=seed))
        found = of_one_donor(model, division, of_members)
        yield {"fold": fold.number, "set": FLOOR, **fidelity(cells[of_members], others, seed=seed)}
        yield {"fold": fold.number, "set": GENERATED, **found, **fidelity(made, others, seed=seed)}


def main(prepared: Path, models: Path, out: Path, *, n_folds: int = 3, seed: int = 0) -> None:
    """Write two rows for each fold."""
    division = divide(read_prepared(prepared), AuditSettings(n_folds=n_folds), seed=seed)
    with atomic_write(out) as path:
        pd.DataFrame(rows(division, models, seed=seed)).to_csv(path, index=False, float_format="%.5f")


if __name__ == "__main__":
    typer.run(main)
