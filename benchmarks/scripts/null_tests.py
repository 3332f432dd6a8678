"""P-values of tests between groups of donors, or samples of the same donors, that differ by chance alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from anndata import AnnData

from bdm.data.read import read_cells
from bdm.files import atomic_write
from bdm.power.composition import share_tests
from bdm.power.experiment import Experiment, ExperimentSettings
from bdm.power.expression import TESTS, expression_tests
from bdm.seeds import numpy_generator

COMPOSITION = "composition"
CONDITIONS = ("first", "second")
COLUMNS = ["method", "cell_type", "p_value", "fdr"]


def split_at_random(obs: pd.DataFrame, *, n_donors: int, paired: bool, generator: np.random.Generator) -> pd.DataFrame:
    """Choose ``n_donors`` donors at random for each of two conditions, or for both if samples are paired.

    Returns
    -------
    Table with an index ``sample`` (the donor, if samples are not paired) and the columns ``condition``, 0 or 1, and
    ``pair``, the donor, if samples are paired.
    """
    donor = obs["donor"].astype(str)
    donors = generator.permutation(donor.unique())
    if paired:
        samples = obs[["sample", "donor", "condition"]].astype(str).drop_duplicates().set_index("sample")
        samples = samples[samples["donor"].isin(donors[:n_donors])]
        condition = (samples["condition"] != samples["condition"].min()).astype(int)
        return pd.DataFrame({"condition": condition, "pair": samples["donor"]})
    return pd.DataFrame({"condition": np.repeat([0, 1], n_donors)}, index=donors[: 2 * n_donors])


def tests_of_expression(cells: AnnData, sample: pd.Series, samples: pd.DataFrame) -> pd.DataFrame:
    """Test the genes of the cells of some samples by all methods."""
    chosen = cells[sample.isin(samples.index).to_numpy()].copy()
    obs = samples.loc[sample[chosen.obs_names]].set_index(chosen.obs_names)
    obs["condition"] = np.array(CONDITIONS)[obs["condition"]]
    chosen.obs = obs.assign(sample=sample, cell_type=chosen.obs["cell_type"])
    settings = ExperimentSettings(conditions=CONDITIONS, pair_key="pair" if "pair" in samples else None)
    return expression_tests(Experiment.of(chosen, settings), TESTS)


def main(
    cells: Path,
    out: Path,
    *,
    n_donors: int = 6,
    n_splits: int = 30,
    n_splits_composition: int = 500,
    paired: bool = False,
    name: str = "real",
    seed: int = 0,
) -> None:
    """Write the p-values of all methods, cell types and genes in random splits of the donors of ``cells``.

    Cells have raw counts in X, and obs has donor and cell_type, and with ``--paired`` sample and condition. Composition
    has splits of its own, as there are few cell types.
    """
    adata = read_cells(cells)
    sample = adata.obs["sample" if paired else "donor"].astype(str)
    n_cells = pd.crosstab(sample, adata.obs["cell_type"].astype(str))
    tables = []
    for split in range(max(n_splits, n_splits_composition)):
        generator = numpy_generator(seed, "designs", n_donors, split)
        samples = split_at_random(adata.obs, n_donors=n_donors, paired=paired, generator=generator)
        if split < n_splits:
            tables.append(tests_of_expression(adata, sample, samples).assign(split=split))
        if split < n_splits_composition:
            numbers = n_cells.loc[samples.index]
            tables.append(share_tests(numbers, samples).assign(method=COMPOSITION, split=split))
    with atomic_write(out) as path:
        found = pd.concat(tables)[[*COLUMNS, "split"]].assign(cells=name, donors=n_donors, seed=seed)
        found.to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    typer.run(main)
