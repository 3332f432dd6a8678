"""Compare cell types added to a trained model with a model of all types."""

from pathlib import Path
from time import process_time

import pandas as pd
import typer
from anndata import AnnData
from tidy import tidy, write_rows

from bdm.applications.extension.extend import ExtendSettings, add_type
from bdm.data.cell_sets import read_generated, read_real_cells
from bdm.data.cells import MIN_CELLS_FOR_MEANS, Cells
from bdm.data.prepare import read_prepared
from bdm.evaluation.evaluate import evaluate
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.model.fit_model import fit
from bdm.model.model import BranchedModel
from bdm.settings import (
    AutoencoderSettings,
    EvaluationSettings,
    FitSettings,
    GenerationSettings,
    TrainSettings,
)

SCORES = ["energy", "forest_auc"]


def subset(prepared: AnnData, types: list[str]) -> AnnData:
    """Select the cells of some types."""
    cells = prepared[prepared.obs["cell_type"].isin(types)].copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.remove_unused_categories()
    return cells


def generated(model: BranchedModel, n_by_type: pd.Series, *, seed: int) -> AnnData:
    """Generate as many cells of each type as there are test cells."""
    numbers = {name: int(n_by_type[name]) for name in model.cell_types}
    return generate_cells(model, request_cells(model, numbers), GenerationSettings(), seed=seed)


def check_unchanged(before: AnnData, after: AnnData) -> None:
    """Check that cells of known types are bitwise identical after the extension."""
    known = after[: before.n_obs]
    same_names = (known.obs["cell_type"].astype(str) == before.obs["cell_type"].astype(str)).all()
    if not same_names or (known.X != before.X).nnz or (known.obsm["latent"] != before.obsm["latent"]).any():
        raise SystemExit("Cells of known types changed with the extension.")


def main(
    prepared: Path,
    joint: Path,
    out: Path,
    *,
    every: int = 1,
    n_steps: int = AutoencoderSettings().n_steps,
    seed: int = 0,
) -> None:
    """Write the scores of added types, with a joint model and the floor.

    Every ``every``-th type by size is left out and added in turn. Types with fewer than five test cells are not scored.
    Times are processor seconds.
    """
    real, cells = read_real_cells(prepared), read_prepared(prepared)
    sizes = real.training.n_by_type.sort_values(ascending=False, kind="stable").index
    scored = [name for name in sizes if name in real.test.types(fewest=MIN_CELLS_FOR_MEANS)]
    settings = FitSettings(autoencoder=AutoencoderSettings(n_steps=n_steps), train=TrainSettings(n_steps=n_steps))
    joint_cells, tables = read_generated(joint, real), []
    for new in scored[every - 1 :: every]:
        start = process_time()
        model, _ = fit(subset(cells, [name for name in sizes if name != new]), settings, seed=seed)
        trained = process_time()
        extended = add_type(model, subset(cells, [new]), new, ExtendSettings(), seed=seed, provenance={}).model
        seconds = {"training_seconds": trained - start, "extension_seconds": process_time() - trained}
        sets = [generated(fitted, real.test.n_by_type, seed=seed) for fitted in (model, extended)]
        check_unchanged(*sets)
        compared = {"extension": Cells.from_anndata(sets[1]), "joint": joint_cells}
        evaluation = evaluate(real, compared, EvaluationSettings(n_repeats=1), seed=seed)
        scores = evaluation.by_type.xs(new, level="cell_type")[SCORES].rename_axis("method").reset_index()
        scores.loc[scores["method"] == "extension", list(seconds)] = list(seconds.values())
        tables.append(scores.assign(cell_type=new, n_test=real.test.n_by_type[new]))
    write_rows(tidy(pd.concat(tables), ["method", "cell_type", "n_test"]), out)


if __name__ == "__main__":
    typer.run(main)
