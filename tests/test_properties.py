"""Properties of cells with known faults, and their formulas."""

import warnings
from dataclasses import replace

import differing_genes as genes
import numpy as np
import pandas as pd
import property_values as values
import pytest
from differing_genes import OrderedValues
from properties import NO_PROPERTIES, draw_distances
from property_distances import (
    COLUMNS,
    KINDS,
    LABEL,
    MAX_COMPARED,
    PROPERTIES,
    Group,
    compare_properties,
    compare_resamples,
    energy_coefficient,
    ks,
    no_properties,
)
from scipy import sparse, stats
from test_evaluation_sets import independent_genes

from bdm.data.cells import Cells, RealCells
from bdm.data.prepare import gene_names, prepare
from bdm.evaluation.gene_scores import kolmogorov_smirnov, variable_genes
from bdm.evaluation.resamples import SizeLimits, resampled_cells
from bdm.settings import EvaluationSettings, PrepareSettings

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def prepared(example_cells):
    cells = example_cells.copy()
    cells.obs["donor"] = np.where(np.arange(cells.n_obs) % 2, "odd", "even")
    return prepare(cells, PrepareSettings(label_key="bulk_labels", batch_key="donor", test=0.2))


@pytest.fixture(scope="module")
def training(prepared) -> Cells:
    return Cells.from_anndata(prepared[prepared.obs["split"] != "test"])


@pytest.fixture(scope="module")
def held_out(prepared) -> Cells:
    return Cells.from_anndata(prepared[prepared.obs["split"] == "test"])


@pytest.fixture(scope="module")
def real(prepared, training, held_out) -> RealCells:
    return RealCells(training, held_out, gene_names(prepared))


@pytest.fixture(scope="module")
def sets(training) -> dict[str, Cells]:
    shuffled = np.random.default_rng(0).permutation(training.cell_type)
    shifted = training.counts.toarray()
    shifted[training.batch == "odd", ::2] *= 10  # a batch effect in half of the genes
    return {
        "independent": replace(training, counts=independent_genes(training).counts),
        "deeper": replace(training, counts=sparse.csr_matrix(2 * training.counts)),
        "shuffled": replace(training, cell_type=shuffled),
        "shifted": replace(training, counts=sparse.csr_matrix(shifted)),
        "without batches": replace(training, batch=None),
    }


@pytest.fixture(scope="module")
def table(real, sets) -> pd.DataFrame:
    return compare_properties(real, sets, EvaluationSettings(n_repeats=1), seed=0)


@pytest.fixture(scope="module")
def excess(table) -> pd.DataFrame:
    """Distances to test cells beyond the floor, properties x sets."""
    table = table[table["by"] == "all"].assign(excess=table["value"] - table["floor"])
    return table.pivot(index="property", columns="method", values="excess")


def test_table_has_each_property_of_each_set_beside_the_floor(table, sets):
    assert table.columns.tolist() == COLUMNS
    assert set(table["method"]) == set(sets)
    everything = table[(table["by"] == "all") & (table["method"] == "independent")]
    assert set(PROPERTIES) - {"leiden"} <= set(everything["property"])
    assert everything[["value", "floor"]].notna().all(axis=None)
    assert table["value"].dropna().between(0, 1).all()
    assert table["kind"].equals(table["property"].map(lambda key: PROPERTIES[key].kind))
    assert table["property"].map(list(PROPERTIES).index).is_monotonic_increasing


def test_rows_by_label_are_of_enough_cells(table, held_out):
    table = table.query("method == 'independent'")
    enough = held_out.n_by_type.index[held_out.n_by_type >= 10]
    assert set(table.loc[table["by"] == "label", "group"]) == set(enough)
    assert set(table.loc[table["by"] == "all", "group"]) == {""}
    assert (table["n_cells"] >= 10).all()
    by_label = set(table.loc[table["by"] == "label", "property"])
    assert {"mean", "library_zeros", "de_overlap", "silhouette_label", "classifies"} <= by_label
    assert not {"clustering", "variance_by_label", "integrated_batch"} & by_label


def test_cells_without_batches_have_no_properties_of_batches(table):
    table = table.query("method == 'without batches'")
    assert not {"silhouette_batch", "variance_by_batch", "mixing", "integrated_batch"} & set(table["property"])


def test_properties_detect_independent_genes(excess):
    independent = excess["independent"]
    for name in ("dispersion", "cell_zero_fraction", "cell_correlation", "library_zeros", "silhouette_label"):
        assert independent[name] > 0.1, name
    assert independent["gene_correlation"] > 0.04
    assert independent["dd_share"] > 0.05
    assert independent["clustering"] > 0.1
    assert independent["mean"] < 0.05


def test_properties_with_a_scale_detect_twice_the_depth(excess):
    deeper, independent = excess["deeper"], excess["independent"]
    for name in ("library_size", "effective_library_size"):
        assert deeper[name] > 0.5, name
    assert deeper["dispersion"] > 0.1
    for name in ("mean", "zero_fraction", "cell_correlation", "cell_zero_fraction"):
        assert deeper[name] < 0.1, name
    assert deeper["library_zeros"] > independent["library_zeros"] / 2


def test_properties_of_types_detect_shuffled_labels(excess):
    shuffled = excess["shuffled"]
    for name in ("de_share", "de_overlap", "dp_overlap", "bd_share", "silhouette_label", "variance_by_label"):
        assert shuffled[name] > 0.1, name
    for name in ("clustering", "classified", "classifies"):
        assert shuffled[name] > 0.3, name
    assert shuffled["mean"] < 0.05


def test_properties_of_batches_detect_a_batch_effect(excess):
    shifted = excess["shifted"]
    for name in ("silhouette_batch", "variance_by_batch", "mixing"):
        assert shifted[name] > 0.2, name


def test_real_cells_are_as_near_as_the_floor(excess):
    assert excess["without batches"].abs().mean() < 0.05
    assert excess["without batches"].max() < 0.2


def test_properties_are_averaged_over_resamples(real, sets):
    arguments = {"max_cells_per_type": 12, "max_cells": 1000}
    some = {"deeper": sets["deeper"]}
    genes = variable_genes(real.training)
    tables = [
        compare_resamples(resampled_cells(real, some, seeds, **arguments), genes, most=1000)
        for seeds in ([1, 2], [1], [2])
    ]
    both, first, second = (table.query("by == 'all'").set_index("property") for table in tables)
    assert (first["value"] != second["value"]).sum() > 10
    for column in ("value", "floor"):
        pd.testing.assert_series_equal(both[column], (first[column] + second[column]) / 2)


def test_no_more_cells_than_the_limit_are_compared(real, sets):
    some = {"deeper": sets["deeper"]}
    resamples = resampled_cells(real, some, [0], max_cells_per_type=500, max_cells=1000)
    table = compare_resamples(resamples, variable_genes(real.training), most=60)
    assert 40 < table["n_cells"].max() <= 60 < len(real.test)
    assert SizeLimits().compared > MAX_COMPARED


def test_figure_shows_the_excess_of_each_set(table, excess):
    axes = draw_distances(table).axes
    assert [axis.get_title(loc="left") for axis in axes] == list(KINDS.values())
    genes = axes[0]
    assert next(text.get_text() for text in genes.get_yticklabels()) == PROPERTIES["mean"].name
    line = next(line for line in genes.lines if line.get_label() == "deeper")
    shown = excess.loc[[key for key, each in PROPERTIES.items() if each.kind == "gene"], "deeper"]
    np.testing.assert_allclose(line.get_xdata(), shown)


def test_figure_explains_lines_of_cell_types_where_there_are_any(table):
    assert "thin lines" in draw_distances(table).get_supxlabel()
    of_all = draw_distances(table[table["by"] != LABEL])
    assert of_all.get_supxlabel() == "distance to test cells beyond the floor's (line at 0)"


def test_figure_without_properties_says_so():
    [axis] = draw_distances(no_properties()).axes
    assert [text.get_text() for text in axis.texts] == [NO_PROPERTIES]


# ---- formulas


def side_of(cells: Cells) -> values.Side:
    return values.Side(cells, np.zeros((len(cells), 2)), cells.library_size, np.arange(3), 0)


def test_dispersion_is_that_of_a_negative_binomial():
    rng = np.random.default_rng(0)
    size = rng.lognormal(sigma=0.3, size=4000)
    mean, dispersion = np.array([5.0, 20.0, 50.0] * 40), np.array([0.2, 0.5, 1.0] * 40)
    rates = rng.gamma(1 / dispersion, dispersion * mean * size[:, None])
    cells = Cells(sparse.csr_matrix(rng.poisson(rates), dtype=np.float32), np.repeat("cell", 4000))
    estimated = values.dispersion(side_of(cells)).reshape(40, 3).mean(axis=0)
    np.testing.assert_allclose(estimated, dispersion[:3], rtol=0.1)


def test_effective_library_size_ignores_the_few_highest_genes(training):
    reference = np.asarray(training.counts.sum(axis=0)).ravel()
    counts = training.counts.toarray()
    plain = values.effective_library_size(training, reference)
    assert np.corrcoef(plain, training.library_size)[0, 1] > 0.4
    highest = reference.argmax()
    counts[:, highest] += 300
    inflated = replace(training, counts=sparse.csr_matrix(counts))
    assert np.median(inflated.library_size / training.library_size) > 1.3
    assert abs(np.median(values.effective_library_size(inflated, reference) / plain) - 1) < 0.05


def test_correlations_are_those_within_types():
    rng = np.random.default_rng(0)
    cell_type = np.repeat(["one", "two"], 300)
    rates = np.where(cell_type == "one", 1, 20)[:, None] * np.ones((1, 3))
    cells = Cells(sparse.csr_matrix(rng.poisson(np.c_[rates, np.full((600, 5), 50)]), dtype=np.float32), cell_type)
    assert np.corrcoef(cells.expression[:, :3].toarray(), rowvar=False)[0, 1] > 0.5
    assert np.abs(values.correlations_within_types(side_of(cells))).max() < 0.2


def test_tests_between_types_are_those_of_scipy(training):
    label = "CD19+ B"
    is_type = training.cell_type == label
    inside, outside = (genes.Moments.from_cells(training, np.flatnonzero(rows)) for rows in (is_type, ~is_type))
    p_values = {
        "welch": genes.welch(inside, outside),
        "bartlett": genes.bartlett(inside, outside),
        "chi_squared": genes.chi_squared(inside, outside),
        "kolmogorov_smirnov": genes.ks_test(OrderedValues.from_cells(training), is_type),
    }
    expression = training.expression.toarray().astype(float)
    for gene in variable_genes(training)[:10]:
        x, y = expression[is_type, gene], expression[~is_type, gene]
        table = [[(x > 0).sum(), (x == 0).sum()], [(y > 0).sum(), (y == 0).sum()]]
        distance = stats.ks_2samp(x, y, method="asymp").statistic
        assert kolmogorov_smirnov(x, y) == distance
        expected = {
            "welch": stats.ttest_ind(x, y, equal_var=False).pvalue,
            "bartlett": stats.bartlett(x, y).pvalue,
            "chi_squared": stats.chi2_contingency(table, correction=False).pvalue,
            "kolmogorov_smirnov": stats.kstwobign.sf(distance * np.sqrt(len(x) * len(y) / (len(x) + len(y)))),
        }
        for name, p_value in expected.items():
            assert p_values[name][gene] == pytest.approx(p_value, rel=1e-3, abs=1e-12), name


def test_mixing_is_the_statistic_of_anderson_and_darling():
    groups = np.random.default_rng(0).integers(3, size=(5, 40))
    statistics = values.anderson_darling(groups, n_groups=3)
    rank = np.arange(40, dtype=float)
    for row, statistic in zip(groups, statistics, strict=True):
        samples = [rank[row == group] for group in range(3)]
        with warnings.catch_warnings(action="ignore"):
            expected = stats.anderson_ksamp(samples, midrank=False).statistic
        n, sizes = 40, np.array([len(sample) for sample in samples])
        assert expected == pytest.approx((2 * statistic - 2) / anderson_spread(sizes, n))
    assert np.isinf(values.anderson_darling(np.zeros((1, 40), dtype=int), n_groups=3)).all()


def anderson_spread(sizes: np.ndarray, n: int) -> float:
    """Standard deviation of the statistic for equal distributions (Scholz and Stephens 1987, equation 4)."""
    k, inverse = len(sizes), (1 / sizes).sum()
    h = (1 / np.arange(1, n)).sum()
    g = sum(1 / ((n - i) * j) for i in range(1, n - 1) for j in range(i + 1, n))
    a = (4 * g - 6) * (k - 1) + (10 - 6 * g) * inverse
    b = (2 * g - 4) * k**2 + 8 * h * k + (2 * g - 14 * h - 4) * inverse - 8 * h + 4 * g - 6
    c = (6 * h + 2 * g - 2) * k**2 + (4 * h - 4 * g + 6) * k + (2 * h - 6) * inverse + 4 * h
    d = (2 * h + 6) * k**2 - 4 * h * k
    return float(np.sqrt((a * n**3 + b * n**2 + c * n + d) / ((n - 1) * (n - 2) * (n - 3))))


def test_energy_coefficient_is_0_for_equal_points_and_grows_with_a_shift():
    points = np.random.default_rng(0).normal(size=(400, 2))
    assert energy_coefficient(points, points, seed=0) == 0
    others = np.random.default_rng(1).normal(size=(400, 2))
    near, half, far = (energy_coefficient(others + shift, points, seed=0) for shift in (0, 0.5, 100))
    assert near < 0.06 < 0.15 < half < 0.4
    assert far == pytest.approx(1, abs=0.01)
    assert energy_coefficient(50 * others, 50 * points, seed=0) == pytest.approx(near)


def test_few_values_have_no_distance():
    assert np.isnan(ks(np.arange(4.0), np.arange(100.0)))
    assert np.isnan(ks(np.full(10, np.nan), np.arange(100.0)))
    assert ks(np.array([0, 1, 2, 3, 4, np.inf]), np.array([0, 1, 2, 3, 4, np.inf])) == 0


def test_leiden_clusters_are_compared_where_igraph_is_installed(table):
    pytest.importorskip("igraph")
    table = table.query("by == 'all' and property == 'leiden'").set_index("method")
    assert table.loc["shuffled", "value"] > 0.3 > table["floor"].max()


def test_hubs_are_often_neighbours(training, held_out):
    side = Group.from_cells(held_out, held_out, variable_genes(training), seed=0).test
    assert values.occurrence(side).mean() == pytest.approx(1)
    far = replace(side, components=np.concatenate([side.components[1:], 100 + side.components[:1]]))
    assert values.occurrence(far)[-1] == 0
    assert values.local_density(far)[-1] > 5 * np.median(values.local_density(side))
