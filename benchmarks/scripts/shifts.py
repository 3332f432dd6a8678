"""Which shifts the verdict on the energy distance detects, with how many cells of a type."""

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from as_text import markdown

from bdm.data.prepare import read_prepared
from bdm.evaluation.cells import Cells, sample_at_most
from bdm.evaluation.distances import PairDistances
from bdm.evaluation.metrics import fitted_pca
from bdm.evaluation.verdict import Grade, verdict
from bdm.seeds import numpy_generator

N_CELLS, SIZES = (35, 100, 500), (0.0, 0.2, 0.3, 0.5, 0.8)
MOST = 10_000  # cells of a data set
FLOOR = {"relative_energy": 0.0, "relative_energy_chance": 0.0}


def grade_of(x: np.ndarray, y: np.ndarray) -> Grade:
    """Grade the energy distance of two samples, where the floor is ideal."""
    pairs = PairDistances.between(x, y)
    scores = {
        "relative_energy": pairs.energy / pairs.spread,
        "relative_energy_chance": pairs.energy_chance.deviation / pairs.spread,
        "relative_energy_skewness": pairs.energy_chance.skewness,
    }
    return verdict(scores, FLOOR, n_cells=len(x)).grade


def grades(cells: Cells, data: str, *, n_draws: int, seed: int) -> pd.DataFrame:
    """Grade random halves of cells of each type, of which one is shifted along the main axis of the type."""
    cells = sample_at_most(cells, most=MOST, seed=seed)
    coordinates, rows = fitted_pca(cells.expression, seed=seed).transform(cells.expression), []
    for n_cells in N_CELLS:
        for cell_type in cells.types(fewest=2 * n_cells):
            of_type = coordinates[cells.cell_type == cell_type]
            axis = np.linalg.svd(of_type - of_type.mean(axis=0), full_matrices=False)[2][0]
            deviation, generator = (of_type @ axis).std(), numpy_generator(seed, data, cell_type, n_cells)
            for draw in range(n_draws):
                x, y = np.split(generator.permutation(of_type)[: 2 * n_cells], 2)
                for size in SIZES:
                    grade = grade_of(x + size * deviation * axis, y)
                    rows.append((data, cell_type, n_cells, draw, size, grade.name))
    return pd.DataFrame(rows, columns=["data", "cell_type", "n_cells", "draw", "shift", "grade"])


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Return the shares of each shift that are detected, and that are found large, by number of cells, in per cent."""
    found = table.assign(found=100 * (table["grade"] != "SAME"), large=100 * (table["grade"] == "DIFFERS"))
    means = found.groupby(["shift", "n_cells", "data", "cell_type"])[["found", "large"]].mean()
    by = means.groupby(["shift", "n_cells"]).mean()  # every type counts equally
    return (by["found"].map("{:.0f}".format) + by["large"].map(" ({:.0f})".format)).unstack(fill_value="")


def main(out: Path, prepared: list[Path], *, n_draws: int = 20, seed: int = 0) -> None:
    """Write all grades, and print their overview."""
    parts = [
        grades(Cells.from_anndata(read_prepared(path)), path.stem, n_draws=n_draws, seed=seed) for path in prepared
    ]
    table = pd.concat(parts, ignore_index=True)
    table.to_csv(out, index=False)
    print(markdown(overview(table)))
    print(table.groupby("n_cells")[["data", "cell_type"]].agg(lambda names: names.nunique()))


if __name__ == "__main__":
    typer.run(main)
