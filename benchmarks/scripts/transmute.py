"""Transmute cells by several strategies, and score the results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import scipy.sparse as sp
import torch
import typer
from tidy import tidy, write_rows
from torch import Tensor

from bdm import InputError
from bdm.applications.transmutation.evaluate_transmuted import TransmutedCells, evaluate_transmutation
from bdm.applications.transmutation.transmute import (
    Sources,
    Transmute,
    population_mean,
    select_sources,
    transmuted_blocks,
)
from bdm.data.cell_sets import read_real_cells
from bdm.data.cells import FLOOR, Cells
from bdm.data.prepare import read_prepared
from bdm.evaluation.table import TYPE
from bdm.model.model import BranchedModel, load_model
from bdm.prior.transport import gaussian_transport
from bdm.settings import InputKeys


def strategies(
    model: BranchedModel, flat: BranchedModel, alike: list[tuple[str, str]]
) -> Iterator[tuple[str, BranchedModel, Transmute]]:
    """Yield the name, model and function of each strategy.

    Parameters
    ----------
    alike
        Pairs of types (before, after), including the current pair, for the common shift.
    """
    yield "branched", model, model.sampler().transmute
    yield "flat", flat, flat.sampler().transmute
    yield "mean difference", model, by_mean_difference(model)
    yield "linear map", model, by_linear_map(model)
    yield "common shift", model, by_common_shift(model, alike)
    yield "sampled anew", model, by_sampling(model)


def by_mean_difference(model: BranchedModel) -> Transmute:
    """Add the difference between the means of the populations."""
    return lambda x, population, to, generator: x + population_mean(model, to) - population_mean(model, population)


def by_linear_map(model: BranchedModel) -> Transmute:
    """Apply the optimal linear map between the moments of the populations."""

    def move(x: Tensor, population: str, to: str, generator: torch.Generator) -> Tensor:
        source, target = (model.moments.mixture_moments((name,)) for name in (population, to))
        return gaussian_transport(source, target, 0)(x)

    return move


def by_common_shift(model: BranchedModel, alike: list[tuple[str, str]]) -> Transmute:
    """Add the mean shift over all pairs of types.

    As in scGen (Lotfollahi et al. 2019, https://doi.org/10.1038/s41592-019-0494-8), in bdm's latent space.
    """
    shift = torch.stack([population_mean(model, new) - population_mean(model, old) for old, new in alike]).mean(dim=0)
    return lambda x, population, to, generator: x + shift


def by_sampling(model: BranchedModel) -> Transmute:
    """Sample new cells of the population, independent of the original cells."""
    sampler = model.sampler()
    return lambda x, population, to, generator: sampler.sample(to, len(x), generator)


def pairs_of(cell_types: list[str], condition: str) -> list[tuple[str, str]]:
    """Pair TYPE|OLD with TYPE|NEW for a condition OLD=NEW."""
    old, new = condition.split("=")
    known = set(cell_types)
    pairs = [(name, f"{name.removesuffix(f'|{old}')}|{new}") for name in cell_types if name.endswith(f"|{old}")]
    return [pair for pair in pairs if pair[1] in known]


def transmuted(model: BranchedModel, sources: Sources, before: Cells, move: Transmute, *, seed: int) -> TransmutedCells:
    """Transmute the cells by a strategy."""
    counts = sp.vstack([block.counts for block in transmuted_blocks(model, sources, move, seed=seed)], format="csr")
    return TransmutedCells(Cells(counts.astype("float32"), before.cell_type), before)


def main(
    prepared: Path,
    branched: Path,
    flat: Path,
    out: Path,
    *,
    pair: Annotated[list[str], typer.Option(help="OLD=NEW")] = [],  # noqa: B006
    condition: str = "",
    seed: int = 0,
) -> None:
    """Write the scores of every strategy and pair."""
    real, adata = read_real_cells(prepared), read_prepared(prepared)
    models = load_model(branched), load_model(flat)
    pairs = [tuple(item.split("=")) for item in pair] or pairs_of(list(models[0].cell_types), condition)
    tables = []
    for old, new in pairs:
        sources = select_sources(adata, models[0], new, InputKeys(label_key="cell_type"), cell_types=(old,))
        before = Cells.from_anndata(adata[sources.adata.obs_names])
        alike = pairs if condition else [(old, new)]
        sets = {
            name: transmuted(model, sources, before, strategy, seed=seed)
            for name, model, strategy in strategies(*models, alike)
        }
        try:
            scores = evaluate_transmutation(real, sets, new, seed=seed).scores
        except InputError as too_few:
            print(too_few)
            continue
        scores = scores[scores["kind"] == TYPE]
        wide = scores.pivot(index=["group", "set"], columns="score", values="value")
        floors = (
            scores.groupby(["group", "score"])["floor"]
            .first()
            .unstack()
            .assign(set=FLOOR)
            .set_index("set", append=True)
        )
        table = pd.concat([wide, floors]).rename_axis(["original_type", "method"]).rename_axis(columns=None)
        tables.append(table.reset_index().assign(to=new))
    write_rows(tidy(pd.concat(tables), ["method", "original_type", "to"]), out)


if __name__ == "__main__":
    typer.run(main)
