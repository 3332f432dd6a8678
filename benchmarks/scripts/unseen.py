"""Transmute cells of each type to a condition in which the model has seen no cell of the type, and score them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from anndata import AnnData
from train_subset import cells_of_types, encoded, fit_model_of
from transmute import pairs_of, transmuted

from bdm.data.prepare import read_prepared
from bdm.evaluation.cells import FEWEST_FOR_MEANS, Cells, RealCells
from bdm.evaluation.metrics import Agreement
from bdm.evaluation.read import read_real_cells
from bdm.files import atomic_write
from bdm.model.model import BranchedModel
from bdm.settings import AutoencoderSettings, DenoiserSettings, HierarchySettings, InputKeys
from bdm.transmutation.evaluate import evaluate_transmutation, select_endpoints
from bdm.transmutation.request import Goal, Pair, shift, sources_of, weights
from bdm.transmutation.scores import mean_expression
from bdm.transmutation.transmute import Transmute


def model_without(prepared: AnnData, cell_type: str, *, n_steps: int, seed: int) -> BranchedModel:
    """Train all that a shift needs, which is all but the denoiser, on the cells of all other types."""
    others = set(prepared.obs["cell_type"].cat.categories) - {cell_type}
    found = encoded(cells_of_types(prepared, others), AutoencoderSettings(n_steps=n_steps), seed=seed)
    return fit_model_of(found, HierarchySettings(n_bootstrap=0), DenoiserSettings(n_steps=1), seed=seed)


def strategies(model: BranchedModel, cell_type: str, pairs: tuple[Pair, ...]) -> Iterator[tuple[str, Transmute]]:
    """Yield each strategy to shift cells as the pairs differ."""
    nearest = weights(model, cell_type, pairs).idxmax()
    shifts = {
        "like the nearest types": shift(model, cell_type, pairs),
        "like the nearest type": shift(model, cell_type, (Pair(*nearest),)),
        "common shift": torch.stack([shift(model, cell_type, (pair,)) for pair in pairs]).mean(dim=0),
    }
    for name, difference in shifts.items():
        yield name, lambda x, population, to, generator, difference=difference: x + difference


def by_genes(real: RealCells, old: str, new: str, weight: pd.Series) -> float:
    """R² of means, as for transmuted cells, of the old type's mean plus the pairs' mean differences, gene by gene."""
    ends = select_endpoints(real, old, new)
    expression = {
        name: mean_expression(real.training[real.training.cell_type == name]) for pair in weight.index for name in pair
    }
    difference = sum(w * (expression[pair[1]] - expression[pair[0]]) for pair, w in weight.items())
    predicted = np.maximum(mean_expression(ends.old) + difference, 0)
    return Agreement(predicted[ends.changed], mean_expression(ends.test)[ends.changed]).correlation ** 2


def main(
    prepared: Path,
    out: Path,
    *,
    condition: Annotated[str, typer.Option(help="OLD=NEW")],
    n_steps: int = AutoencoderSettings().n_steps,
    seed: int = 0,
) -> None:
    """Write the scores of every strategy and type."""
    real, adata = read_real_cells(prepared), read_prepared(prepared)
    pairs = [Pair(*pair) for pair in pairs_of(list(adata.obs["cell_type"].cat.categories), condition)]
    tables = []
    for old, new in pairs:
        if (real.test.cell_type == new).sum() < FEWEST_FOR_MEANS:
            continue
        model = model_without(adata, new, n_steps=n_steps, seed=seed)
        others = tuple(pair for pair in pairs if pair != (old, new))
        sources = sources_of(adata, model, Goal(new, others), InputKeys(label_key="cell_type"), cell_types=(old,))
        before = Cells.from_anndata(adata[sources.adata.obs_names])
        sets = {
            name: transmuted(model, sources, before, new, strategy, seed=seed)
            for name, strategy in strategies(model, old, others)
        }
        table = evaluate_transmutation(real, sets, new, seed=seed).table
        weight = weights(model, old, others)
        for name, of_pairs in {"nearest types": weight, "common": weight * 0 + 1 / len(weight)}.items():
            table.loc[(old, f"{name}, gene by gene"), "mean_r2"] = by_genes(real, old, new, of_pairs)
        tables.append(table.reset_index().assign(to=new))
    with atomic_write(out) as path:
        pd.concat(tables).to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    typer.run(main)
