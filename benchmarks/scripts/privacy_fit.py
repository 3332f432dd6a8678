"""Fit a model to the members, or to the reference, of a division of donors."""

from pathlib import Path
from typing import Annotated

import typer
from privacy_divisions import divide

from bdm.audit.folds import MEMBERS, training_cells
from bdm.data.prepare import read_prepared
from bdm.files import atomic_write
from bdm.model.card import save_with_card
from bdm.model.fit import fit
from bdm.settings import FitSettings


def main(
    prepared: Path,
    out: Path,
    *,
    division: Annotated[str, typer.Option()],
    n_others: Annotated[int, typer.Option()],
    part: str = MEMBERS,
    seed: int = 0,
) -> None:
    """Write the model, without protection."""
    read = read_prepared(prepared)
    cells = training_cells(read, divide(read, division, n_others=n_others, seed=seed), part, seed=seed)
    with atomic_write(out, folder_of="model.json") as folder:
        save_with_card(folder, fit(cells, FitSettings(), seed=seed).model)


if __name__ == "__main__":
    typer.run(main)
