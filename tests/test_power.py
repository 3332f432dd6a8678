"""Tests between conditions: validity, power and invalid input."""

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from pydeseq2.dds import DeseqDataSet
from pydeseq2.ds import DeseqStats
from scipy import sparse, stats
from scipy.special import expit, logit

from bdm._core.errors import InputError
from bdm.applications.design.design import read_design
from bdm.applications.power.analysis import check_testable
from bdm.applications.power.deseq import (
    deseq2,
)
from bdm.applications.power.differential import (
    TESTS,
    Experiment,
    ExperimentSettings,
    composition_tests,
    expression_test,
    log_cpm_tests,
    pseudobulk_tests,
    share_tests,
    wilcoxon_tests,
)
from bdm.data.gene_tests import adjusted

PAIRED = ExperimentSettings(pair_key="donor")
N_GENES, N_PLANTED = 150, 10
SIGN = np.where(np.arange(N_PLANTED) % 2, 1, -1)  # of planted changes
PLANTED = {f"gene_{number}" for number in range(N_PLANTED)}


def simulated(
    *, n_donors: int = 4, n_cells: int = 30, change: float = 0.0, donor_sd: float = 0.3, paired: bool = False, seed: int
) -> AnnData:
    """Simulate two types in two conditions, from donors with differences.

    The first genes change in type A.

    Parameters
    ----------
    change
        Log2 fold change, up and down in turn.
    donor_sd
        Standard deviation of natural log expression between donors.
    """
    generator = np.random.default_rng(seed)
    base = np.log(generator.gamma(2, 1, size=N_GENES))
    base[:N_PLANTED] = np.where(SIGN > 0, 0, change * np.log(2))  # so that library sizes hardly change
    counts, rows = [], []
    donors = generator.normal(0, donor_sd, size=(2, n_donors, N_GENES))
    for condition, name in enumerate(("control", "stimulated")):
        for donor in range(n_donors):
            for cell_type in "AB":
                log_mean = base + donors[0 if paired else condition, donor]
                if cell_type == "A" and condition:
                    log_mean[:N_PLANTED] += SIGN * change * np.log(2)
                shape = generator.gamma(3, 1 / 3, size=(n_cells, N_GENES))
                counts.append(generator.poisson(np.exp(log_mean) * shape))
                sample = f"{donor}_{name}"
                rows += [(sample, str(donor) if paired else sample, name, cell_type)] * n_cells
    obs = pd.DataFrame(rows, columns=["sample", "donor", "condition", "cell_type"]).astype("category")
    obs.index = [f"cell_{number}" for number in range(len(obs))]
    return AnnData(
        sparse.csr_matrix(np.concatenate(counts), dtype=np.float32),
        obs=obs,
        var=pd.DataFrame(index=[f"gene_{number}" for number in range(N_GENES)]),
    )


@pytest.fixture(scope="module")
def planted_cells() -> AnnData:
    """Six donors in each condition, and fourfold changes."""
    return simulated(n_donors=6, change=2.0, seed=0)


def found(tests: pd.DataFrame, *, cell_type: str) -> set[str]:
    """Genes with a false discovery rate below 5%."""
    return set(tests["gene"][(tests["fdr"] < 0.05) & (tests["cell_type"] == cell_type)])


# ---- DESeq2


@pytest.fixture(scope="module", params=["groups", "pairs"])
def bulk(request) -> tuple[np.ndarray, np.ndarray]:
    """Counts by sample of a cell type, and their design matrix."""
    settings = PAIRED if request.param == "pairs" else ExperimentSettings()
    cells = simulated(change=1.0, paired=request.param == "pairs", seed=1)
    of_type = Experiment.from_anndata(cells, settings).pseudobulk("A")
    return of_type.counts[:, of_type.tested], of_type.design


def test_the_package_of_deseq2_is_named_before_any_simulation(monkeypatch):
    monkeypatch.delitem(sys.modules, "bdm.applications.power.deseq")
    monkeypatch.setitem(sys.modules, "pydeseq2.dds", None)
    change = {"name": "up", "condition": "b", "genes": {"n": 5}, "log2_fold_change": 1}
    content = {"samples": {"donors": 3, "conditions": ["a", "b"]}, "changes": [change]}
    with pytest.raises(InputError, match="DESeq2 needs the package pydeseq2, of the extra `power` of bdm; install it"):
        check_testable(read_design(content))
    check_testable(read_design({**content, "power": {"methods": ["t_test"]}}))


def test_p_values_agree_with_pydeseq2(bulk):
    counts, design = bulk
    names = [f"sample_{number}" for number in range(len(counts))]
    table, samples = pd.DataFrame(counts, index=names), pd.DataFrame(index=names)
    model, contrast = pd.DataFrame(design, index=names), np.eye(design.shape[1])[-1]
    table.columns, model.columns = table.columns.astype(str), model.columns.astype(str)
    with warnings.catch_warnings(action="ignore"):
        fitted = DeseqDataSet(counts=table, metadata=samples, design=model, quiet=True, n_cpus=1)
        fitted.deseq2()
        theirs = DeseqStats(fitted, contrast=contrast, quiet=True, n_cpus=1, independent_filter=False)
        theirs.summary()
    ours = deseq2(counts, design)
    known = ours["p_value"].notna().to_numpy() & theirs.results_df["pvalue"].notna().to_numpy()
    assert known.mean() > 0.9
    logs = [np.log(p[known]) for p in (ours["p_value"].to_numpy(), theirs.results_df["pvalue"].to_numpy())]
    assert np.corrcoef(*logs)[0, 1] > 0.98


def test_genes_whose_counts_vary_as_by_chance_alone_are_tested():
    """With few genes at minimum dispersion, the prior variance is unknown."""
    design = np.column_stack([np.ones(6), np.repeat([0, 1], 3)])
    counts = np.column_stack([np.full(6, 40), np.full(6, 25), np.repeat([40, 160], 3)])
    normal, t = (deseq2(counts, design, t_distribution=of_t)["p_value"] for of_t in (False, True))
    np.testing.assert_allclose(t, 2 * stats.t.sf(stats.norm.isf(normal / 2), 4))  # by the samples alone
    assert t[2] < 0.01 < t[0]


# ---- expression


@pytest.mark.parametrize("test", [pseudobulk_tests, log_cpm_tests, wilcoxon_tests])
def test_planted_genes_are_found_in_their_cell_type(planted_cells, test):
    tests = test(planted_cells)
    assert found(tests, cell_type="A") >= PLANTED
    changes = tests[tests["gene"].isin(PLANTED)].pivot(index="gene", columns="cell_type", values="log2_fold_change")
    sign = dict(zip(sorted(PLANTED, key=lambda gene: int(gene[5:])), SIGN, strict=True))
    assert (changes["A"] * changes.index.map(sign)).median() == pytest.approx(2, abs=0.4)
    assert changes["B"].abs().median() < 0.6
    if test is not wilcoxon_tests:
        assert len(found(tests, cell_type="A") - PLANTED) <= 3
        assert len(found(tests, cell_type="B")) <= 2


@pytest.mark.parametrize("method", TESTS)
def test_tests_without_differences(method):
    """P-values are uniform for samples, and too small for cells."""
    experiments = [simulated(n_donors=4, n_cells=15, seed=seed) for seed in range(6)]
    tables = [expression_test(Experiment.from_anndata(cells, ExperimentSettings()), method) for cells in experiments]
    p_value = pd.concat(tables)["p_value"].dropna().to_numpy()
    share = (p_value < 0.05).mean()
    if method == "wilcoxon":
        assert share > 0.15
    else:
        # About 1,700 tests, which share donors, and with DESeq2 dispersions
        assert share == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / len(p_value)))
        assert stats.kstest(p_value, "uniform").statistic < 0.08


def test_pairs_remove_differences_between_donors():
    cells = simulated(n_donors=6, change=2.0, donor_sd=1.0, paired=True, seed=2)
    within, between = log_cpm_tests(cells, PAIRED), log_cpm_tests(cells)
    assert len(found(within, cell_type="A") & PLANTED) >= 8
    assert len(found(between, cell_type="A") & PLANTED) <= 2
    assert len(found(pseudobulk_tests(cells, PAIRED), cell_type="A") & PLANTED) >= 8


def test_t_test_is_that_of_scipy(planted_cells):
    experiment = Experiment.from_anndata(planted_cells, ExperimentSettings())
    bulk = experiment.pseudobulk("A")
    log_cpm = np.log2((bulk.counts + 0.5) / (bulk.counts.sum(axis=1, keepdims=True) + 1) * 1e6)[:, bulk.tested]
    in_condition = bulk.design[:, -1] == 1
    expected = stats.ttest_ind(log_cpm[in_condition], log_cpm[~in_condition]).pvalue
    tests = log_cpm_tests(planted_cells)
    np.testing.assert_allclose(tests["p_value"][tests["cell_type"] == "A"], expected, rtol=1e-8)


def test_counts_are_summed_by_sample(planted_cells):
    experiment = Experiment.from_anndata(planted_cells, ExperimentSettings())
    bulk, obs = experiment.pseudobulk("B"), planted_cells.obs
    for row, sample in enumerate(experiment.samples.index):
        of_sample = ((obs["sample"] == sample) & (obs["cell_type"] == "B")).to_numpy()
        np.testing.assert_array_equal(bulk.counts[row], planted_cells.X[of_sample].sum(axis=0).A1)
    assert list(bulk.design[:, 1]) == [int("stimulated" in sample) for sample in experiment.samples.index]


def test_samples_with_few_cells_are_not_used(planted_cells):
    few = ((planted_cells.obs["sample"] == "0_control") & (planted_cells.obs["cell_type"] == "A")).to_numpy(copy=True)
    few[np.flatnonzero(few)[:9]] = False
    cells = planted_cells[~few].copy()
    experiment = Experiment.from_anndata(cells, ExperimentSettings())
    assert len(experiment.pseudobulk("A").counts) == 11
    assert len(experiment.pseudobulk("B").counts) == 12
    assert Experiment.from_anndata(cells, ExperimentSettings(min_cells=31)).pseudobulk("B") is None
    assert not len(pseudobulk_tests(cells, ExperimentSettings(min_cells=31)))


def test_incomplete_pairs_are_not_used():
    cells = simulated(n_donors=4, paired=True, seed=3)
    cells = cells[~((cells.obs["sample"] == "0_control") & (cells.obs["cell_type"] == "A")).to_numpy()].copy()
    bulk = Experiment.from_anndata(cells, PAIRED).pseudobulk("A")
    assert bulk.design.shape == (6, 4)
    assert np.linalg.matrix_rank(bulk.design) == 4


def test_missing_p_values_do_not_count():
    np.testing.assert_allclose(adjusted(np.array([0.01, np.nan, 0.04])), [0.02, np.nan, 0.04])
    assert np.isnan(adjusted(np.array([np.nan]))).all()


# ---- composition


def p_values_of_composition(
    *, n_donors: int, concentration: float, log_odds: float, n_repeats: int, pairs: bool = False, share: float = 0.2
) -> np.ndarray:
    """P-values for a cell type in samples of about 300 cells.

    With an infinite concentration, samples of a condition have the same shares.
    """
    generator = np.random.default_rng(0)
    samples = pd.DataFrame({"condition": np.repeat([0, 1], n_donors), "pair": [*range(n_donors)] * 2})
    samples = samples if pairs else samples[["condition"]]
    p_values = []
    for _ in range(n_repeats):
        donor_effect = np.tile(generator.normal(0, 0.7, size=n_donors), 2) if pairs else 0
        mean = expit(logit(share) + donor_effect + log_odds * samples["condition"].to_numpy())
        if np.isfinite(concentration):
            mean = generator.beta(mean * concentration, (1 - mean) * concentration)
        total = generator.integers(150, 450, size=2 * n_donors)
        number = generator.binomial(total, mean)
        p_values.append(share_tests(pd.DataFrame({"A": number, "B": total - number}), samples)["p_value"][0])
    return np.array(p_values)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(
    ("n_donors", "concentration", "share"),
    [
        (3, 20, 0.2),
        (3, np.inf, 0.2),
        pytest.param(3, 100, 0.02, marks=pytest.mark.slow),
        pytest.param(6, 80, 0.2, marks=pytest.mark.slow),
    ],
)
def test_composition_without_differences(n_donors, concentration, share, pairs):
    p_value = p_values_of_composition(
        n_donors=n_donors, concentration=concentration, log_odds=0, n_repeats=400, pairs=pairs, share=share
    )
    for level in (0.05, 0.2):
        assert (p_value < level).mean() == pytest.approx(level, abs=3.5 * np.sqrt(level * (1 - level) / 400))


def test_cell_types_that_change_are_found():
    cells = simulated(n_donors=6, seed=4)
    generator = np.random.default_rng(1)
    lost = (cells.obs["condition"] == "stimulated") & (cells.obs["cell_type"] == "A")
    kept = generator.random(cells.n_obs) > np.where(lost, 0.6, 0.1)
    tests = composition_tests(cells[kept].copy()).set_index("cell_type")
    assert tests.loc["A", "log_odds"] == pytest.approx(np.log(0.4 / 0.9), abs=0.3)
    assert tests.loc["B", "log_odds"] == pytest.approx(-tests.loc["A", "log_odds"], abs=1e-3)
    assert (tests["fdr"] < 0.01).all()


def test_a_cell_type_that_is_absent_from_a_condition_is_found():
    samples = pd.DataFrame({"condition": [0] * 4 + [1] * 4})
    absent = [20, 25, 30, 22, 0, 0, 0, 0]
    numbers = pd.DataFrame({"A": absent, "B": 100 - np.array(absent), "never": 0})
    tests = share_tests(numbers, samples).set_index("cell_type")
    assert tests.loc["A", "log_odds"] < -3
    assert tests.loc["A", "p_value"] < 0.001
    assert np.isnan(tests.loc["never", "p_value"])


def test_a_share_that_is_the_same_in_all_samples_is_not_tested():
    numbers = pd.DataFrame({"A": [10, 20, 30, 40]})
    assert share_tests(numbers, pd.DataFrame({"condition": [0, 0, 1, 1]}))["p_value"].isna().all()


# ---- invalid input


def test_invalid_experiments_are_rejected_in_one_sentence(planted_cells):
    cells = planted_cells.copy()
    obs = cells.obs
    obs["one"] = "control"
    obs["three"] = obs["condition"].astype(str).where(obs["sample"] != "0_control", "other")
    obs["alone"] = (obs["sample"] == "0_control").map({True: "control", False: "stimulated"})
    obs["mixed"] = np.where(np.arange(len(obs)) % 2, "control", "stimulated")
    obs["gaps"] = obs["condition"].astype(object).where(obs["sample"] != "0_control")
    messages = {
        ExperimentSettings(condition_key="group"): "obs has no column 'group'; name one by `condition_key=`",
        ExperimentSettings(condition_key="one"): "two conditions are compared, but there are 1",
        ExperimentSettings(condition_key="three"): "two conditions are compared, but there are 3",
        ExperimentSettings(conditions=("control", "treated")): "no cell has the condition 'treated'",
        ExperimentSettings(condition_key="alone"): "condition 'control' has 1 sample",
        ExperimentSettings(condition_key="mixed"): "has cells of several values of",
        ExperimentSettings(condition_key="gaps"): "has no value for 60 of 720 cells",
        ExperimentSettings(pair_key="donor"): "fewer than 2 values of",
        ExperimentSettings(pair_key="one"): "has several samples in one condition",
        ExperimentSettings(counts="umi"): "there is no layer 'umi'",
    }
    for settings, message in messages.items():
        with pytest.raises(InputError, match=message.replace("[", r"\[")):
            Experiment.from_anndata(cells, settings)


def test_two_of_three_conditions_are_compared(planted_cells):
    cells = planted_cells.copy()
    second = cells.obs["sample"].isin(["0_control", "1_control"])
    cells.obs["three"] = cells.obs["condition"].astype(str).mask(second, "other")
    settings = ExperimentSettings(condition_key="three", conditions=("stimulated", "other"))
    experiment = Experiment.from_anndata(cells, settings)
    assert experiment.samples["condition"].to_dict() == {
        sample: int("control" in sample) for sample in experiment.samples.index
    }
    assert len(experiment.samples) == 8
