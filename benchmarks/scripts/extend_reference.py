"""Score the reference for extensions: real training cells, and cells of a model fitted on all types from the start."""

from pathlib import Path

import typer
from extend_score import scores_by_set, types_by_size

from bdm.evaluation.read import read_generated, read_real_cells
from bdm.files import atomic_write
from bdm.settings import EvaluationSettings


def main(
    prepared: Path, joint: Path, out: Path, *, n_repeats: int = EvaluationSettings().n_repeats, seed: int = 0
) -> None:
    """Write the scores of each type."""
    real = read_real_cells(prepared)
    sets = {"joint": read_generated(joint, real)}
    table = scores_by_set(real, sets, types_by_size(real), with_auc=True, n_repeats=n_repeats, seed=seed)
    with atomic_write(out) as path:
        table.to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    typer.run(main)
