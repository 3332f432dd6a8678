from itertools import pairwise

import numpy as np
import pytest
import torch
from anndata import AnnData

from bdm.diffusion.fit import DenoiserSettings
from bdm.diffusion.walk import SamplerSettings
from bdm.errors import InputError
from bdm.extension.adapt import AdapterSettings
from bdm.extension.extend import Extended, ExtendSettings, extend
from bdm.extension.new_cells import new_cells
from bdm.files import sha256
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.model.match import counts_of
from bdm.model.model import BranchedModel, load_model, save_model

QUICK = ExtendSettings(AdapterSettings(n_steps=20), DenoiserSettings(n_steps=20), n_bootstrap=10)
NEW = ["CD56+ NK", "CD14+ Monocyte", "CD34+"]


@pytest.fixture(scope="module")
def base(example_cells, small_settings) -> BranchedModel:
    """Model that knows none of the new types."""
    from bdm.api import BranchedDiffusion

    cells = example_cells[~example_cells.obs["bulk_labels"].isin(NEW)].copy()
    return BranchedDiffusion(cells, label_key="bulk_labels", settings=small_settings).fit().model


@pytest.fixture(scope="module")
def stages(base, example_cells) -> list[BranchedModel]:
    """The model, and after each of the new types was added."""
    models = [base]
    for cell_type, cells in new_cells(example_cells, base, cell_types=tuple(NEW), seed=0).items():
        models.append(extend(models[-1], cells, cell_type, QUICK, seed=0, provenance={}).model)
    return models


def generated(model: BranchedModel, *, stochastic: bool = False, shared: bool = False) -> AnnData:
    return generate_cells(
        model, request_cells(model, 30), SamplerSettings(stochastic=stochastic), seed=3, shared_ancestors=shared
    )


# ---- other types


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_cells_of_known_types_are_the_same_to_the_bit(stages, stochastic, shared):
    cells = [generated(model, stochastic=stochastic, shared=shared) for model in stages]
    for before, after in pairwise(cells):
        known = after[after.obs["cell_type"].isin(before.obs["cell_type"].unique())]
        assert (known.X != before.X).nnz == 0
        assert (known.obsm["latent"] == before.obsm["latent"]).all()


def test_given_model_is_left_as_it_is(base, stages, tmp_path):
    for number, model in enumerate([base, stages[-1]]):
        save_model(tmp_path / str(number), model)
    files = {path.name: sha256(path) for path in (tmp_path / "0").iterdir()}
    assert files == {path.name: sha256(path) for path in (tmp_path / "1").iterdir() if path.is_file()}
    assert len(list((tmp_path / "1/extensions").iterdir())) == len(NEW)


def test_extended_model_comes_back_from_its_folder(stages, tmp_path):
    save_model(tmp_path / "model", stages[-1])
    loaded = load_model(tmp_path / "model")
    assert loaded.hierarchy == stages[-1].hierarchy
    assert loaded.cell_types == (*stages[0].cell_types, *NEW)
    one, other = generated(stages[-1]), generated(loaded)
    assert (one.X != other.X).nnz == 0
    assert one.obs.equals(other.obs)
    (tmp_path / "model/extensions/0002/branch.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        load_model(tmp_path / "model")


# ---- the new type


@pytest.fixture(scope="module")
def with_nk(base, example_cells) -> Extended:
    """The model with NK cells, added with time enough."""
    [cells] = new_cells(example_cells, base, cell_types=("CD56+ NK",), seed=0).values()
    settings = ExtendSettings(branch=DenoiserSettings(n_steps=100))
    return extend(base, cells, "CD56+ NK", settings, seed=0, provenance={})


def profile(counts: np.ndarray) -> np.ndarray:
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)


def test_new_cells_are_like_those_that_were_learned(with_nk, example_cells):
    genes = with_nk.model.autoencoder.genes.index
    real = example_cells[:, genes]
    real = {
        name: profile(real[real.obs["bulk_labels"] == name].X.toarray()) for name in ("CD56+ NK", "CD8+ Cytotoxic T")
    }
    cells = generated(with_nk.model)
    made = profile(cells[cells.obs["cell_type"] == "CD56+ NK"].X.toarray())
    apart = np.linalg.norm(real["CD56+ NK"] - real["CD8+ Cytotoxic T"])
    assert np.linalg.norm(made - real["CD56+ NK"]) < 0.4 * apart


def test_its_own_decoder_expresses_the_type_better(with_nk):
    assert with_nk.adapted.after.mean() > with_nk.adapted.before.mean() + 10
    assert len(with_nk.adapted.before) == len(with_nk.adapted.after)


def test_it_is_placed_beside_its_nearest(with_nk):
    assert with_nk.distance.index[0] == "CD8+ Cytotoxic T"
    assert with_nk.distance.is_monotonic_increasing
    assert with_nk.extension.support > 0.5
    node = with_nk.model.hierarchy.by_name[with_nk.model.hierarchy.by_name["CD56+ NK"].parent]
    assert node.level == with_nk.extension.place.level
    assert "CD8+ Cytotoxic T" in with_nk.model.hierarchy.leaves(node.name)


def test_only_the_new_branch_was_trained(base, with_nk):
    before, after = base.denoiser.state_dict(), with_nk.model.denoiser.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)], value), name
    parent = base.hierarchy.runners.index(with_nk.model.hierarchy.by_name["CD8+ Cytotoxic T"].runner)
    assert not torch.equal(after["branch.weight"][-1], before["branch.weight"][parent])


def test_cells_move_to_and_from_the_new_type(with_nk, example_cells):
    from bdm.transmutation.goal import Goal
    from bdm.transmutation.sources import sources_of
    from bdm.transmutation.transmute import transmute_cells

    for one, other in [("CD56+ NK", "Dendritic"), ("Dendritic", "CD56+ NK")]:
        sources = sources_of(example_cells, with_nk.model, Goal(other), cell_types=(one,), label_key="bulk_labels")
        moved = transmute_cells(with_nk.model, sources, Goal(other), SamplerSettings(), seed=0)
        real = example_cells[:, moved.var_names]
        here, there = (profile(real[real.obs["bulk_labels"] == name].X.toarray()) for name in (one, other))
        assert np.linalg.norm(profile(moved.X.toarray()) - there) < 0.5 * np.linalg.norm(here - there)


def test_batches(example_cells, batch_model):
    cells = example_cells[:80].copy()
    cells.obs["bulk_labels"] = "new"
    cells.obs["donor"] = np.where(np.arange(cells.n_obs) % 4 == 0, "two", "one")
    [new] = new_cells(cells, batch_model.model, seed=0).values()
    model = extend(batch_model.model, new, "new", QUICK, seed=0, provenance={}).model
    assert model.composition.loc["new"].to_dict() == {"one": 60, "two": 20}
    assert set(generated(model).obs["batch"]) == {"one", "two"}
    cells.obs["donor"] = "three"
    with pytest.raises(InputError, match="no batch 'three'"):
        new_cells(cells, batch_model.model, seed=0)


def test_python_extends_and_saves(base, example_cells, tmp_path):
    from bdm.api import BranchedDiffusion

    save_model(tmp_path / "base", base)
    model = BranchedDiffusion.load(tmp_path / "base").extend(example_cells, cell_types=["CD34+"])
    model.save(tmp_path / "extended")
    cells = BranchedDiffusion.load(tmp_path / "extended").generate({"CD34+": 3})
    assert list(cells.obs["cell_type"]) == ["CD34+"] * 3
    assert (cells.X != model.generate({"CD34+": 3}).X).nnz == 0


# ---- cells and genes


def test_all_new_types_are_taken_the_largest_first(example_cells, base):
    found = new_cells(example_cells, base, seed=0)
    numbers = example_cells.obs["bulk_labels"].value_counts()
    assert list(found) == sorted([*NEW, "CD4+/CD45RA+/CD25- Naive T"], key=lambda name: -numbers[name])
    for name, cells in found.items():
        assert cells.n_obs == numbers[name]
        assert set(cells.obs["split"]) == {"train", "validation"}
        assert list(cells.var_names) == list(base.autoencoder.genes.index)


def test_genes_are_matched_by_identifier(example_cells, base):
    genes = base.autoencoder.genes.assign(gene_id=[f"ENSG{i}" for i in range(len(base.autoencoder.genes))])
    cells = example_cells[:, genes.index[::-1]].copy()
    expected = counts_of(cells, genes)
    cells.var_names = [f"ENSG{i}" for i in reversed(range(len(genes)))]
    found = counts_of(cells, genes)
    assert (found.X != expected.X).nnz == 0
    assert list(found.var_names) == list(genes.index)


def test_missing_genes_are_zero_on_request_alone(example_cells, base, caplog):
    genes = base.autoencoder.genes
    cells = example_cells[:, genes.index[3:]].copy()
    with pytest.raises(InputError, match="lack 3 of the model's"):
        counts_of(cells, genes)
    found = counts_of(cells, genes, missing_as_zero=True)
    assert found.X[:, :3].nnz == 0
    assert (found.X[:, 3:] != example_cells[:, genes.index[3:]].X).nnz == 0
    assert f"3 genes that the cells lack, as {genes.index[0]}" in caplog.text
    with pytest.raises(InputError, match="none of the model's"):
        counts_of(
            AnnData(cells.X, var=cells.var.set_axis([f"x{i}" for i in range(cells.n_vars)])),
            genes,
            missing_as_zero=True,
        )
