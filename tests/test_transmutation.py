import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from bdm._core.errors import InputError
from bdm.applications.transmutation.evaluate_transmuted import (
    TransmutedCells,
    evaluate_transmutation,
    fold_changes,
    read_target,
    relabel,
    select_endpoints,
)
from bdm.applications.transmutation.transmute import (
    new_populations,
    population_mean,
    select_sources,
)
from bdm.autoencoder.latent import populations_of_cells
from bdm.data.cells import Cells, RealCells
from bdm.data.genes import GeneNames
from bdm.evaluation.table import wide
from bdm.evaluation.verdict import Grade
from bdm.model.match import population_assigner
from bdm.prior.transport import optimal_coupling
from bdm.settings import InputKeys

B = ["CD19+ B/1", "CD19+ B/2"]
DENDRITIC = ["Dendritic/1", "Dendritic/2"]
LACKING = "CD4+/CD45RA+/CD25- Naive T"  # type with too few cells for the model


@pytest.fixture(scope="module")
def transmuted(example_cells, small_model):
    return small_model.transmute(example_cells, "CD56+ NK")


def test_transmuted_cells(transmuted, example_cells, small_model):
    source = example_cells[~example_cells.obs["bulk_labels"].isin(["CD56+ NK", LACKING])]
    assert list(transmuted.obs_names) == list(source.obs_names)
    assert list(transmuted.var_names) == list(small_model.model.autoencoder.genes.index)
    assert sparse.issparse(transmuted.X)
    assert transmuted.X.dtype == np.float32
    np.testing.assert_array_equal(transmuted.X.data, np.rint(transmuted.X.data))
    assert set(transmuted.obs["cell_type"]) == {"CD56+ NK"}
    assert set(transmuted.obs["sub_population"]) == {"CD56+ NK"}
    assert list(transmuted.obs["original_type"]) == list(source.obs["bulk_labels"])
    assert transmuted.obs["synthetic"].all()
    for cell_type, rows in transmuted.obs.groupby("original_type", observed=True):
        ancestor = small_model.hierarchy.common_ancestor(cell_type, "CD56+ NK")
        assert set(rows["common_ancestor"]) == {ancestor.name}
        assert set(rows["common_ancestor_level"]) == {ancestor.level}


def test_nothing_that_described_the_cells_before_is_kept(batch_model, example_cells, caplog):
    cells = example_cells.copy()
    cells.obs["donor"] = np.where(np.arange(cells.n_obs) % 2, "one", "two")
    cells.obs["condition"] = "control"
    with caplog.at_level(logging.INFO, logger="bdm"):
        cells_transmuted = batch_model.transmute(cells, "CD56+ NK", from_=["CD19+ B"])
    ancestor = ["common_ancestor", "common_ancestor_level"]
    columns = ["cell_type", "bulk_labels", "original_type", "donor", *ancestor, "synthetic", "sub_population"]
    assert list(cells_transmuted.obs) == columns
    assert set(cells_transmuted.obs["bulk_labels"]) == set(cells_transmuted.obs["cell_type"]) == {"CD56+ NK"}
    assert set(cells_transmuted.obs["original_type"]) == {"CD19+ B"}
    assert list(cells_transmuted.obs["donor"]) == list(cells.obs.loc[cells_transmuted.obs_names, "donor"])
    assert "columns n_genes, percent_mito, n_counts, S_score, G2M_score and 3 more of obs" in caplog.text


def test_types_and_batches_are_in_the_columns_of_the_cells_too(batch_model, example_cells):
    cells = example_cells[:200].copy()
    cells.obs = cells.obs[["bulk_labels"]].rename(columns={"bulk_labels": "mine"})
    cells.obs["patient"] = "two"
    cells_transmuted = batch_model.transmute(cells, "CD56+ NK", keys=InputKeys(label_key="mine", batch_key="patient"))
    for column in ("cell_type", "bulk_labels", "mine"):
        assert set(cells_transmuted.obs[column]) == {"CD56+ NK"}
    for column in ("donor", "patient"):
        assert set(cells_transmuted.obs[column]) == {"two"}


def test_cells_without_a_type_are_left_out(small_model, example_cells, caplog):
    cells = example_cells.copy()
    cells.obs["bulk_labels"] = cells.obs["bulk_labels"].astype(object).where(np.arange(cells.n_obs) > 4)
    cells_transmuted = small_model.transmute(cells, "CD56+ NK")
    assert not set(cells.obs_names[:5]) & set(cells_transmuted.obs_names)
    assert f"cells of types that the model lacks: no type, '{LACKING}'" in caplog.text


def test_cells_come_near_their_new_type(transmuted, small_model):
    whole = small_model.prepared.obs["cell_type"]
    counts = small_model.prepared.X.toarray()

    def profile(counts: np.ndarray) -> np.ndarray:
        return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)

    there = profile(counts[(whole == "CD56+ NK").to_numpy()])
    for cell_type in ("CD14+ Monocyte", "CD19+ B", "Dendritic"):
        before = profile(counts[(whole == cell_type).to_numpy()])
        after = profile(transmuted.X[(transmuted.obs["original_type"] == cell_type).to_numpy()].toarray())
        assert np.linalg.norm(after - there) < 0.5 * np.linalg.norm(before - there)


def test_each_cell_keeps_its_library_size(transmuted, example_cells):
    counts = example_cells[transmuted.obs_names, transmuted.var_names].X.sum(axis=1)
    of_type = (transmuted.obs["original_type"] == "CD19+ B").to_numpy()
    sizes = np.log(np.asarray(counts).ravel()[of_type]), np.log(np.asarray(transmuted.X.sum(axis=1)).ravel()[of_type])
    assert np.corrcoef(*sizes)[0, 1] > 0.7


def test_same_seed_same_cells(transmuted, example_cells, small_model):
    again = small_model.transmute(example_cells, "CD56+ NK")
    other = small_model.transmute(example_cells, "CD56+ NK", seed=1)
    assert (again.X != transmuted.X).nnz == 0
    assert (other.X != transmuted.X).nnz > 0
    shuffled = example_cells[::-1]
    assert list(small_model.transmute(shuffled, "CD56+ NK").obs_names) == list(transmuted.obs_names)[::-1]


def test_cells_of_many_genes_in_any_order(example_cells, small_model, transmuted):
    wide = example_cells[:, ::-1].copy()
    other = small_model.transmute(wide, "CD56+ NK")
    assert (other.X != transmuted.X).nnz == 0


def test_batches(example_cells, batch_model):
    cells = example_cells[:60].copy()
    cells.obs["donor"] = np.where(np.arange(cells.n_obs) % 3 == 0, "two", "one")
    cells_transmuted = batch_model.transmute(cells, "CD19+ B")
    assert list(cells_transmuted.obs["donor"]) == list(cells.obs.loc[cells_transmuted.obs_names, "donor"])
    cells.obs["donor"] = "three"
    with pytest.raises(InputError, match="no batch 'three'"):
        batch_model.transmute(cells, "CD19+ B")
    with pytest.raises(InputError, match="no column 'donor'"):
        batch_model.transmute(example_cells, "CD19+ B")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda a: a, {"to": "T"}, "no type 'T'"),
        (lambda a: a, {"to": "Dendritic/3"}, "no type 'Dendritic/3'"),
        (lambda a: a, {"to": "CD56+ NK", "cell_types": ("x",)}, "no type 'x'"),
        (lambda a: a, {"to": "CD56+ NK", "cell_types": ("CD19+ B", "Dendritic/2")}, "no type 'Dendritic/2'"),
        (lambda a: a[a.obs["bulk_labels"] == "CD56+ NK"], {"to": "CD56+ NK"}, "no cells to transmute"),
        (lambda a: a, {"to": "CD56+ NK", "keys": InputKeys(label_key="none")}, "no column 'none'"),
        (lambda a: AnnData(a.X, obs=a.obs[[]], var=a.var), {"to": "CD56+ NK"}, "'bulk_labels' or 'cell_type'"),
        (lambda a: a[:, :50], {"to": "CD56+ NK"}, "genes"),
        (lambda a: AnnData(a.X / 2, obs=a.obs, var=a.var), {"to": "CD56+ NK"}, "not whole"),
        (lambda a: AnnData(a.X * 0, obs=a.obs, var=a.var), {"to": "CD56+ NK"}, "No cell has counts"),
    ],
)
def test_cells_that_do_not_fit(example_cells, small_model, change, arguments, message):
    with pytest.raises(InputError, match=message):
        select_sources(change(example_cells.copy()).copy(), small_model.model, arguments.pop("to"), **arguments)


def test_cells_that_cannot_be_transmuted_are_left_out(example_cells, small_model, caplog):
    cells = example_cells.copy()
    cells.X = sparse.csr_matrix(cells.X.multiply((np.arange(cells.n_obs) != 5)[:, None]))
    name = cells.obs_names[5]
    assert cells.obs["bulk_labels"].iloc[5] not in ("CD56+ NK", LACKING)
    sources = select_sources(cells, small_model.model, "CD56+ NK")
    assert name not in sources.adata.obs_names
    n_lacking = (cells.obs["bulk_labels"] == LACKING).sum()
    n_there = (cells.obs["bulk_labels"] == "CD56+ NK").sum()
    assert len(sources.cell_type) == cells.n_obs - 1 - n_lacking - n_there
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"Left out {n_lacking} cells of types that the model lacks: '{LACKING}'.",
        "Dropped 1 cell without counts of the model's genes.",
    ]


# ---- sub-populations


@pytest.mark.parametrize(("n_sources", "n_targets"), [(1, 1), (1, 4), (4, 1), (3, 5), (6, 2)])
def test_coupling_moves_all_of_both_distributions(n_sources, n_targets):
    rng = np.random.default_rng(n_sources)
    source, target = rng.uniform(0.1, 5, size=n_sources), rng.uniform(0.1, 5, size=n_targets)
    coupling = optimal_coupling(source, target, rng.uniform(size=(n_sources, n_targets)))
    assert coupling.shape == (n_sources, n_targets)
    assert (coupling >= 0).all()
    np.testing.assert_allclose(coupling.sum(axis=1), 1)
    np.testing.assert_allclose(source / source.sum() @ coupling, target / target.sum())


def test_coupling_of_equal_weights_is_the_best_assignment():
    cost = np.random.default_rng(0).uniform(size=(7, 7))
    coupling = optimal_coupling(np.full(7, 3.0), np.ones(7), cost)
    rows, columns = linear_sum_assignment(cost)
    np.testing.assert_allclose(coupling[rows, columns], 1)


def test_cells_are_spread_over_the_populations_of_the_new_type(small_model, example_cells):
    """Cells of one population go to all populations of the new type, in the shares of these."""
    model, n_cells = small_model.model, 4000
    share = model.composition.loc[DENDRITIC, "n_cells"].to_numpy()
    generator = torch.Generator().manual_seed(0)
    new = new_populations(model, np.full(n_cells, "CD34+"), "Dendritic", generator, pd.DataFrame())
    found = pd.Series(new).value_counts()[DENDRITIC].to_numpy()
    np.testing.assert_allclose(found / n_cells, share / share.sum(), atol=0.03)
    cells = small_model.transmute(example_cells, "Dendritic", from_="CD56+ NK")
    assert set(cells.obs["cell_type"]) == {"Dendritic"}
    assert set(cells.obs["sub_population"]) == set(DENDRITIC)


def test_populations_of_two_types_are_coupled_by_optimal_transport(small_model):
    model = small_model.model
    old, new = (model.composition.loc[names, "n_cells"].to_numpy(dtype=float) for names in (B, DENDRITIC))
    cost = np.array(
        [
            [float(((population_mean(model, b) - population_mean(model, d)).double() ** 2).sum()) for d in DENDRITIC]
            for b in B
        ]
    )
    expected = optimal_coupling(old, new, cost)
    assert (expected.max(axis=1) > 0.99).any()  # one population goes to one other, unlike with independent draws
    population = np.repeat(B, 3000)
    chosen = new_populations(model, population, "Dendritic", torch.Generator().manual_seed(0), pd.DataFrame())
    found = pd.crosstab(population, chosen, normalize="index").reindex(index=B, columns=DENDRITIC, fill_value=0)
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_cells_are_transmuted_to_a_sub_population(small_model, example_cells):
    cells = small_model.transmute(example_cells, "Dendritic/2", from_=["Dendritic", "CD19+ B"])
    assert set(cells.obs["cell_type"]) == set(cells.obs["bulk_labels"]) == {"Dendritic"}
    assert set(cells.obs["sub_population"]) == {"Dendritic/2"}
    of_type = cells.obs["original_type"] == "Dendritic"
    assert set(cells.obs.loc[of_type, "common_ancestor"]) == {"Dendritic"}
    ancestor = small_model.hierarchy.common_ancestor("CD19+ B", "Dendritic/2")
    assert set(cells.obs.loc[~of_type, "common_ancestor"]) == {ancestor.name}
    model = small_model.model
    whole, part = (model.whitening.inverse(population_mean(model, name)[None])[0, :-1].numpy() for name in DENDRITIC)
    for rows in (of_type, ~of_type):
        middle = cells.obsm["latent"][rows.to_numpy()].mean(axis=0)
        assert np.linalg.norm(middle - part) < 0.3 * np.linalg.norm(middle - whole)


def test_cells_of_a_sub_population_are_compared_with_it_alone(small_model, example_cells, caplog):
    model = small_model.model
    new = small_model.transmute(example_cells, "Dendritic/2", from_=["CD19+ B"])
    cells = Cells.from_anndata(small_model.prepared)
    real = RealCells(cells, cells, model.gene_names)
    to = read_target(new, "new")
    assert to == ("Dendritic", "Dendritic/2")
    whole = small_model.transmute(example_cells, "Dendritic", from_=["CD19+ B"])
    assert read_target(whole, "new") == ("Dendritic", "Dendritic")
    found, name = relabel(real, *to, population_assigner(model))
    assert name == "Dendritic/2"
    population = populations_of_cells(small_model.prepared, model.autoencoder)
    np.testing.assert_array_equal(found.test.cell_type == name, population == name)
    assert 0 < (found.test.cell_type == "Dendritic").sum() < (cells.cell_type == "Dendritic").sum()
    assert relabel(real, *to, None) == (real, "Dendritic")
    assert "Cells were transmuted to Dendritic/2, but are compared with all cells of Dendritic; give" in caplog.text


def test_types_of_few_cells_are_left_out_of_sets(caplog):
    rng = np.random.default_rng(0)
    cell_type = np.repeat(["a", "b", "c", "rare"], [40, 40, 40, 8])
    cells = Cells(sparse.csr_matrix(rng.poisson(1.0, size=(128, 50)), dtype=np.float32), cell_type)
    is_test = np.tile([False, True], 64)
    genes = GeneNames(pd.DataFrame(index=[f"gene {i}" for i in range(50)]))
    real = RealCells(cells[~is_test], cells[is_test], genes)
    rows = {"one": np.r_[0:40, 40:44], "two": np.r_[0:80, 120:128]}
    transmuted = {name: TransmutedCells(cells[index], cells[index]) for name, index in rows.items()}
    evaluation = evaluate_transmutation(real, transmuted, "c")
    known = evaluation.scores.dropna(subset="value").groupby("group")["set"].unique()
    assert known.map(set).to_dict() == {"a": {"one", "two", "unchanged"}, "b": {"two", "unchanged"}}
    assert evaluation.verdict("two").grade == Grade.SAME
    assert evaluation.original_types == ["a", "b"]
    assert "Not evaluated: cells of rare, with 8 transmuted cells and 4 training cells" in caplog.text
    few = {"one": TransmutedCells(cells[np.arange(4)], cells[np.arange(4)])}
    with pytest.raises(InputError, match="No type has 5 transmuted"):
        evaluate_transmutation(real, few, "c")


def test_genes_of_the_endpoints_are_chosen_by_cells_that_are_not_compared():
    """Where types do not differ, genes that were chosen by chance change no more in the floor than in test cells."""
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, size=(400, 500)), dtype=np.float32)
    cells = Cells(counts, np.repeat(["a", "b"], 200))
    is_test = np.tile([False, True], 200)
    genes = GeneNames(pd.DataFrame(index=[f"gene {i}" for i in range(500)]))
    ends = select_endpoints(RealCells(cells[~is_test], cells[is_test], genes), "a", "b")
    assert len(ends.new) == len(ends.old) == 100
    assert len(ends.changed) == 100
    chosen, of_all = (fold_changes(ends.new, of).query for of in (ends, replace(ends, changed=np.arange(500))))
    assert np.abs(chosen).mean() == pytest.approx(np.abs(of_all).mean(), rel=0.25)


def test_copies_of_training_cells_change_as_much_as_the_floor():
    """No part of the training cells, which a model has learned from, chooses genes by its own noise."""
    rng = np.random.default_rng(1)
    means = np.stack([np.ones(500), 2 ** rng.normal(0, 0.3, 500)])
    cell_type = np.repeat(["a", "b"], 100)
    cells = Cells(sparse.csr_matrix(rng.poisson(means[np.repeat([0, 1], 100)]), dtype=np.float32), cell_type)
    is_test = np.tile([False, False, True, True], 50)
    genes = GeneNames(pd.DataFrame(index=[f"gene {i}" for i in range(500)]))
    real = RealCells(cells[~is_test], cells[is_test], genes)
    copies, before = (real.training[real.training.cell_type == name] for name in ("b", "a"))
    table = wide(evaluate_transmutation(real, {"copies": TransmutedCells(copies, before)}, "b").scores, "score")
    assert table.loc["slope", "copies"] == pytest.approx(table.loc["slope", "floor"], rel=0.02)
    assert table.loc["mean_r2", "copies"] == pytest.approx(table.loc["mean_r2", "floor"], abs=0.02)


def test_types_without_test_cells_are_transmuted_and_evaluated():
    rng = np.random.default_rng(2)
    cell_type = np.repeat(["a", "b"], 20)
    cells = Cells(sparse.csr_matrix(rng.poisson(1.0, size=(40, 200)), dtype=np.float32), cell_type)
    is_test = (cell_type == "b") & np.tile([False, True], 20)
    genes = GeneNames(pd.DataFrame(index=[f"gene {i}" for i in range(200)]))
    ends = select_endpoints(RealCells(cells[~is_test], cells[is_test], genes), "a", "b")
    assert (len(ends.old), len(ends.new), len(ends.test), len(ends.changed)) == (20, 10, 10, 100)
    with pytest.raises(InputError, match="0 test cells of 'a'"):
        select_endpoints(RealCells(cells[~is_test], cells[is_test], genes), "b", "a")


def test_five_cells_at_either_end_are_enough():
    rng = np.random.default_rng(3)
    cells = Cells(sparse.csr_matrix(rng.poisson(1.0, size=(30, 60)), dtype=np.float32), np.repeat(["a", "b"], [20, 10]))
    is_test = np.tile([False, True], 15)
    genes = GeneNames(pd.DataFrame(index=[f"gene {i}" for i in range(60)]))
    pair = TransmutedCells(cells[np.arange(20, 30)], cells[np.arange(10)])
    evaluation = evaluate_transmutation(RealCells(cells[~is_test], cells[is_test], genes), {"few": pair}, "b")
    known = evaluation.scores[evaluation.scores["set"] == "few"].set_index("score")
    assert (known["n_cells"] == 5).all()
    assert known.loc["forest_auc", ["value", "floor"]].notna().all()
    assert evaluation.verdict("few").grade == Grade.UNKNOWN
