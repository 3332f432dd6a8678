"""Scores of cells in space, on fields with known answers."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import cdist
from test_evaluation_sets import assert_same

from bdm._core.errors import InputError
from bdm.api import BranchedDiffusion
from bdm.data.cell_sets import read_generated, read_real_cells
from bdm.data.cells import Cells, RealCells
from bdm.data.genes import GeneNames
from bdm.data.space import PREPARED, position_table
from bdm.evaluation.evaluate import Evaluation, evaluate
from bdm.evaluation.space_scores import (
    SpaceStatistics,
    compare_statistics,
    morans_i,
    neighbour_graph,
    neighbour_types,
    place,
    score_space,
)
from bdm.evaluation.table import score_table, wide
from bdm.model.match import known_cells
from bdm.plotting.evaluation import space
from bdm.settings import AutoencoderSettings, HierarchySettings, PrepareSettings, Settings

SIDE, N_GENES = 24, 12
NAMES = GeneNames(pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


def positions(coordinates: np.ndarray, section: object = "section") -> pd.DataFrame:
    return pd.DataFrame(coordinates, columns=["x", "y", "z"][: coordinates.shape[1]]).assign(section=section)


def grid(side: int = SIDE) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2).astype(float)


def simulated(seed: int, *, n_sections: int = 1, side: int = SIDE) -> Cells:
    """Two types in halves of a section, and genes whose waves over x differ in amplitude."""
    rng = np.random.default_rng(seed)
    xy = np.tile(grid(side), (n_sections, 1)) + rng.normal(0, 0.05, (n_sections * side**2, 2))
    amplitude = np.linspace(0, 1.5, N_GENES)
    rates = 4 * np.exp(np.sin(2 * np.pi * xy[:, [0]] / side) * amplitude)
    section = np.repeat([f"s{i}" for i in range(n_sections)], side**2)
    counts = sparse.csr_matrix(rng.poisson(rates), dtype=np.float32)
    return Cells(counts, np.where(xy[:, 1] < side / 2, "low", "high"), positions=positions(xy, section))


def space_scores(real: Cells, generated: Cells, *, seed: int = 0):
    is_test = np.arange(len(real)) % 5 == 0
    parts = RealCells(real[np.flatnonzero(~is_test)], real[np.flatnonzero(is_test)], NAMES)
    return score_space(parts, {"generated": generated}, most=100_000, seed=seed)


def by_set(result) -> pd.DataFrame:
    rows, _ = result
    return wide(score_table(rows, ["generated"]), "score")


def of_evaluation(evaluation) -> pd.DataFrame:
    return wide(evaluation.scores_of("space"), "score")


def test_moran_is_its_definition_with_row_standardised_weights():
    rng = np.random.default_rng(0)
    xy, x = rng.random((60, 3)), rng.poisson(1.0, (60, 70)).astype(float)  # 70 genes: more than one block
    nearest = np.argsort(cdist(xy, xy) + np.diag(np.full(60, np.inf)), axis=1)[:, :6]
    weights = np.zeros((60, 60))
    np.put_along_axis(weights, nearest, 1, axis=1)
    graph = neighbour_graph(positions(xy), 6)
    assert np.allclose(graph.toarray(), weights / 6)
    z = x - x.mean(axis=0)
    expected = [60 / weights.sum() * (weights * np.outer(gene, gene)).sum() / (gene**2).sum() for gene in z.T]
    assert np.allclose(morans_i(sparse.csr_matrix(x), graph), expected)


def test_moran_of_known_fields():
    xy = grid()
    smooth, checkerboard = np.sin(xy[:, 0] / 4), xy.sum(axis=1) % 2
    shuffled = np.random.default_rng(0).permutation(smooth)
    values = sparse.csr_matrix(np.column_stack([smooth, checkerboard, shuffled, np.full(len(xy), 0.1)]))
    moran = morans_i(values, neighbour_graph(positions(xy), 4))
    assert moran[0] > 0.9
    assert moran[1] < -0.9
    assert abs(moran[2]) < 0.1
    assert np.isnan(moran[3])  # constant


def test_sections_do_not_share_neighbours():
    xy = np.tile(grid(5), (2, 1))  # two sections at the same coordinates
    section = np.repeat(["a", "b"], 25)
    graph = neighbour_graph(positions(xy, section), 6).tocoo()
    assert (section[graph.row] == section[graph.col]).all()
    assert (graph.row != graph.col).all()
    assert np.allclose(graph.sum(axis=1), 1)


@pytest.mark.parametrize("n_cells", [1, 2, 5])
def test_few_cells_have_fewer_neighbours(n_cells):
    graph = neighbour_graph(positions(np.random.default_rng(0).random((n_cells, 2))), 6)
    assert np.array_equal(np.diff(graph.indptr), np.full(n_cells, n_cells - 1))
    assert np.isnan(morans_i(sparse.csr_matrix(np.ones((n_cells, 2))), graph)).all()


def test_cells_at_the_same_position_are_no_neighbours_of_themselves():
    graph = neighbour_graph(positions(np.zeros((20, 2))), 6).tocoo()
    assert (graph.row != graph.col).all()
    assert np.array_equal(np.bincount(graph.row), np.full(20, 6))


def test_neighbour_types_are_mean_shares():
    line = positions(np.column_stack([[0.0, 1.0, 2.1, 10.0, 11.0], np.zeros(5)]))
    shares = neighbour_types(np.array(["a", "a", "b", "c", "c"]), neighbour_graph(line, 1))
    assert shares.loc["a"].to_dict() == {"a": 1, "b": 0, "c": 0}
    assert shares.loc["b"].to_dict() == {"a": 1, "b": 0, "c": 0}
    assert shares.loc["c"].to_dict() == {"a": 0, "b": 0, "c": 1}


def statistics_of(cells: Cells) -> SpaceStatistics:
    return SpaceStatistics.from_cells(place(cells, np.arange(N_GENES), library_size=50))


def compared(query: Cells, real: Cells) -> dict[str, float]:
    return compare_statistics(statistics_of(query), statistics_of(real))[0]


def test_cells_equal_to_real_cells_have_perfect_scores():
    table = compared(real := simulated(0), real)
    for name in ("moran", "moran_within"):
        assert table[f"{name}_correlation"] == pytest.approx(1)
        assert table[f"{name}_slope"] == pytest.approx(1)
        assert table[f"{name}_mean"] == pytest.approx(table[f"{name}_mean_real"])
    assert table["neighbourhood_distance"] == pytest.approx(0, abs=1e-9)
    assert table["neighbourhood_distance_permuted"] > 0.4  # of the neighbours, half have the wrong type


@pytest.mark.parametrize("n_sections", [1, 2])
def test_cells_of_the_same_field_are_as_near_as_the_floor(n_sections):
    table = by_set(space_scores(*(simulated(seed, n_sections=n_sections, side=36) for seed in (0, 1))))
    assert list(table) == ["floor", "generated"]
    for name in ("moran", "moran_within"):
        assert table.loc[f"{name}_correlation"].min() > 0.95
        assert table.loc[f"{name}_slope"].between(0.85, 1.15).all()
        assert np.allclose(table.loc[f"{name}_mean"], table.loc[f"{name}_mean_real"], atol=0.05)
    assert table.loc["neighbourhood_distance"].max() < 0.05


def test_shuffled_counts_within_types_lose_moran_within_types_only():
    """Counts of other cells of the type keep what differs between types."""
    real = simulated(0)
    rates = np.where(real.cell_type == "low", 2.0, 8.0)[:, None] * np.linspace(0.2, 1, N_GENES)
    rng = np.random.default_rng(0)
    real = replace(real, counts=(real.counts + sparse.csr_matrix(rng.poisson(rates))).tocsr())
    index = np.arange(len(real))
    for cell_type in ("low", "high"):
        rows = np.flatnonzero(real.cell_type == cell_type)
        index[rows] = rng.permutation(rows)
    table = compared(replace(real, counts=real.counts[index]), real)
    assert abs(table["moran_within_mean"]) < 0.02
    assert table["moran_within_mean_real"] > 0.1
    assert table["moran_mean"] > 0.02
    assert table["neighbourhood_distance"] == pytest.approx(0, abs=1e-9)


def test_gene_table_has_each_detected_gene():
    real = simulated(0)
    counts = real.counts.tolil()
    counts[:, 3] = 0
    counts[:10, 3] = 1  # in 10 of 576 cells
    real = replace(real, counts=counts.tocsr())
    _, result = space_scores(real, simulated(1))
    assert list(result.genes["gene"]) == [name for name in NAMES.index if name != "g3"]
    assert list(result.genes) == ["set", "gene", "moran", "moran_real", "moran_within", "moran_within_real"]
    assert result.mapped_genes == tuple(result.genes.nlargest(3, "moran_real")["gene"])
    assert result.expression.shape == (len(result.cells), 3)
    assert list(result.cells["set"].unique()) == ["floor", "generated"]


def test_sets_and_floor_are_compared_and_drawn_in_equal_numbers_of_cells_of_each_section():
    real = simulated(0, n_sections=2)
    few = simulated(1, n_sections=2)[np.r_[0:200, 576:876]]  # 200 and 300 cells
    rows, maps = space_scores(real, few)
    assert {row["n_cells"] for row in rows} == {488}  # a half of the first section has 288 cells
    table = maps.cells.groupby(["set", "section"]).size().unstack()
    assert table.loc["floor"].equals(table.loc["generated"])
    assert table.loc["floor"].to_dict() == {"s0": 200, "s1": 288}


def test_cells_without_common_sections_or_positions_are_not_compared():
    real = simulated(0, side=10)
    elsewhere = replace(real, positions=real.positions.assign(section="new"))
    nowhere = replace(real, positions=None)
    for pair, reason in (
        ((real, nowhere), "not in this set"),
        ((nowhere, real), "not in the real cells"),
        ((real, elsewhere), "0 cells in sections of real cells"),
    ):
        [row], maps = space_scores(*pair)
        assert row["missing"] == reason
        assert maps is None


def test_coordinates_that_some_real_cells_lack_are_left_out():
    cells = simulated(0)
    deep = replace(cells, positions=cells.positions.assign(z=np.random.default_rng(0).random(len(cells)) * 1000))
    result = score_space(RealCells(deep, cells, NAMES), {"generated": cells}, most=100_000, seed=0)
    assert by_set(result).loc["moran_correlation", "generated"] > 0.9


def test_a_type_of_few_cells_has_no_moran_of_its_own():
    real = simulated(0)
    few = replace(real, cell_type=np.where(np.arange(len(real)) < 49, "few", real.cell_type))
    statistics = statistics_of(few)
    assert set(statistics.moran_within.index) == {"low", "high"}
    assert set(statistics.neighbours.index) == {"few", "low", "high"}


def test_cells_without_types_have_scores_over_genes_only():
    real = replace(simulated(0), cell_type=np.full(SIDE**2, "cell"))
    table = pd.Series(compared(real, real))
    assert table["moran_correlation"] == pytest.approx(1)
    assert table.filter(regex="within|neighbourhood").isna().all()


def test_types_in_one_set_only_are_left_out():
    real = simulated(0)
    other = replace(real, cell_type=np.where(real.cell_type == "low", "low", "other"))
    of_real, scores = statistics_of(real), compared(other, real)
    rows = of_real.moran_within.loc["low"]
    assert scores["moran_within_mean_real"] == pytest.approx(rows.mean())
    assert scores["neighbourhood_distance"] == pytest.approx(of_real.neighbours.loc["low", "high"])


# ---- positions in files and evaluations


def as_anndata(cells: Cells, spatial_key: str = "spatial", section_key: str = "section") -> AnnData:
    obs = pd.DataFrame({"cell_type": cells.cell_type, section_key: cells.positions["section"].to_numpy()})
    obs.index = [f"cell{i}" for i in obs.index]
    obsm = {spatial_key: cells.positions[["x", "y"]].to_numpy()}
    return AnnData(cells.counts, obs=obs, var=NAMES.var, obsm=obsm)


@pytest.mark.parametrize("keys", [PREPARED, ("place", "slide")])
def test_positions_have_the_keys_of_the_user_or_the_default(keys):
    cells = simulated(0, n_sections=2, side=3)
    for names in (PREPARED, keys):
        assert position_table(as_anndata(cells, *names), keys).equals(cells.positions)


def test_a_single_section_needs_no_column():
    adata = as_anndata(simulated(0, side=3))
    del adata.obs["section"]
    assert set(position_table(adata)["section"]) == {"section"}


@pytest.mark.parametrize("values", [np.full((9, 2), np.nan), np.zeros((9, 5)), np.full((9, 2), "a")])
def test_values_that_are_no_coordinates_are_no_positions(values):
    adata = as_anndata(simulated(0, side=3))
    adata.obsm["spatial"] = values
    assert position_table(adata) is None


@pytest.fixture
def files(tmp_path):
    """Real cells as from ``bdm prepare``, and generated cells with the keys of the user."""
    real = as_anndata(simulated(0))
    real.obs["split"] = np.where(np.arange(real.n_obs) % 5, "train", "test")
    settings = {"spatial_key": "place", "section_key": "slide"}
    real.uns["bdm"] = {"settings": json.dumps(settings)}
    real.write_h5ad(tmp_path / "prepared.h5ad")
    as_anndata(simulated(1), "place", "slide").write_h5ad(tmp_path / "generated.h5ad")
    return tmp_path


@pytest.mark.parametrize("on_disk", [False, True])
def test_positions_are_read_from_files(files, on_disk):
    real = read_real_cells(files / "prepared.h5ad", on_disk=on_disk)
    generated = read_generated(files / "generated.h5ad", real, on_disk=on_disk)
    assert generated.positions.equals(simulated(1).positions)
    index = np.array([5, 2])
    assert generated[index].positions.equals(simulated(1).positions.iloc[index].reset_index(drop=True))
    is_test = np.arange(SIDE**2) % 5 == 0
    assert np.array_equal(real.test.positions["x"], simulated(0).positions["x"][is_test])


def test_evaluation_has_scores_in_space_and_draws_them(files, bdm):
    out = files / "evaluation"
    few = ("--n-repeats", 1, "--max-cells-per-type", 10)
    assert bdm("evaluate", files / "prepared.h5ad", files / "generated.h5ad", out, *few)[0] == 0
    evaluation = Evaluation.load(out)
    table = of_evaluation(evaluation)
    assert table.loc["moran_correlation", "generated"] > 0.95
    assert (pd.read_csv(out / "scores.csv")["kind"] == "space").sum() == len(evaluation.scores_of("space")) == 10
    assert list(pd.read_csv(out / "space_genes.csv")["gene"]) == list(NAMES.index)
    assert (out / "space.png").is_file()
    axes = space(evaluation, show=False)
    titles = [axis.get_title() for axis in axes if axis.get_title()]
    assert titles == ["cell type", *evaluation.space.mapped_genes]
    assert axes[-1].get_legend_handles_labels()[1][0].startswith("all cells: r = ")
    with pytest.raises(InputError, match=r"no set 'flat' with positions; it has generated\.$"):
        space(evaluation, name="flat", show=False)


def test_cells_given_to_a_model_keep_their_positions(small_model, example_cells):
    cells = example_cells.copy()
    cells.obsm["spatial"] = np.random.default_rng(0).random((cells.n_obs, 2))
    is_known = cells.obs["bulk_labels"].isin(small_model.model.cell_types)
    known = known_cells(cells, small_model.model)
    assert np.array_equal(known.positions[["x", "y"]], cells.obsm["spatial"][is_known])


def test_model_with_positions_is_evaluated_in_space(tmp_path):
    """Prepared, generated and test cells are read by the keys of the user."""
    cells, held_out = (as_anndata(simulated(seed, n_sections=2, side=16), "place", "slide") for seed in (0, 1))
    settings = Settings(
        prepare=PrepareSettings(genes="all"),
        autoencoder=AutoencoderSettings(n_latent=4, n_steps=120, sub_populations="none"),
        hierarchy=HierarchySettings(n_bootstrap=3),
    )
    model = BranchedDiffusion(cells, spatial_key="place", section_key="slide", settings=settings).fit()
    evaluation = model.evaluate(adata_test=held_out, n_repeats=1)
    table = of_evaluation(evaluation)
    assert list(table) == ["floor", "generated"]
    assert table.loc["moran_correlation", "generated"] > 0.8
    assert table.loc["neighbourhood_distance", "generated"] < 0.05
    evaluation.save(tmp_path / "evaluation")
    assert_same(Evaluation.load(tmp_path / "evaluation").space, evaluation.space)


def test_cells_without_common_genes_are_drawn(tmp_path):
    """Each gene is detected in one of 24 cells."""
    cells = simulated(0)
    rows = np.arange(len(cells))
    counts = sparse.csr_matrix((np.ones(len(cells)), (rows, rows % 24)), dtype=np.float32)
    rare = replace(cells, counts=counts, cell_type=np.full(len(cells), "cell"))
    genes = GeneNames(pd.DataFrame(index=[f"g{i}" for i in range(24)]))
    result = evaluate(RealCells(rare[rows % 5 > 0], rare[rows % 5 == 0], genes), {"generated": rare})
    assert result.space is not None
    assert not len(result.space.genes)
    result.save(tmp_path / "evaluation")
    result = Evaluation.load(tmp_path / "evaluation")
    assert [axis.get_title() for axis in space(result, show=False)] == ["cell type", "", ""]
