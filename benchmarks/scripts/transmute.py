"""Transmute cells by several strategies, and score all as `bdm evaluate-transmuted` does."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import scipy.sparse as sp
import typer
from transmutations import strategies

from bdm.data.prepare import read_prepared
from bdm.errors import InputError
from bdm.evaluation.cells import Cells
from bdm.evaluation.read import read_real_cells
from bdm.files import atomic_write
from bdm.model.model import BranchedModel, load_model
from bdm.settings import InputKeys
from bdm.transmutation.evaluate import TransmutedCells, evaluate_transmutation
from bdm.transmutation.request import Goal, sources_of
from bdm.transmutation.transmute import Transmute, transmuted_blocks


def pairs_of(cell_types: list[str], condition: str) -> list[tuple[str, str]]:
    """Pair the types TYPE|OLD and TYPE|NEW, for a condition OLD=NEW."""
    old, new = condition.split("=")
    known = set(cell_types)
    pairs = [(name, f"{name.removesuffix(f'|{old}')}|{new}") for name in cell_types if name.endswith(f"|{old}")]
    return [pair for pair in pairs if pair[1] in known]


def transmuted(model: BranchedModel, sources, before: Cells, to: str, move: Transmute, *, seed: int) -> TransmutedCells:
    """Transmute the cells by one strategy."""
    counts = sp.vstack([block.counts for block in transmuted_blocks(model, sources, to, move, seed=seed)], format="csr")
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
        sources = sources_of(adata, models[0], Goal(new), InputKeys(label_key="cell_type"), cell_types=(old,))
        before = Cells.from_anndata(adata[sources.adata.obs_names])
        alike = pairs if condition else [(old, new)]
        sets = {
            name: transmuted(model, sources, before, new, strategy, seed=seed)
            for name, model, strategy in strategies(*models, alike)
        }
        try:
            table = evaluate_transmutation(real, sets, new, seed=seed).table
        except InputError as too_few:
            print(too_few)
            continue
        tables.append(table.reset_index().assign(to=new))
    with atomic_write(out) as path:
        pd.concat(tables).to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    typer.run(main)
