"""P-values of tests between two groups of donors that differ by chance alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from anndata import AnnData

from bdm.data.read import read_cells
from bdm.files import atomic_write
from bdm.power.composition import composition_table
from bdm.power.experiment import Experiment, ExperimentSettings
from bdm.power.expression import TESTS, expression_tests
from bdm.seeds import numpy_generator

COMPOSITION = "composition"
SETTINGS = ExperimentSettings(sample_key="donor")


def split_at_random(cells: AnnData, *, n_donors: int, generator: np.random.Generator) -> AnnData:
    """Choose ``n_donors`` donors at random for each of two conditions."""
    donors = generator.permutation(np.unique(cells.obs[SETTINGS.sample_key].astype(str)))[: 2 * n_donors]
    of_cell = cells.obs[SETTINGS.sample_key].astype(str)
    chosen = cells[of_cell.isin(donors)].copy()
    second = chosen.obs[SETTINGS.sample_key].astype(str).isin(donors[n_donors:])
    chosen.obs[SETTINGS.condition_key] = np.where(second, "second", "first")
    return chosen


def p_values(cells: AnnData) -> pd.DataFrame:
    """Test an experiment by all methods."""
    experiment = Experiment.of(cells, SETTINGS)
    composition = composition_table(experiment).assign(method=COMPOSITION)
    return pd.concat([expression_tests(experiment, TESTS), composition])[["method", "cell_type", "p_value", "fdr"]]


def main(cells: Path, out: Path, *, n_donors: int = 6, n_splits: int = 30, name: str = "real", seed: int = 0) -> None:
    """Write the p-values of all methods, cell types and genes in ``n_splits`` random splits of the donors of ``cells``.

    Cells have raw counts in X, and obs has donor and cell_type.
    """
    adata = read_cells(cells)
    tables = []
    for split in range(n_splits):
        chosen = split_at_random(adata, n_donors=n_donors, generator=numpy_generator(seed, "designs", split))
        tables.append(p_values(chosen).assign(split=split))
    with atomic_write(out) as path:
        pd.concat(tables).assign(cells=name).to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    typer.run(main)
