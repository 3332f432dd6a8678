"""Extend models of the largest cell types by all others, one after the other, and score them after each."""

from pathlib import Path

import pandas as pd
import typer
from extend_score import check_unchanged, generated, scores_by_set, types_by_size
from extend_strategies import EXTENSION, Settings, extended_models, starting_models
from train_subset import cells_of_types

from bdm.data.prepare import read_prepared
from bdm.evaluation.cells import Cells
from bdm.evaluation.read import read_generated, read_real_cells
from bdm.files import atomic_write
from bdm.settings import AutoencoderSettings, DenoiserSettings, EvaluationSettings

N_FIRST = 3  # types that the models begin with


def main(
    prepared: Path,
    joint: Path,
    out: Path,
    *,
    with_flat: bool = False,
    autoencoder_steps: int = AutoencoderSettings().n_steps,
    denoiser_steps: int = DenoiserSettings().n_steps,
    n_repeats: int = EvaluationSettings().n_repeats,
    seed: int = 0,
) -> None:
    """Write the scores of all types known after each addition, and of cells of a model of all types."""
    real, adata = read_real_cells(prepared), read_prepared(prepared)
    cells = adata[adata.obs["split"] != "test"]
    types, n_by_type = types_by_size(real), real.test.n_by_type * n_repeats
    settings = Settings.of_steps(autoencoder_steps, denoiser_steps)
    first = starting_models(cells_of_types(cells, types[:N_FIRST]), settings, with_flat=with_flat, seed=seed)
    models, reference = first.by_strategy(), {"joint": read_generated(joint, real)}
    before, tables = generated(models[EXTENSION], n_by_type, seed=seed), []
    for step in range(1, len(types) - N_FIRST + 1):
        known, new = types[: N_FIRST + step], types[N_FIRST + step - 1]
        after = extended_models(models, cells, new, settings, seed=seed)
        models = {way: found.result for way, found in after.items()}
        sets = {way: generated(model, n_by_type, seed=seed) for way, model in models.items()}
        check_unchanged(before, sets[EXTENSION])
        before = sets[EXTENSION]
        table = scores_by_set(
            real,
            reference | {way: Cells.from_anndata(adata) for way, adata in sets.items()},
            known,
            with_auc=known == types,
            n_repeats=n_repeats,
            seed=seed,
        )
        seconds = table["set"].map({way: found.seconds for way, found in after.items()})
        tables.append(table.assign(step=step, added=new, seconds=seconds))
    with atomic_write(out) as path:
        pd.concat(tables).to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    typer.run(main)
