"""False positives of differential tests in random splits of donors or paired samples."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from tidy import tidy, write_rows

from bdm._core.seeds import numpy_generator
from bdm.applications.design.design import read_design
from bdm.applications.design.simulate import simulate_cells
from bdm.applications.power.differential import TESTS, Experiment, ExperimentSettings, expression_test, share_tests
from bdm.data.prepare import read_prepared
from bdm.model.model import load_model

COMPOSITION = "composition"
CONDITIONS = ("first", "second")
SHOWN = (0.05, 0.01, 0.001)
LEVELS = tuple(sorted({*np.logspace(-4, 0, 41).round(6), *SHOWN}))
DESIGNS = {"donors": "generated donors", "pairs": "generated pairs", "independent": "independent donors"}
FOLDER = Path(__file__).parents[1] / "designs"


def split_at_random(obs: pd.DataFrame, *, n_donors: int, paired: bool, generator: np.random.Generator) -> pd.DataFrame:
    """Choose ``n_donors`` random donors for each condition, or pairs of samples.

    Returns
    -------
    Table with the index ``sample`` (donors if unpaired), the column ``condition`` (0 or 1), and if paired the column
    ``pair`` (the donor).
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
    """Test differential expression between samples by all methods."""
    chosen = cells[sample.isin(samples.index).to_numpy()].copy()
    obs = samples.loc[sample[chosen.obs_names]].set_index(chosen.obs_names)
    obs["condition"] = np.array(CONDITIONS)[obs["condition"]]
    chosen.obs = obs.assign(sample=sample, cell_type=chosen.obs["cell_type"])
    settings = ExperimentSettings(conditions=CONDITIONS, pair_key="pair" if "pair" in samples else None)
    experiment = Experiment.from_anndata(chosen, settings)
    tables = [expression_test(experiment, method).assign(method=method) for method in TESTS]
    return pd.concat(tables, ignore_index=True)


def shares(tests: pd.DataFrame) -> pd.DataFrame:
    """Compute the share of p-values up to each level by method and split.

    Columns ``tests`` and ``false discoveries`` have their numbers.
    """
    known = tests.dropna(subset="p_value")
    by_split = known.groupby(["method", "split"], sort=False)
    table = {
        key: np.searchsorted(np.sort(values), LEVELS, side="right") / len(values) for key, values in by_split["p_value"]
    }
    by_level = pd.DataFrame(table, index=LEVELS).T.rename_axis(["method", "split"])
    by_level["tests"] = by_split.size()
    by_level["false discoveries"] = by_split["fdr"].agg(lambda fdr: (fdr < 0.05).sum())
    return by_level


def average_splits(tests: pd.DataFrame) -> pd.DataFrame:
    """Average over splits, by method and ``score``; rows with a ``level`` are curves."""
    groups = shares(tests).groupby(level="method", sort=False)
    mean, error = groups.mean(), groups.sem()
    shown = {f"p <= {level:g} (%)": 100 * mean[level] for level in SHOWN}
    shown |= {f"standard error, {level:g} (%)": 100 * error[level] for level in SHOWN}
    shown |= {name: mean[name] for name in ("tests", "false discoveries")}
    curves = tidy(mean[list(LEVELS)].reset_index(), ["method"]).rename(columns={"score": "level"})
    return pd.concat([tidy(pd.DataFrame(shown).reset_index(), ["method"]), curves.assign(score="share of p-values")])


def test_splits(
    cells: AnnData, *, n_donors: int, n_splits: int, n_splits_composition: int, paired: bool, seed: int
) -> pd.DataFrame:
    """Test random splits of donors.

    Composition has few cell types, hence its own number of splits.
    """
    sample = cells.obs["sample" if paired else "donor"].astype(str)
    n_cells = pd.crosstab(sample, cells.obs["cell_type"].astype(str))
    tables = []
    for split in range(max(n_splits, n_splits_composition)):
        generator = numpy_generator(seed, "designs", n_donors, split)
        samples = split_at_random(cells.obs, n_donors=n_donors, paired=paired, generator=generator)
        if split < n_splits:
            tables.append(tests_of_expression(cells, sample, samples).assign(split=split))
        if split < n_splits_composition:
            composition = share_tests(n_cells.loc[samples.index], samples)
            tables.append(composition.assign(method=COMPOSITION, split=split))
    return average_splits(pd.concat(tables))


def main(
    prepared: Path,
    model: Path,
    out: Path,
    *,
    n_donors: Annotated[list[int], typer.Option()],
    n_splits: int = 10,
    n_splits_composition: int = 500,
    seed: int = 0,
) -> None:
    """Write shares of small p-values for real and generated donors by their number."""
    fitted = load_model(model)
    sets = {"real donors": read_prepared(prepared)}
    for name, label in DESIGNS.items():
        design = read_design(FOLDER / f"{name}.yaml", seed=seed)
        sets[label] = simulate_cells(fitted, design)
    tables = [
        test_splits(
            cells,
            n_donors=number,
            n_splits=n_splits,
            n_splits_composition=n_splits_composition,
            paired=label == DESIGNS["pairs"],
            seed=seed,
        ).assign(cells=label, donors=number)
        for label, cells in sets.items()
        for number in n_donors
    ]
    write_rows(pd.concat(tables), out)


if __name__ == "__main__":
    typer.run(main)
