import copy
import json
from collections import Counter

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from r_readers import check_r_reads
from scipy import sparse
from scipy.stats import chisquare, nbinom

from bdm._core.errors import InputError
from bdm._core.seeds import derive
from bdm.autoencoder.observation import NegativeBinomial
from bdm.generation.generate import MAX_CHUNK, MIN_CHUNK, generate_cells, generated_cells, write_cells
from bdm.generation.request import cells_like, complete_inputs, read_request, request_cells
from bdm.model.model import expected_counts, generated_noise
from bdm.settings import GenerationSettings

B, NK, MONO = "CD19+ B", "CD56+ NK", "CD14+ Monocyte"
B1, B2 = "CD19+ B/1", "CD19+ B/2"  # sub-populations of B; NK and MONO are one population
DENDRITIC = ["Dendritic/1", "Dendritic/2"]


def counts(adata) -> np.ndarray:
    return adata.X.toarray()


def counts_of(adata, cell_type: str) -> np.ndarray:
    return counts(adata[adata.obs["cell_type"] == cell_type])


def table(rows: list[tuple], columns=("cell_type", "n_cells", "batch")) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)[: len(rows[0])])


# ---- counts


def sample_counts(mean: np.ndarray, r: np.ndarray, generator: np.random.Generator) -> sparse.csr_matrix:
    return NegativeBinomial(torch.from_numpy(np.log(r))).sample(mean, generator)


def inverse_dispersion(model, cell_type: str) -> np.ndarray:
    return generated_noise(model, cell_type).inverse_dispersion.numpy()


@pytest.mark.parametrize("r", [0.03, 0.5, 3.0, 50.0, 1e6])
@pytest.mark.parametrize("mean", [1e-3, 0.1, 2.0, 60.0])
def test_every_count_has_its_probability(mean, r):
    n, p = 200_000, r / (r + np.float64(np.float32(mean)))
    generator = np.random.default_rng(derive(1, str(mean), str(r)))
    sampled = sample_counts(np.full((n // 100, 100), mean, np.float32), np.full(100, r, np.float32), generator)
    last = np.unique(nbinom.ppf([*np.linspace(0.05, 0.95, 19), 0.99, 0.999], r, p))  # count of each bin but the last
    observed = np.bincount(np.searchsorted(last, sampled.toarray().ravel()), minlength=len(last) + 1)
    expected = n * np.diff(nbinom.cdf(last, r, p), prepend=0, append=1)
    assert chisquare(observed, expected).pvalue > 1e-3


def test_counts_of_genes_that_are_off():
    assert sample_counts(np.full((5, 3), 1e-30), np.full(3, 1e-12), np.random.default_rng(0)).nnz == 0


def test_expected_counts_keep_within_the_library_sizes_seen(small_model):
    model = small_model.model
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 30
    total = expected_counts(model, x, pd.DataFrame()).sum(axis=1)
    low, high = model.library_sizes.exp().tolist()
    assert total.min() >= low * 0.999
    assert total.max() <= high * 1.001
    assert np.isclose(total, low, rtol=1e-3).any()
    assert np.isclose(total, high, rtol=1e-3).any()


def test_counts_are_as_dispersed_as_their_types(small_model):
    model = copy.deepcopy(small_model.model)
    model.autoencoder.noise[NK].log_inverse_dispersion.add_(np.log(1e6))
    of_type = {name: inverse_dispersion(small_model.model, name) for name in (B1, NK)}
    np.testing.assert_allclose(inverse_dispersion(model, NK), 1e6 * of_type[NK], rtol=1e-4)
    np.testing.assert_array_equal(inverse_dispersion(model, B1), of_type[B1])
    request = request_cells(model, {B: 200, NK: 200})
    settings = GenerationSettings()
    before, after = (generate_cells(m, request, settings, seed=0) for m in (small_model.model, model))
    np.testing.assert_array_equal(counts_of(before, B), counts_of(after, B))
    assert counts_of(after, NK).var(axis=0).sum() < 0.9 * counts_of(before, NK).var(axis=0).sum()
    np.testing.assert_allclose(counts_of(after, NK).sum(), counts_of(before, NK).sum(), rtol=0.05)


# ---- generated cells


@pytest.mark.parametrize("shared", [False, True])
def test_generated_cells(small_model, shared):
    adata = small_model.generate({B: 7, NK: 3}, shared_ancestors=shared)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    assert adata.X.min() >= 0
    assert adata.X.sum() > 0
    assert adata.obs["cell_type"].value_counts()[[B, NK]].tolist() == [7, 3]
    assert adata.obs_names.is_unique
    assert adata.obs["synthetic"].all()
    assert list(adata.var_names) == list(small_model.prepared.var_names)
    assert list(adata.var) == list(small_model.prepared.var)
    assert adata.obsm["latent"].shape == (10, 6)
    assert np.isfinite(adata.obsm["latent"]).all()
    assert "batch" not in adata.obs
    assert ("ancestor" in adata.obs) == shared


def test_cells_carry_types_and_batches_in_the_columns_of_the_data(batch_model, example_cells):
    generated = batch_model.generate({B: 2, NK: 3})
    assert list(generated.obs) == ["cell_type", "bulk_labels", "sub_population", "synthetic", "donor"]
    assert list(generated.obs["bulk_labels"]) == list(generated.obs["cell_type"]) == [B] * 2 + [NK] * 3
    assert list(generated.obs["sub_population"]) == [B1, B2] + [NK] * 3
    real = example_cells.copy()
    real.obs["donor"] = pd.Categorical(["two"] * real.n_obs)
    both = anndata.concat([real, generated], index_unique="-")
    for column in ("bulk_labels", "donor"):
        assert list(both.obs[column]) == [*real.obs[column], *generated.obs[column]]
        assert isinstance(both.obs[column].dtype, pd.CategoricalDtype)


@pytest.mark.parametrize(
    ("label_key", "batch_key", "columns"),
    [
        ("cell_type", "batch", ["cell_type", "sub_population", "synthetic", "batch"]),
        ("synthetic", "cell_type", ["cell_type", "sub_population", "synthetic", "batch"]),
        ("batch", "the/donor", ["cell_type", "batch", "sub_population", "synthetic", "the_donor"]),
        ("sub_population", "donor", ["cell_type", "sub_population", "synthetic", "donor"]),
        ("_index", "ancestor", ["cell_type", "sub_population", "synthetic", "batch"]),
    ],
)
def test_columns_with_a_meaning_of_their_own_keep_it(batch_model, label_key, batch_key, columns):
    model = copy.deepcopy(batch_model.model)
    model.autoencoder.provenance["prepare"].update(label_key=label_key, batch_key=batch_key)
    settings = GenerationSettings()
    generated = generate_cells(model, request_cells(model, {B: 1}), settings, seed=0)
    assert list(generated.obs) == columns
    assert generated.obs["cell_type"].tolist() == [B]
    assert generated.obs["sub_population"].tolist() == [B1]
    assert generated.obs["synthetic"].tolist() == [True]


def test_populations_share_the_ancestors_of_one_number(small_model):
    """Equal numbers share ancestors, whichever populations are requested."""
    every = small_model.generate({B1: 70, B2: 70, NK: 70}, shared_ancestors=True)
    some = small_model.generate({B2: 70}, shared_ancestors=True)
    assert (some.obsm["latent"] == every.obsm["latent"][70:140]).all()
    of_b1, of_b2, of_nk = every.obsm["latent"].reshape(3, 70, -1)
    for latents in (of_b2, of_nk):
        for reference, related, shifted in zip(of_b1.T, latents.T, np.roll(latents, 1, axis=0).T, strict=True):
            assert np.corrcoef(reference, related)[0, 1] > 0.5
            assert abs(np.corrcoef(reference, shifted)[0, 1]) < 0.4


def test_record_of_how_cells_were_made(small_model):
    record = small_model.generate({B: 4}, seed=9).uns["bdm"]
    assert record["seed"] == 9
    assert json.loads(record["settings"]) == {"shared_ancestors": False}
    assert json.loads(record["request"]) == {"cell_type": [B, B], "sub_population": [B1, B2], "n_cells": [3, 1]}
    assert {"anndata", "numpy", "scanpy", "torch"} <= set(json.loads(record["packages"]))
    assert record["version"]
    assert "no measurements" in record["about"]
    assert "license" not in record


# ---- seeds


@pytest.mark.parametrize("settings", [{}, {"shared_ancestors": True}])
def test_seeds_change_the_cells(small_model, settings):
    first, second = (small_model.generate({B: 5, NK: 5}, seed=seed, **settings) for seed in (1, 2))
    for name in (B, NK):
        assert (counts_of(first, name) != counts_of(second, name)).any()


@pytest.mark.parametrize("shared", [False, True])
def test_cells_do_not_depend_on_order_of_request(batch_model, shared):
    rows = [(NK, 2, "two"), (B, 3, "one"), (NK, 4, "one"), (MONO, 5, "two"), (MONO, 1, "one")]
    first, second = (batch_model.generate(table(r), shared_ancestors=shared) for r in (rows, rows[::-1]))
    assert (counts(first) == counts(second)).all()
    pd.testing.assert_frame_equal(first.obs, second.obs)


@pytest.mark.parametrize("shared", [False, True])
def test_cells_do_not_depend_on_their_number(small_model, shared):
    every = small_model.generate({B2: MAX_CHUNK + 100, NK: 9}, shared_ancestors=shared)
    for n in (1, MIN_CHUNK, MIN_CHUNK + 1, 200, MAX_CHUNK + 3):
        fewer = small_model.generate({B2: n}, shared_ancestors=shared)
        assert (fewer.obsm["latent"] == every.obsm["latent"][:n]).all()
        assert (counts(fewer) == counts(every)[:n]).all()


@pytest.mark.parametrize("shared", [False, True])
def test_cells_of_a_type_are_the_first_of_its_populations(small_model, shared):
    of_populations = small_model.generate({B1: 100, B2: 50}, shared_ancestors=shared)
    of_type = small_model.generate({B: 100}, shared_ancestors=shared)
    share = small_model.model.composition.loc[[B1, B2], "n_cells"]
    numbers = of_type.obs["sub_population"].value_counts()
    assert numbers[B1] == round(100 * share[B1] / share.sum())
    assert numbers[B2] == 100 - numbers[B1]
    for name in (B1, B2):
        larger, smaller = (adata[adata.obs["sub_population"] == name] for adata in (of_populations, of_type))
        assert (counts(larger)[: smaller.n_obs] == counts(smaller)).all()
        assert (larger.obsm["latent"][: smaller.n_obs] == smaller.obsm["latent"]).all()


# ---- files


def test_columns_have_the_categories_of_their_cells_in_the_order_of_the_model(batch_model):
    generated = batch_model.generate({NK: 3, B: 20})
    moved = batch_model.transmute(generated, NK)
    simulated = batch_model.simulate({"samples": {"donors": 2, "conditions": ["a", "b"], "cells": 20}})
    for cells in (generated, moved, simulated):
        for name in ("cell_type", "sub_population", "donor", "doublet_partner"):
            if name in cells.obs:
                assert set(cells.obs[name].cat.categories) == set(cells.obs[name].dropna())
    model = batch_model.model
    for name, order in {"cell_type": model.cell_types, "sub_population": model.populations}.items():
        used = set(generated.obs[name])
        assert list(generated.obs[name].cat.categories) == [each for each in order if each in used]
    sc.pp.log1p(generated)
    for name in ("cell_type", "bulk_labels"):
        sc.tl.rank_genes_groups(generated, name)


@pytest.mark.parametrize("shared", [False, True])
def test_cells_written_as_they_are_generated_are_those_in_memory(batch_model, shared, tmp_path):
    requested = {B: 70, NK: 3, MONO: 130}
    adata = batch_model.generate(requested, shared_ancestors=shared)
    request = request_cells(batch_model.model, requested)
    cells = generated_cells(batch_model.model, request, GenerationSettings(shared_ancestors=shared), seed=0)
    write_cells(tmp_path / "generated.h5ad", cells, {})
    back = anndata.read_h5ad(tmp_path / "generated.h5ad")
    assert isinstance(back.X, sparse.csr_matrix)
    assert back.X.dtype == adata.X.dtype
    assert back.X.indices.dtype == back.X.indptr.dtype == np.int32
    np.testing.assert_array_equal(counts(back), counts(adata))
    np.testing.assert_array_equal(back.obsm["latent"], adata.obsm["latent"])
    assert back.obsm["latent"].dtype == adata.obsm["latent"].dtype
    pd.testing.assert_frame_equal(back.obs, adata.obs)
    pd.testing.assert_frame_equal(back.var, adata.var)
    assert back.uns["bdm"] == adata.uns["bdm"]
    check_r_reads(tmp_path / "generated.h5ad")
    backed = anndata.read_h5ad(tmp_path / "generated.h5ad", backed="r")
    np.testing.assert_array_equal(backed[100:103].to_memory().X.toarray(), counts(adata)[100:103])


# ---- requests


def numbers(model, cells, *, by: str = "cell_type") -> dict[tuple[str, str], int]:
    inputs = complete_inputs(model.model, request_cells(model.model, cells).table, seed=0)
    names = {name: model.model.cell_type_of[name] if by == "cell_type" else name for name in inputs}
    found = Counter((names[name], batch) for name, at in inputs.items() for batch in at.get("batch", [None] * len(at)))
    return dict(found)


def test_cells_are_spread_over_batches_as_each_type_was(batch_model):
    model = batch_model.model
    monocytes = model.composition.loc[list(model.hierarchy.populations_of(MONO))].sum()
    for requested in ({B: 9}, table([(B, 1)] * 9)):
        assert numbers(batch_model, requested, by="sub_population") == {(B1, "one"): 6, (B2, "one"): 3}
    share = monocytes["two"] / monocytes.sum()
    spread = numbers(batch_model, {MONO: 100})
    assert sum(spread.values()) == 100
    assert abs(spread[MONO, "two"] - 100 * share) < 1
    for n in range(1, 40):
        assert sum(numbers(batch_model, {NK: n}).values()) == n


def test_cells_of_a_requested_batch_are_spread_as_the_batch_was(batch_model):
    model = copy.deepcopy(batch_model.model)
    model.composition.loc[DENDRITIC] = [[90, 5], [10, 15]]
    table_of = request_cells(model, table([("Dendritic", 40, "two"), ("Dendritic", 20, "one"), (B, 10, "two")])).table
    rows = list(table_of[["sub_population", "batch", "n_cells"]].itertuples(index=False, name=None))
    share = model.composition.loc[[B1, B2]].sum(axis=1)
    assert rows == [
        (B1, "two", round(10 * share[B1] / share.sum())),  # no B cell was in batch two: as in all batches
        (B2, "two", 10 - round(10 * share[B1] / share.sum())),
        (DENDRITIC[0], "one", 18),
        (DENDRITIC[0], "two", 10),
        (DENDRITIC[1], "one", 2),
        (DENDRITIC[1], "two", 30),
    ]


def test_requests_may_name_sub_populations(small_model, tmp_path):
    (tmp_path / "cells.csv").write_text(f"cell_type,n_cells\n{B2},3\n{NK},2\n{B},3\n")
    mapping = {B2: 3, NK: 2, B: 3}
    for requested in (mapping, table(list(mapping.items())), read_request(tmp_path / "cells.csv")):
        assert numbers(small_model, requested, by="sub_population") == {(B1, None): 2, (B2, None): 4, (NK, None): 2}
        assert numbers(small_model, requested) == {(B, None): 6, (NK, None): 2}
    obs = small_model.generate(mapping).obs
    assert obs["cell_type"].tolist() == [B] * 6 + [NK] * 2
    assert obs["sub_population"].tolist() == [B1] * 2 + [B2] * 4 + [NK] * 2


def test_requested_batches(batch_model):
    requested = table([(B, "2", "two"), (NK, 0, "one"), (NK, 3, "two"), (B, 4, "two")])
    before = requested.copy()
    assert numbers(batch_model, requested) == {(B, "two"): 6, (NK, "two"): 3}
    obs = batch_model.generate(requested).obs
    assert obs["donor"].astype(str).tolist() == ["two"] * 9
    pd.testing.assert_frame_equal(requested, before)


@pytest.mark.parametrize("n", ["12", "12.0", "1.2e1", 12.0, np.int64(12), np.float32(12)])
def test_whole_numbers_of_every_kind(small_model, n):
    assert numbers(small_model, table([(B, n)])) == {(B, None): 12}
    assert numbers(small_model, {B: n}) == {(B, None): 12}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"T-800": 3}, "no type 'T-800'"),
        ({f"{B}/3": 3}, "no type 'CD19\\+ B/3'; did you mean 'CD19\\+ B'"),
        ({B: -1}, "-1 cells of type 'CD19"),
        ({B: 1.5}, "1.5 cells"),
        ({B: "many"}, "many cells"),
        ({B: None}, "whole number"),
        (2.5, "whole number"),
        (1e30, "whole number of 0 or more, up to 1,000,000,000,000"),
        ({B: 0}, "no cells"),
        (table([(B, 3)], columns=("type", "n_cells")), "lacks the column 'cell_type'"),
        (table([(B, f"{B}/1", 3)], columns=("cell_type", "sub_population", "n_cells")), "are named in cell_type"),
        (
            table([(B, 3, "one")], columns=("cell_type", "n_cells", "Batch")),
            "column 'Batch', which is none of cell_",
        ),
        (table([(B, 3, "three")]), "no batch 'three'"),
        (table([(None, 3, "one")]), "no type"),
    ],
)
def test_bad_requests(batch_model, cells, message):
    with pytest.raises(InputError, match=message):
        batch_model.generate(cells)


@pytest.mark.parametrize("seed", [-1, 2**32, "1", None])
def test_seeds_are_whole_numbers(small_model, seed):
    with pytest.raises(InputError, match=r"^seed is .*, but must be "):
        small_model.generate(1, seed=seed)


def test_the_index_of_a_table_is_no_column_of_it(tmp_path):
    table([(B, 3)], columns=("cell_type", "n_cells")).to_csv(tmp_path / "cells.csv")
    assert list(read_request(tmp_path / "cells.csv")) == ["cell_type", "n_cells"]


def test_batch_of_a_model_without_batches(small_model):
    with pytest.raises(InputError, match="without a batch column"):
        small_model.generate(table([(B, 3, "one")]))


def test_requests_in_forms_of_python(small_model, example_cells):
    counts = example_cells.obs["bulk_labels"].value_counts()
    requested = counts[counts.index.isin([B, NK])]
    assert request_cells(small_model.model, requested).n_by_type == requested[[B, NK]].to_dict()
    for wrong in ([3, 4], True, "3", np.array([3])):
        with pytest.raises(InputError, match=r"^Cells were requested by \w+; give a number of cells of every type"):
            request_cells(small_model.model, wrong)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"c'])
def test_file_without_a_request(small_model, tmp_path, content):
    (tmp_path / "cells.csv").write_bytes(content)
    with pytest.raises(InputError):
        request_cells(small_model.model, read_request(tmp_path / "cells.csv"))
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(InputError):
            read_request(path)


def test_numbers_like_other_cells(small_model, caplog):
    model, (a, b, c) = small_model.model, small_model.model.cell_types[:3]
    obs = pd.DataFrame({"bulk_labels": pd.Categorical([a, b, a], categories=[a, b, c]), "n": [1, 2, 3]})
    for table in (obs, obs.rename(columns={"bulk_labels": "cell_type"})):
        assert cells_like(anndata.AnnData(obs=table), model).to_dict("list") == {"cell_type": [a, b], "n_cells": [2, 1]}
    assert not caplog.messages
    with pytest.raises(InputError, match="no column"):
        cells_like(anndata.AnnData(obs=obs[["n"]]), model)


def test_numbers_like_cells_of_which_the_model_lacks_some(small_model, caplog):
    model = small_model.model
    obs = pd.DataFrame({"bulk_labels": ["mast", model.cell_types[0], None, "mast"]})
    assert cells_like(anndata.AnnData(obs=obs), model).to_dict("list") == {
        "cell_type": [model.cell_types[0]],
        "n_cells": [1],
    }
    assert caplog.messages == ["Not counted: 3 cells of types that the model lacks: 'mast', no type."]
    with pytest.raises(InputError, match="no cells of the model's types, but of 'mast', no type"):
        cells_like(anndata.AnnData(obs=obs.drop(index=1)), model)


def test_rows_that_are_cells_keep_their_order_names_and_columns(batch_model):
    table = pd.DataFrame({"cell_type": [MONO, B, MONO, NK, B], "batch": ["one", "two", None, "two", "one"]})
    table = table.assign(well=["a", "b", "c", "d", "e"]).set_axis([f"id-{n}" for n in range(5)])
    generated = batch_model.generate(table)
    assert list(generated.obs_names) == list(table.index)
    assert list(generated.obs["well"]) == list(table["well"])
    assert list(generated.obs["cell_type"]) == list(table["cell_type"])
    known = table["batch"].notna().to_numpy()
    batch = generated.obs[batch_model.model.preparation["batch_key"]].astype(str)
    assert list(batch[known]) == list(table["batch"][known])
    of_data = table.rename(columns={"cell_type": "bulk_labels", "batch": batch_model.model.preparation["batch_key"]})
    np.testing.assert_array_equal(batch_model.generate(of_data).X.toarray(), generated.X.toarray())
    ordered = table.iloc[[2, 0, 1, 4, 3]]
    assert list(batch_model.generate(ordered).obs_names) == list(ordered.index)
    with pytest.raises(InputError, match="'synthetic', which generated cells have"):
        batch_model.generate(table.assign(synthetic=1))


def test_rows_of_a_file_are_cells_named_as_in_it(small_model, tmp_path):
    (tmp_path / "cells.csv").write_text(f",cell_type,well\nid-1,{NK},a\nid-2,{B},b\nid-3,{NK},c\n")
    request = request_cells(small_model.model, read_request(tmp_path / "cells.csv"))
    cells = generated_cells(small_model.model, request, GenerationSettings(), seed=0)
    write_cells(tmp_path / "cells.h5ad", cells, {})
    written = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert list(written.obs_names) == ["id-1", "id-2", "id-3"]
    assert list(written.obs["well"]) == ["a", "b", "c"]
    sorted_cells = small_model.generate({NK: 2, B: 1}).X.toarray()
    by_type = np.argsort(written.obs["cell_type"].map(small_model.model.cell_types.index), kind="stable")
    np.testing.assert_array_equal(written.X.toarray()[by_type], sorted_cells)


def test_a_cell_depends_on_no_other_in_models_with_batches(batch_model):
    few, many = (batch_model.generate({MONO: n}) for n in (20, 70))
    population = few.obs["sub_population"].iloc[0]
    first, same = (cells[cells.obs["sub_population"] == population] for cells in (few, many))
    np.testing.assert_array_equal(first.X.toarray(), same.X.toarray()[: first.n_obs])
