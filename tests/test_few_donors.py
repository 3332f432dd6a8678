"""No cell type and no sub-population of too few donors."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError
from bdm.autoencoder.fit_autoencoder import fit_autoencoder
from bdm.autoencoder.sub_populations import SubPopulations, classify, find_one_donor
from bdm.data.filters import effective_donors
from bdm.data.prepare import prepare
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.interpretation.interpret import convert_generated
from bdm.settings import AutoencoderSettings, GenerationSettings, PrepareSettings

N_GENES, N_DONORS = 120, 8
MIN_DONORS = 4
QUICK = AutoencoderSettings(n_latent=8, n_steps=20, sub_populations="auto")


def cells_with_a_clone(seed: int = 0, *, n_cells: int = 60, n_clone: int = 80) -> AnnData:
    """Cells of two types and eight donors; the first donor has more cells of type ``b``, with other expression."""
    rng = np.random.default_rng(seed)
    donor = np.concatenate([np.tile(np.arange(N_DONORS), n_cells), np.zeros(n_clone, dtype=int)])
    cell_type = np.where(np.arange(len(donor)) // N_DONORS % 2, "a", "b")
    clone = np.arange(len(donor)) >= N_DONORS * n_cells
    cell_type[clone] = "b"
    genes = np.arange(N_GENES)
    of_types = np.where((cell_type == "a")[:, None] & (genes % 3 == 0), 4, 1)
    of_clone = np.where(clone[:, None] & (genes < 40), 6, 1)
    mean = (rng.gamma(1, 1, N_GENES) + 0.3) * of_types * of_clone
    counts = rng.poisson(500 * mean / mean.sum(axis=1, keepdims=True))
    obs = pd.DataFrame({"cell_type": cell_type, "donor": [f"d{number}" for number in donor], "clone": clone})
    return AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs.set_index(obs.index.map("cell {}".format)))


def settings(**changes) -> PrepareSettings:
    return PrepareSettings(**{"donor_key": "donor", "genes": "all", "test": 0.0} | changes)


def test_donors_are_counted_in_effect():
    donor = ["x", "y", "z", "w"] + ["x"] * 9 + ["y"] + ["x", "x", "y"]
    group = ["even"] * 4 + ["one"] * 10 + ["two"] * 3
    found = effective_donors(pd.Series(group), pd.Series(donor))
    assert found.to_dict() == pytest.approx({"even": 4, "one": 100 / 82, "two": 9 / 5})


@pytest.mark.slow
def test_a_sub_population_of_one_donor_is_not_formed(caplog):
    """The clone is one where donors do not count, and is named; its cells stay in the type otherwise."""
    found, named, recorded = {}, {}, {}
    for fewest in (1, MIN_DONORS):
        prepared = prepare(cells_with_a_clone(), settings(min_donors=fewest))
        caplog.clear()
        autoencoder = fit_autoencoder(prepared, QUICK, seed=0, provenance={})[0]
        found[fewest], recorded[fewest] = autoencoder.sub_populations, autoencoder.one_donor
        named[fewest] = "more than half of their cells of one donor: b/2 (100%); to form none" in caplog.text
    assert named == {1: True, MIN_DONORS: False}
    assert recorded == {1: ("b/2",), MIN_DONORS: ()}
    assert found[1].cell_type == ("b", "b")
    assert len(found[MIN_DONORS]) == 0


@pytest.mark.parametrize(
    ("n_donors", "advice"), [(8, "min_donors=5`"), (3, "min_donors=2`"), (2, "b/1 (75%)."), (1, "b/1 (100%).")]
)
def test_a_minimum_of_donors_is_advised_that_all_types_reach(n_donors, advice, caplog):
    donor = [f"d{number % n_donors}" for number in range(240)] + ["d0", "d0", "d0", f"d{n_donors - 1}"] * 10
    populations = ["a/1"] * 240 + ["b/1"] * 40
    obs = pd.DataFrame({"cell_type": "a", "sub_population": populations, "donor": donor})
    classifier = replace(SubPopulations.none(2), names=("a/1", "b/1"))
    assert "b/1" in find_one_donor(obs, classifier)
    assert advice in caplog.messages[0]


def test_generated_cells_do_not_name_sub_populations_where_one_is_of_one_donor(small_model):
    """Otherwise, the name would stand for the donor; also a single type's name among its sub-populations would."""
    model = small_model.model
    divided, kept = dict.fromkeys(model.autoencoder.sub_populations.cell_type)
    of_donor = replace(
        model, autoencoder=replace(model.autoencoder, one_donor=model.autoencoder.populations_of(divided)[-1:])
    )
    request, how = request_cells(model, {divided: 60, kept: 60}), GenerationSettings()
    before, after = (generate_cells(each, request, how, seed=0) for each in (model, of_donor))
    assert (before.X != after.X).nnz == 0
    unnamed = (before.obs["cell_type"] == divided).to_numpy()
    assert before.obs["sub_population"][unnamed].nunique() > 1
    assert set(after.obs["sub_population"][unnamed]) == {divided}
    assert set(json.loads(after.uns["bdm"]["request"])["sub_population"]) == {
        divided,
        *before.obs["sub_population"][~unnamed],
    }
    assert list(after.obs["sub_population"][~unnamed]) == list(before.obs["sub_population"][~unnamed])
    interpreted = convert_generated(after, of_donor).cell_type
    assert set(interpreted[unnamed]) == set(model.autoencoder.populations_of(divided))


def test_fewer_sub_populations_than_asked_for_are_named_where_donors_are_too_few(caplog):
    prepared = prepare(cells_with_a_clone(), settings(min_donors=MIN_DONORS))
    assert (
        len(fit_autoencoder(prepared, replace(QUICK, sub_populations=2), seed=0, provenance={})[0].sub_populations) < 4
    )
    needed = f"Fewer than 2 sub-populations, as each needs 30 cells of {MIN_DONORS} effective donors to fit: "
    [said] = [message for message in caplog.messages if needed in message]
    assert "'b' (1)" in said


@pytest.mark.slow
def test_a_column_that_is_not_named_as_the_donors_is_ignored(caplog):
    prepared = prepare(cells_with_a_clone(), settings(donor_key=None))
    assert len(fit_autoencoder(prepared, QUICK, seed=0, provenance={})[0].sub_populations) == 2
    assert "of one donor" not in caplog.text


def parts_of_latents(n_donors: list[int], n_cells: list[int]) -> tuple[torch.Tensor, np.ndarray, pd.Series]:
    """Latents of cells in parts that lie apart, the part of each, and its donor."""
    rng = np.random.default_rng(0)
    part = np.repeat(np.arange(len(n_cells)), n_cells)
    latent = rng.normal(size=(len(part), 4))
    latent[np.arange(len(part)), part] += 8
    donor = np.concatenate([np.arange(number) % n for n, number in zip(n_donors, n_cells, strict=True)])
    return torch.from_numpy(latent).float(), part, pd.Series(donor)


def test_cells_of_a_part_of_few_donors_join_others():
    latent, part, donor = parts_of_latents([6, 1, 5], [300, 60, 300])
    how = {"prefix": "T/", "min_cells": 30, "donor": donor}
    assert len(classify("T", latent, part, **how, min_donors=1)) == 3
    found = classify("T", latent, part, **how, min_donors=4)
    assert found.names == ("T/1", "T/2")
    assigned = found.assign("T", latent).numpy()
    assert (np.bincount(assigned) >= 300).all()
    assert effective_donors(pd.Series(assigned), donor).min() >= 4
    assert len(classify("T", latent, part, **how, min_donors=6)) == 0


def test_types_of_few_donors_are_left_out(caplog):
    cells = cells_with_a_clone()
    cells.obs["cell_type"] = np.where(cells.obs["clone"], "clone", cells.obs["cell_type"])
    prepared = prepare(cells, settings(min_donors=MIN_DONORS))
    assert list(prepared.obs["cell_type"].cat.categories) == ["a", "b"]
    message = "Left out type clone: its cells are of 1.0 effective donors (one has 100% of them), fewer than 4."
    assert message in caplog.text
    left_out = json.loads(prepared.uns["bdm"]["input"])["types_left_out"]
    assert left_out == [{"cell_type": "clone", "n_cells": 80, "setting": "min_donors"}]
    assert "clone" in prepare(cells, settings()).obs["cell_type"].cat.categories


def test_donors_of_test_cells_only_are_not_counted(caplog):
    cells = cells_with_a_clone(n_clone=0)
    two_each = cells.obs[cells.obs["cell_type"] == "a"].groupby("donor").head(2).index  # of eight donors
    cells.obs.loc[two_each, "cell_type"] = "few"
    prepared = [prepare(cells, settings(min_donors=7, test=test)) for test in (0.0, 0.4)]
    assert ["few" in of.obs["cell_type"].cat.categories for of in prepared] == [True, False]
    assert "Left out type few: its cells are of" in caplog.text


def test_donors_are_counted_again_without_cells_that_have_no_counts():
    cells = cells_with_a_clone(n_clone=0)
    gone = cells.obs_names[(cells.obs["donor"] == "d3") & (cells.obs["cell_type"] == "a")]
    without = cells.X.toarray()
    without[cells.obs_names.get_indexer(gone), :60] = 0
    cells.X = sparse.csr_matrix(without)
    listed = tuple(cells.var_names[:60])
    with pytest.raises(InputError, match=r"^the cells of type 'a' to fit to are of 7.00 effective donors"):
        prepare(cells, settings(min_donors=N_DONORS, genes=listed))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"donor_key": None, "min_donors": 5}, r"^min_donors is 5, but donors are not known; name their column"),
        ({"min_donors": 0}, "min_donors is 0, but must be at least 1"),
        (
            {"min_donors": 9},
            r"^fewer than two of 2 cell types have cells of 9 effective donors or more \(the most are 8.0\); give",
        ),
        (
            {"min_donors": 9, "label_key": None},
            r"^the cells are of 7.0 effective donors, fewer than 9; give cells of more donors, or lower `min_donors=`",
        ),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(InputError, match=message):
        prepare(cells_with_a_clone(), settings(**changes))
