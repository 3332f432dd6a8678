"""Measure what it costs to draw cells of all types from shared ancestors."""

from pathlib import Path
from time import perf_counter

import pandas as pd
import typer

from bdm.files import atomic_write
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.model.model import BranchedModel, load_model
from bdm.settings import SamplerSettings


def evaluations(model: BranchedModel) -> int:
    """Count how often the network is evaluated, on one cell of one branch, for one cell of every type."""
    calls = []
    hook = model.denoiser.register_forward_hook(lambda *call: calls.append(1))
    draw(model, 1, seed=0)
    hook.remove()
    return len(calls)


def draw(model: BranchedModel, n_cells: int, *, seed: int) -> None:
    """Draw ``n_cells`` of every type, as counts."""
    generate_cells(model, request_cells(model, n_cells), SamplerSettings(), seed=seed, shared_ancestors=True)


def main(model: Path, out: Path, *, cells: int = 512, seed: int = 0) -> None:
    """Write evaluations and milliseconds a cell, for many cells of every type."""
    loaded = load_model(model)
    n_types = len(loaded.cell_types)
    n_evaluations = evaluations(loaded)  # first of all, as much is set up with the first cells
    start = perf_counter()
    draw(loaded, cells, seed=seed)
    milliseconds = 1000 * (perf_counter() - start)
    row = {"evaluations": n_evaluations / n_types, "milliseconds": milliseconds / (cells * n_types)}
    with atomic_write(out) as path:
        pd.DataFrame([row]).to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    typer.run(main)
