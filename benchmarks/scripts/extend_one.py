"""Leave one cell type out, extend trained models by it, and score them."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from extend_score import check_unchanged, generated, scored_types, scores_by_set, types_by_size
from extend_strategies import BEFORE, EXTENSION, FLAT_BEFORE, Settings, extended_models, starting_models
from train_subset import cells_of_types

from bdm.data.prepare import read_prepared
from bdm.evaluation.cells import Cells
from bdm.evaluation.read import read_real_cells
from bdm.files import atomic_write
from bdm.settings import AutoencoderSettings, DenoiserSettings, EvaluationSettings


def main(
    prepared: Path,
    out: Path,
    *,
    number: Annotated[int, typer.Option(help="Of the type to leave out, the largest being 1.")],
    with_flat: bool = False,
    autoencoder_steps: int = AutoencoderSettings().n_steps,
    denoiser_steps: int = DenoiserSettings().n_steps,
    n_repeats: int = EvaluationSettings().n_repeats,
    seed: int = 0,
) -> None:
    """Leave out the type of that number, by size, and write how all types fare before and after it was learned."""
    real, adata = read_real_cells(prepared), read_prepared(prepared)
    cells = adata[adata.obs["split"] != "test"]
    types = scored_types(real)
    new = types[number - 1]
    old = [name for name in types_by_size(real) if name != new]
    settings = Settings.of_steps(autoencoder_steps, denoiser_steps)
    before = starting_models(cells_of_types(cells, old), settings, with_flat=with_flat, seed=seed)
    after = extended_models(before.by_strategy(), cells, new, settings, seed=seed)

    models = {BEFORE: before.branched.result} | ({FLAT_BEFORE: before.flat} if before.flat else {})
    models |= {way: found.result for way, found in after.items()}
    n_by_type = real.test.n_by_type * n_repeats
    sets = {name: generated(model, n_by_type, seed=seed) for name, model in models.items()}
    check_unchanged(sets[BEFORE], sets[EXTENSION])
    sets = {name: Cells.from_anndata(adata) for name, adata in sets.items()}
    of_new = scores_by_set(
        real,
        {way: sets[way] for way in after},
        [*old, new],
        with_floor=False,
        with_auc=True,
        n_repeats=n_repeats,
        seed=seed,
    )
    of_old = scores_by_set(real, sets, old, with_floor=False, n_repeats=n_repeats, seed=seed)
    table = pd.concat([of_new[of_new["cell_type"] == new], of_old])
    seconds = {BEFORE: before.branched.seconds, **{way: found.seconds for way, found in after.items()}}
    with atomic_write(out) as path:
        table.assign(added=new, seconds=table["set"].map(seconds)).to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    typer.run(main)
