"""Cells with proteins and peaks beside RNA: reading, preparation, decoders by blocks, and generated files."""

import json
import sys
from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from r_readers import check_r_reads
from scipy.stats import wasserstein_distance
from zoo import kept_model

from bdm import BranchedDiffusion, InputError, InputKeys, tl
from bdm.applications.design.design import read_design
from bdm.applications.design.simulate import simulate_cells
from bdm.applications.transmutation.transmute import select_sources, transmuted_cells
from bdm.autoencoder.adapters import Adapters, PopulationCells, fit_together
from bdm.autoencoder.decoder import AutoencoderShape, NegativeBinomialDecoder
from bdm.autoencoder.latent import encode, latent_cells
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.protein_levels import map_quantiles, quantiles
from bdm.autoencoder.softmax import OWN_MEAN_SCALE, AdapterSettings
from bdm.data.cells import Cells
from bdm.data.modalities import (
    MUDATA,
    OBSM,
    block_sizes,
    from_mudata,
    in_blocks,
    modalities_of,
    of_modality,
    per_10k,
    size_names,
    to_form,
    write_h5mu,
)
from bdm.data.prepare import prepare
from bdm.data.read import pbmc68k_counts, read_cells
from bdm.effects.donors import fit_donors
from bdm.evaluation.modality_scores import COORDINATES, joint_umap, score_pair
from bdm.evaluation.table import wide
from bdm.generation.generate import generate_cells
from bdm.generation.modality import find_modality, match_request, predict_modality
from bdm.generation.request import request_cells
from bdm.interpretation.contrasts import Differences, Log2FoldChange
from bdm.model.fit_model import measure_protein_levels
from bdm.model.model import BranchedModel
from bdm.pl import write_result
from bdm.settings import (
    AuditSettings,
    GenerationSettings,
    PrepareSettings,
    Settings,
)

N_PROTEINS, N_PEAKS = 6, 60


def with_modalities(cells: AnnData, *, seed: int = 0) -> dict[str, AnnData]:
    """Cells with proteins and peaks that differ between their types."""
    rng, types = np.random.default_rng(seed), cells.obs["bulk_labels"].cat.codes.to_numpy()
    n_types, depth = types.max() + 1, rng.lognormal(0, 0.3, (cells.n_obs, 1))
    level = rng.lognormal(3, 1.5, (n_types, N_PROTEINS))
    proteins = rng.negative_binomial(5, 1 / (1 + (2 + level[types]) * depth / 5))
    opened = rng.uniform(0.05, 0.5, (n_types, N_PEAKS))
    peaks = rng.poisson(opened[types] * rng.lognormal(0, 0.3, (cells.n_obs, 1)))
    peaks[:, 0] += 1  # so that no cell is without

    def part(values: np.ndarray, names: list[str]) -> AnnData:
        return AnnData(sp.csr_matrix(values.astype(np.float32)), cells.obs[[]].copy(), pd.DataFrame(index=names))

    names = ["CD3", *cells.var_names[: N_PROTEINS - 1]]  # proteins may have the names of genes
    return {
        "rna": AnnData(cells.X, cells.obs[["bulk_labels"]].copy(), cells.var[[]].copy()),
        "prot": part(proteins, names),
        "atac": part(peaks, [f"chr1:{100 * i}-{100 * i + 50}" for i in range(N_PEAKS)]),
    }


def joined(**options) -> AnnData:
    parts = with_modalities(pbmc68k_counts())
    return from_mudata(parts, parts["rna"].obs[[]], **options)


@pytest.fixture(scope="module")
def parts():
    return with_modalities(pbmc68k_counts())


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cells.h5mu"
    write_h5mu(path, joined())
    return path


@pytest.fixture(scope="session")
def multi_model(small_settings):
    """Model of the example cells with proteins and peaks."""

    def fit_multi():
        settings = replace(small_settings, prepare=replace(small_settings.prepare, test=0.2))
        return BranchedDiffusion(joined(), label_key="bulk_labels", settings=settings).fit()

    return kept_model(fit_multi)


# ---- blocks


@pytest.mark.parametrize("normalised", [(True, True), (True, False)])
def test_evidence_of_blocks_is_the_derivative_of_the_likelihood(normalised):
    torch.manual_seed(0)
    decoder = NegativeBinomialDecoder(AutoencoderShape(12, 1, 3, blocks=(7, 5), normalised=normalised))
    counts, latent = torch.poisson(torch.full((4, 12), 3.0)) + 1, torch.randn(4, 3, requires_grad=True)
    zeros = torch.zeros(4, dtype=torch.long)
    (expected,) = torch.autograd.grad(decoder.log_likelihood(counts, latent, zeros, zeros).sum(), latent)
    with torch.no_grad():
        gradient, information = decoder.evidence(counts, zeros, zeros).derivatives(latent)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    assert (torch.linalg.eigvalsh(information) > 0).all()


def test_counts_of_one_block_do_not_change_the_shares_of_another():
    decoder = NegativeBinomialDecoder(AutoencoderShape(6, 1, 2, blocks=(4, 2), normalised=(True, True)))
    counts = torch.tensor([[1.0, 2, 3, 4, 10, 30]])
    torch.testing.assert_close(decoder.size(counts), torch.tensor([[10.0, 40.0]]))
    log_size = decoder.size(counts).log()
    mean = decoder.decode(torch.zeros(1, 2), log_size=log_size).exp()
    torch.testing.assert_close(decoder.blocks.sums(mean), torch.tensor([[10.0, 40.0]]))


@pytest.mark.parametrize(("normalised", "scale"), [(True, 0.1), (False, 0.1 * OWN_MEAN_SCALE)])
def test_loadings_have_a_wider_prior_without_softmax(normalised, scale):
    torch.manual_seed(2)
    decoder = NegativeBinomialDecoder(AutoencoderShape(6, 1, 2, blocks=(4, 2), normalised=(True, normalised)))
    weight = decoder.loadings.weight
    expected = ((weight[:4] / 0.1) ** 2).sum() / 2 + ((weight[4:] / scale) ** 2).sum() / 2
    torch.testing.assert_close(decoder.penalty(loading_scale=0.1), expected)


@pytest.mark.parametrize("normalised", [(True, True), (True, False)])
def test_directions_are_gradients_of_log_expression_in_each_block(normalised):
    torch.manual_seed(1)
    decoder = NegativeBinomialDecoder(AutoencoderShape(7, 1, 2, blocks=(4, 3), normalised=normalised)).double()
    latent = torch.randn(2, dtype=torch.double)
    expected = torch.autograd.functional.jacobian(lambda z: decoder.decode(z[None])[0], latent)
    share = decoder.decode(latent[None])[0].exp().detach().numpy()
    np.testing.assert_allclose(decoder.directions(share), expected, rtol=1e-6, atol=1e-9)


@torch.no_grad()
def test_populations_that_are_fitted_with_larger_ones_get_the_same_decoders():
    torch.manual_seed(0)
    decoder = NegativeBinomialDecoder(AutoencoderShape(10, 2, 2, blocks=(6, 4), normalised=(True, False)))
    decoder.loadings.bias[6:] = np.log(50)
    network = CountAutoencoder.from_decoder(decoder, torch.zeros(2, 2))
    start = Adapters.from_shared(network, ("rare", "common"), [0, 1])
    rare, common = (
        PopulationCells(name, torch.poisson(torch.full((n, 10), 50.0)), torch.zeros(n, dtype=torch.long), AnnData(), ())
        for name, n in (("rare", 20), ("common", 80))
    )
    alone = fit_together(start.subset(["rare"]), network, [rare], AdapterSettings(), seed=0)
    together = fit_together(start, network, [rare, common], AdapterSettings(), seed=0).subset(["rare"])
    for name, expected in alone.parameters.items():
        torch.testing.assert_close(together.parameters[name], expected, rtol=1e-3, atol=1e-3)


# ---- forms


def test_mudata_becomes_blocks_in_a_fixed_order(parts):
    cells = from_mudata({name: parts[name] for name in ("atac", "prot", "rna")}, pd.DataFrame())
    assert [of.name for of in modalities_of(cells.var)] == ["rna", "prot", "atac"]
    assert block_sizes(cells.var) == (765, N_PROTEINS, N_PEAKS)
    assert size_names(cells.var) == ("log_library_size", "log_size_atac")
    assert cells.var_names.is_unique
    assert cells.var_names[765] == "prot:CD3"
    for of in modalities_of(cells.var):
        assert (cells.X[:, of.features] != parts[of.name].X).nnz == 0


def test_other_names_of_modalities_are_known_or_given(parts):
    known = from_mudata({"RNA": parts["rna"], "ADT": parts["prot"]}, pd.DataFrame())
    assert [of.name for of in modalities_of(known.var)] == ["RNA", "ADT"]
    given = from_mudata({"one": parts["rna"], "two": parts["atac"]}, pd.DataFrame(), modality=("two=atac", "one=rna"))
    assert size_names(given.var) == ("log_library_size", "log_size_two")


def test_a_mudata_file_is_read_as_it_was_written(file, parts):
    cells = read_cells(file)
    assert (cells.X != joined().X).nnz == 0
    assert cells.obs["bulk_labels"].equals(parts["rna"].obs["bulk_labels"])
    with h5py.File(file) as opened:
        assert list(opened["mod"].attrs["mod-order"]) == ["rna", "prot", "atac"]
        assert ad.io.read_elem(opened["mod/prot/var"]).index[0] == "CD3"


def test_the_package_mudata_reads_and_gives_the_same(file, parts):
    mudata = pytest.importorskip("mudata")
    read = mudata.read_h5mu(file)
    assert list(read.mod) == ["rna", "prot", "atac"]
    assert (read["prot"].X != parts["prot"].X).nnz == 0
    prepared = BranchedDiffusion(read, label_key="bulk_labels").prepared
    assert block_sizes(prepared.var)[1] == N_PROTEINS


def test_proteins_in_obsm_and_types_of_features_are_modalities(parts):
    cells = parts["rna"].copy()
    cells.obsm["protein_expression"] = parts["prot"].to_df()
    in_obsm = in_blocks(cells)
    assert list(in_obsm.var_names[-N_PROTEINS:]) == [f"prot:{name}" for name in parts["prot"].var_names]
    by_type = AnnData(sp.hstack([parts["atac"].X, cells.X], format="csr"))
    by_type.var["feature_types"] = ["Peaks"] * N_PEAKS + ["Gene Expression"] * cells.n_vars
    assert (in_blocks(by_type).X[:, : cells.n_vars] != cells.X).nnz == 0
    by_type.var["modality"] = by_type.var["feature_types"]
    assert (in_blocks(by_type).X[:, : cells.n_vars] != cells.X).nnz == 0
    alone = cells[:, :5].copy()
    del alone.obsm["protein_expression"]
    alone.var["feature_types"] = "Gene Expression"
    assert in_blocks(alone) is alone


def with_umis(cells: AnnData) -> AnnData:
    """The same cells with counts in the layer ``umi``, and logarithms in X."""
    return AnnData(cells.X.log1p(), obs=cells.obs, var=cells.var, layers={"umi": cells.X})


def in_forms(parts: dict[str, AnnData]) -> dict[str, object]:
    """RNA with counts in the layer ``umi`` and proteins, in each form that users have."""
    rna, prot = with_umis(parts["rna"]), parts["prot"]
    by_type = with_umis(AnnData(sp.hstack([rna.layers["umi"], prot.X], format="csr"), obs=rna.obs))
    by_type.var["feature_types"] = ["Gene Expression"] * rna.n_vars + ["Antibody Capture"] * N_PROTEINS
    in_obsm = rna.copy()
    in_obsm.obsm["protein_expression"] = prot.to_df()
    return {
        "MuData": SimpleNamespace(mod={"rna": rna, "prot": with_umis(prot)}, obs=rna.obs[[]]),
        "counts of proteins in X": SimpleNamespace(mod={"rna": rna, "prot": prot}, obs=rna.obs[[]]),
        "obsm": in_obsm,
        "features": by_type,
    }


@pytest.mark.parametrize("form", ["MuData", "counts of proteins in X", "obsm", "features"])
def test_counts_may_be_in_a_layer_of_each_modality(parts, form):
    cells, keys = in_forms(parts)[form], {"label_key": "bulk_labels"}
    with pytest.raises(InputError, match=r"counts='umi'"):
        BranchedDiffusion(cells, **keys)
    prepared = BranchedDiffusion(cells, settings=Settings(prepare=PrepareSettings(counts="umi", **keys))).prepared
    rna_and_proteins = from_mudata({name: parts[name] for name in ("rna", "prot")}, pd.DataFrame())
    expected = prepare(rna_and_proteins, PrepareSettings(**keys))
    assert (prepared.X != expected.X).nnz == 0


def test_counts_in_a_layer_of_each_modality_are_found_for_a_model(multi_model, parts):
    known = parts["rna"].obs["bulk_labels"].isin(multi_model.cell_types).to_numpy()
    mod = {name: with_umis(part[known]) for name, part in parts.items()}
    cells = SimpleNamespace(mod=mod, obs=mod["rna"].obs[[]])
    found = multi_model.get_latent_representation(cells, keys=InputKeys(counts="umi"))
    assert (found == multi_model.get_latent_representation(joined()[known])).all()


def test_cells_that_not_all_modalities_have_need_intersect(parts):
    fewer = {"rna": parts["rna"], "prot": parts["prot"][10:]}
    with pytest.raises(InputError, match=r"different cells \(rna 700, prot 690\).* 690 .*intersect"):
        from_mudata(fewer, pd.DataFrame())
    shared = from_mudata(fewer, pd.DataFrame(), intersect=True)
    assert (shared.X[:, -N_PROTEINS:] != parts["prot"].X[10:]).nnz == 0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda cells: AnnData(np.log1p(cells.X), cells.obs, cells.var), "modality prot: no raw counts"),
        (lambda cells: AnnData(cells.X @ np.diag([0, 1, 1, 1, 1, 1]), cells.obs, cells.var), "without counts, CD3"),
        (lambda cells: AnnData(cells.X, cells.obs.set_axis([f"x{i}" for i in range(700)])), "share no cells"),
        (lambda cells: AnnData(cells.X, cells.obs.set_axis(["cell"] * 700)), "modality prot: cell name cell"),
    ],
)
def test_what_cannot_be_used_is_rejected(parts, change, fault):
    with pytest.raises(InputError, match=fault):
        from_mudata({"rna": parts["rna"], "prot": change(parts["prot"])}, pd.DataFrame())


def test_peaks_are_sparse(parts):
    dense = AnnData(sp.csr_matrix(parts["atac"].X.toarray() + 1), parts["atac"].obs, parts["atac"].var)
    with pytest.raises(InputError, match="modality atac: 100% of the counts are above 0"):
        from_mudata({"rna": parts["rna"], "atac": dense}, pd.DataFrame())


def test_cells_that_lack_a_modality_of_the_model_are_rejected(multi_model, parts):
    cells = from_mudata({name: parts[name] for name in ("rna", "atac")}, pd.DataFrame())
    with pytest.raises(InputError, match="lack the modality prot, such as prot:CD3"):
        multi_model.get_latent_representation(cells)


@pytest.mark.parametrize(
    ("names", "modality", "fault"),
    [
        (("prot",), (), "no RNA among the modalities"),
        (("rna", "prot", "adt"), (), "prot and adt are both prot; choose one"),
        (("rna", "prot"), ("prot=proteins",), "not NAME=KIND; kinds are rna, prot, atac"),
        (("rna", "prot"), ("rna=rna", "other=prot"), "no modality 'other'; the file has rna, prot"),
    ],
)
def test_modalities_that_are_not_clear_are_rejected(parts, names, modality, fault):
    with pytest.raises(InputError, match=fault):
        from_mudata({name: parts.get(name, parts["prot"]) for name in names}, pd.DataFrame(), modality=modality)


def test_names_of_proteins_and_columns_may_have_slashes(parts, tmp_path):
    parts = {name: parts[name].copy() for name in ("rna", "prot")}
    parts["prot"].var_names = [f"CD8a/{number}" for number in range(N_PROTEINS)]
    parts["prot"].var["bar/code"] = "x"
    cells = from_mudata(parts, pd.DataFrame())
    prepared = prepare(cells, PrepareSettings(label_key="bulk_labels"))
    prepared.write_h5ad(tmp_path / "prepared.h5ad")
    assert set(prepared.var["bar_code"]) == {"", "x"}
    in_obsm = to_form(prepared, OBSM)
    in_obsm.write_h5ad(tmp_path / "cells.h5ad")
    assert list(read_cells(tmp_path / "cells.h5ad").var_names) == list(prepared.var_names)


# ---- preparation


def test_genes_are_chosen_among_genes_and_peaks_by_cells(parts):
    settings = PrepareSettings(label_key="bulk_labels", n_genes=100, keep_genes="none", n_peaks=20)
    prepared = prepare(joined(), settings)
    assert block_sizes(prepared.var) == (100, N_PROTEINS, 20)
    alone = prepare(parts["rna"], settings)
    assert list(prepared.var_names[:100]) == list(alone.var_names)
    assert prepared.obs["split"].equals(alone.obs["split"])
    training = prepared.obs_names[prepared.obs["split"] == "train"]
    n_cells = (parts["atac"][training].X > 0).sum(axis=0).A1
    chosen = np.isin(parts["atac"].var_names, prepared.var_names[-20:].str.removeprefix("atac:"))
    assert n_cells[chosen].min() >= n_cells[~chosen].max()


# ---- models


def test_paired_modalities_are_generated_with_their_means(multi_model, parts):
    new = generated(multi_model.model, 60)
    types = new.obs["cell_type"].astype(str).to_numpy()
    real_types = parts["rna"].obs["bulk_labels"].astype(str).to_numpy()
    chosen = [name for name in np.unique(types) if (real_types == name).sum() >= 30]
    real = [parts["prot"].X[real_types == name].mean(axis=0).A1 for name in chosen]
    found = [new.X[types == name][:, modalities_of(new.var)[1].features].mean(axis=0).A1 for name in chosen]
    assert np.corrcoef(np.log1p(real).ravel(), np.log1p(found).ravel())[0, 1] > 0.9


def generated(model: BranchedModel, request: int | dict[str, int]) -> AnnData:
    return generate_cells(model, request_cells(model, request), GenerationSettings(), seed=1)


def test_mapped_counts_have_the_other_quantiles_in_the_same_order():
    rng = np.random.default_rng(0)
    before, after = rng.negative_binomial(2, 0.1, (5000, 2)), rng.poisson((2, 300), (5000, 2))
    found = map_quantiles(before, *(quantiles(counts, rng, n_cells=5000) for counts in (before, after)), rng)
    assert (found == found.round()).all()
    assert (found >= 0).all()
    share = np.arange(0.05, 1, 0.1)
    np.testing.assert_allclose(np.quantile(found, share, axis=0), np.quantile(after, share, axis=0), atol=1, rtol=0.02)
    ends = pd.Series(found[:, 1]).groupby(before[:, 1]).agg(["min", "max"])
    assert (ends["max"].to_numpy()[:-1] <= ends["min"].to_numpy()[1:]).all()
    same = quantiles(before, rng, n_cells=5000)
    np.testing.assert_array_equal(map_quantiles(before, same, same, rng), before)


def test_levels_disclose_no_single_cell():
    counts = np.full((20, 1), 100)
    counts[0] = 10_000
    assert quantiles(counts, np.random.default_rng(0), n_cells=20).exp().max() < 200


def generated_proteins(model: BranchedModel, name: str, cells: AnnData) -> np.ndarray:
    """Proteins of generated cells of a population."""
    new = generated(model, {model.cell_type_of[name]: 600})
    of_population = (new.obs["sub_population"] == name).to_numpy()
    return new.X[of_population][:, model.autoencoder.proteins].toarray()


def predicted_proteins(model: BranchedModel, name: str, cells: AnnData) -> np.ndarray:
    """Proteins that are predicted for the cells that are probably of a population."""
    found = predict_modality(model, match_request(cells, model), find_modality(model, "prot"), n_samples=20)
    probability = found.obsm["populations"].to_numpy()[:, model.populations.index(name)]
    return found.layers["sample"][probability > 0.9]


@pytest.mark.parametrize("proteins", [generated_proteins, predicted_proteins])
def test_proteins_have_the_levels_of_training_cells(multi_model, proteins):
    """Also those whose distribution is no negative binomial, as here: each has two levels."""
    model, rng = multi_model.model, np.random.default_rng(0)
    name = model.composition.sum(axis=1).idxmax()
    real = np.where(rng.random((400, N_PROTEINS)) < 0.3, rng.poisson(20, (400, N_PROTEINS)), rng.poisson(900))
    levels = model.autoencoder.levels | {name: quantiles(real, rng, n_cells=400)}
    decoded = {name: of.quantiles for name, of in model.levels.items()}

    def distances(levels: dict) -> list[float]:
        changed = replace(model, autoencoder=replace(model.autoencoder, levels=levels))
        found = proteins(changed, name, multi_model.prepared)
        return [wasserstein_distance(*both) for both in zip(np.log1p(real).T, np.log1p(found).T, strict=True)]

    assert max(distances(levels)) < 0.3 < min(distances(decoded))


def test_peaks_have_a_log_size_of_their_own(multi_model):
    model = multi_model.model
    assert model.layout.names[-2:] == ("log_library_size", "log_size_atac")
    sizes = latent_cells(encode(multi_model.prepared, model.autoencoder)).mean[:, model.layout.library_sizes].exp()
    counts = multi_model.prepared[(multi_model.prepared.obs["split"] != "test").to_numpy()].X
    peaks = modalities_of(multi_model.prepared.var)[2].features
    np.testing.assert_allclose(sizes[:, 1], counts[:, peaks].sum(axis=1).A1, rtol=1e-4)


def test_commands_take_and_give_mudata(bdm, file, tmp_path):
    quick = (
        "--label-key",
        "bulk_labels",
        "--n-genes",
        100,
        "--keep-genes",
        "none",
        "--autoencoder-n-steps",
        5,
        "--n-latent",
        4,
    )
    model, out, again = tmp_path / "model", tmp_path / "new.h5mu", tmp_path / "new.h5ad"
    assert bdm("fit", file, model, *quick, "--n-bootstrap", 0)[0] == 0
    assert bdm("generate", model, out, "--cells", 5)[0] == 0
    assert bdm("generate", model, again, "--cells", 5, "-q") == (0, "")
    cells, same = read_cells(out), read_cells(again)
    assert (cells.X != same.X).nnz == 0
    assert list(cells.var_names) == list(same.var_names)
    assert list(cells.obs["cell_type"]) == list(same.obs["cell_type"])
    assert cells.uns["bdm"]["model_sha256"] == same.uns["bdm"]["model_sha256"]


@pytest.mark.parametrize("ending", ["h5mu", "H5MU"])
def test_a_mudata_file_needs_a_model_of_one(bdm, small_model, tmp_path, ending):
    small_model.save(tmp_path / "model")
    code, message = bdm("generate", tmp_path / "model", tmp_path / f"new.{ending}", "--cells", 5)
    assert code == 2
    assert f"bdm: {tmp_path / 'new'}.{ending}: the model was fitted to RNA alone" in message
    assert not (tmp_path / f"new.{ending}").exists()


def test_python_gives_the_form_of_the_data(multi_model, parts):
    assert multi_model.model.form == MUDATA
    pytest.importorskip("mudata")
    new = multi_model.generate(3)
    assert list(new.mod) == ["rna", "prot", "atac"]
    assert list(new["prot"].var_names) == list(parts["prot"].var_names)


def test_python_names_the_package_that_it_needs_before_it_computes(multi_model, file, parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "mudata", None)
    for compute in (
        lambda: BranchedDiffusion(file, label_key="bulk_labels"),
        lambda: multi_model.generate({"none": 3}),
        lambda: multi_model.transmute(parts["rna"], to="none"),
        lambda: multi_model.simulate({}),
    ):
        with pytest.raises(InputError, match="mudata, of the extra `multi`"):
            compute()
    alone = Settings(prepare=PrepareSettings(modality="rna=rna"))
    assert BranchedDiffusion(file, label_key="bulk_labels", settings=alone).prepared.n_obs > 600


# ---- a missing modality


@pytest.fixture(scope="module")
def predicted(multi_model):
    test = joined()[multi_model.prepared.obs_names[(multi_model.prepared.obs["split"] == "test").to_numpy()]]
    rna = of_modality(test, modalities_of(test.var)[0])
    del rna.obs["bulk_labels"]
    return multi_model.predict_modality(rna, "prot", n_samples=100, seed=1), test


def test_proteins_are_predicted_by_rna_as_distributions(predicted):
    found, test = predicted
    real = test.X[:, modalities_of(test.var)[1].features].toarray()
    assert list(found.var_names) == list(with_modalities(pbmc68k_counts())["prot"].var_names)
    typical = np.sqrt(((np.log1p(real) - np.log1p(real).mean(axis=0)) ** 2).mean())
    assert np.sqrt(((np.log1p(real) - found.layers["log1p"]) ** 2).mean()) < 0.8 * typical
    inside = (found.layers["lower"] <= real) & (real <= found.layers["upper"])
    assert 0.8 < inside.mean() < 0.98
    np.testing.assert_allclose(found.obsm["populations"].sum(axis=1), 1, rtol=1e-5)


def test_labels_narrow_what_is_predicted(multi_model, predicted):
    found, test = predicted
    keys = InputKeys(label_key="bulk_labels")
    labelled = multi_model.predict_modality(test, "prot", keys=keys, n_samples=100, seed=1)
    of_type = multi_model.model.cell_type_of
    others = np.array([[of_type[name] != cell_type for name in of_type] for cell_type in test.obs["bulk_labels"]])
    assert labelled.obsm["populations"].to_numpy()[others].max() == 0
    assert found.obsm["populations"].to_numpy()[others].max() > 0


def test_the_command_predicts_as_python_does(bdm, multi_model, predicted, tmp_path):
    multi_model.save(tmp_path / "model")
    rna = of_modality(predicted[1], modalities_of(predicted[1].var)[0])
    del rna.obs["bulk_labels"]
    rna.write_h5ad(tmp_path / "rna.h5ad")
    files = (tmp_path / "model", tmp_path / "rna.h5ad", tmp_path / "prot.h5ad")
    arguments = ("predict-modality", *files, "--n-samples", 100)
    assert bdm(*arguments, "--seed", 1)[0] == 0
    check_r_reads(tmp_path / "prot.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "prot.h5ad").X, predicted[0].X)
    code, message = bdm(*arguments, "--modality", "lipids", "--force")
    assert code == 2
    assert "no modality 'lipids' beside RNA; it has prot, atac" in message


def over_time(n: int, *, seed: int) -> AnnData:
    """Cells of few RNA counts with four proteins: log means of two rise by 4 with time, those of the others fall."""
    rng = np.random.default_rng(seed)
    time = rng.random(n)
    slope = np.array([4, 4, -4, -4])
    genes = np.exp(np.outer(time - 0.5, np.repeat([1, -1], 10)))
    parts = {
        "rna": rng.poisson(20 * genes / genes.sum(axis=1, keepdims=True)) + (np.arange(20) == 0),
        "prot": rng.poisson(50 * np.exp(np.outer(time - 0.5, slope))),
    }
    obs = pd.DataFrame({"time": time}, index=[f"cell-{seed}-{i}" for i in range(n)])
    return from_mudata({name: AnnData(sp.csr_matrix(X.astype(np.float32)), obs[[]]) for name, X in parts.items()}, obs)


def test_proteins_are_predicted_at_the_values_of_covariates(tiny_settings):
    autoencoder = replace(tiny_settings.autoencoder, n_latent=2, n_steps=40)
    settings = replace(tiny_settings, prepare=PrepareSettings(genes="all"), autoencoder=autoencoder)
    cells = over_time(200, seed=0)
    model = BranchedDiffusion(cells, label_key=None, covariate_key="time", settings=settings).fit()
    cells = over_time(100, seed=1)
    rna = of_modality(cells, modalities_of(cells.var)[0])
    predicted = model.predict_modality(rna, "prot", n_samples=100)
    expected = np.outer(cells.obs["time"] - 0.5, [4, 4, -4, -4])
    error = np.log(predicted.X / 50) - expected
    assert np.sqrt((error**2).mean()) < 0.4
    del rna.obs["time"]
    with pytest.raises(InputError, match=r"no column 'time', .*covariate"):
        model.predict_modality(rna, "prot")


def test_an_interval_needs_samples(multi_model):
    cells = joined()
    rna = of_modality(cells, modalities_of(cells.var)[0])
    del rna.obs["bulk_labels"]
    with pytest.raises(InputError, match="n_samples is 0, but must be at least 20"):
        multi_model.predict_modality(rna, "prot", n_samples=0)


def test_a_model_of_rna_has_nothing_to_predict(small_model, example_cells):
    with pytest.raises(InputError, match="fitted to RNA alone"):
        small_model.predict_modality(example_cells)


# ---- evaluation


def test_each_modality_and_all_together_are_evaluated(multi_model, tmp_path):
    evaluation = multi_model.evaluate(n_repeats=1)
    table = evaluation.scores_of("modality").set_index("score")
    assert set(table.loc["forest_auc", "group"]) == {"rna", "prot", "atac", "all"}
    assert (
        {"prot", "atac"} == set(table.loc["feature_correlation", "group"]) == set(table.loc["feature_slope", "group"])
    )
    assert table[["value", "floor"]].notna().all(axis=None)
    assert len(evaluation.gene_statistics["gene"].unique()) == 200  # all else is of RNA
    evaluation.save(tmp_path / "evaluation")
    assert type(evaluation).load(tmp_path / "evaluation").scores.equals(evaluation.scores)


def test_shuffled_proteins_are_found_by_their_correlations_and_lie_elsewhere_in_the_umap(multi_model):
    cells = multi_model.prepared
    proteins = modalities_of(cells.var)[1]
    whole = Cells.from_anndata(cells)
    query, test = whole[np.arange(0, len(whole), 2)], whole[np.arange(1, len(whole), 2)]
    other = query.counts.toarray()
    other[:, proteins.features] = np.random.default_rng(0).permutation(other[:, proteins.features])
    shuffled = replace(query, counts=sp.csr_matrix(other))
    as_it_is, changed = (score_pair(of, test, modalities_of(cells.var), cells.var, seed=0) for of in (query, shuffled))
    assert as_it_is["prot"]["feature_correlation"] > 0.8
    assert changed["prot"]["feature_correlation"] < 0.3
    assert changed["prot"]["forest_auc"] < as_it_is["prot"]["forest_auc"] + 0.1
    embedded = [joint_umap({"test": of[:40]}, cells.var, seed=0)[COORDINATES] for of in (query, shuffled)]
    assert not np.allclose(*embedded)


# ---- normalisation, and steps that compare features


def test_counts_are_shares_of_their_modality_but_of_proteins():
    counts = np.array([[1, 3, 5, 2, 0, 2], [2, 2, 7, 0, 1, 0]], dtype=np.float32)
    kinds = ["Gene Expression"] * 2 + ["Antibody Capture"] + ["Peaks"] * 3
    cells = AnnData(sp.csr_matrix(counts), pd.DataFrame({"cell_type": "a"}, index=["x", "y"]))
    cells.var["feature_types"] = kinds
    expected = [[2500, 7500, 5, 5000, 0, 5000], [5000, 5000, 7, 0, 10000, 0]]
    np.testing.assert_allclose(Cells.from_anndata(cells).cp10k.toarray(), expected)
    seen = counts[:1]  # no size is 0, as the model's sizes are
    np.testing.assert_allclose(seen * per_10k(seen, modalities_of(cells.var)), expected[:1])


@pytest.fixture(scope="module")
def interpretation(multi_model):
    multi_model.interpret(n_genes=3)
    return multi_model.interpretation


@pytest.mark.slow
def test_branches_have_the_best_features_of_each_modality(interpretation, tmp_path):
    write_result(tmp_path, interpretation)
    table = pd.read_csv(tmp_path / "branch_genes.csv")
    best = table[table["model_rank"] <= 3].groupby(["child", "modality"]).size().unstack("modality")
    assert (best == 3).all(axis=None)
    assert list(best.columns) == ["atac", "prot", "rna"]
    assert table["gene"].str.startswith("prot:").equals(table["modality"] == "prot")
    assert set(pd.read_csv(tmp_path / "markers.csv")["modality"]) == {"rna", "prot", "atac"}
    assert {"branch_genes.png", "agreement.png"} <= {path.name for path in tmp_path.iterdir()}


def test_proteins_of_branches_agree_with_test_cells(interpretation):
    table = interpretation.agreement.set_index("modality")
    assert table.groupby("node").size().eq(3).all()
    assert table.loc["prot", "pearson"].mean() > 0.8  # types were given levels that differ
    assert interpretation.agreement["n_test"].gt(0).all()


def test_p_values_are_adjusted_among_the_features_of_a_modality():
    score, p_value = np.array([1.0, 3.0, 2.0, 9.0]), np.array([0.01, 0.5, 0.02, 1])
    both = Differences(Log2FoldChange(np.zeros(4), np.zeros(4)), score, p_value, (2, 2))
    assert both.rank.tolist() == [2, 1, 2, 1]
    np.testing.assert_allclose(both.p_adjusted, [0.02, 0.5, 0.04, 1])


def test_a_new_type_has_all_modalities(multi_model, parts):
    chosen = (parts["rna"].obs["bulk_labels"] == "CD19+ B").to_numpy()
    cells = joined()
    cells.obs["bulk_labels"] = np.where(chosen, "new", cells.obs["bulk_labels"].astype(str))
    cells.var.index = cells.var.index.str.replace("prot:", "ADT:")
    cells.var["modality"] = cells.var["modality"].cat.rename_categories({"prot": "ADT"})  # whatever its name
    model = copy(multi_model)
    model.interpretation = None
    new = generated(model.extend(cells).model, {"new": 200})
    both = (joined()[chosen, new.var_names], new)
    for modality in modalities_of(new.var):
        real, found = (of.X[:, modality.features].mean(axis=0).A1 for of in both)
        assert np.corrcoef(np.log1p(real), np.log1p(found))[0, 1] > 0.9
    proteins = modalities_of(new.var)[1].features
    spread = [np.log1p(of.X[:, proteins].toarray()).std(axis=0) for of in both]
    assert np.abs(spread[0] - spread[1]).max() < 0.15  # by the levels of its cells


PLANTED = {
    "samples": {"donors": 2, "conditions": ["control", "stimulated"], "cells": {"CD19+ B": 400}},
    "changes": [
        {"name": "protein", "condition": "stimulated", "genes": ["prot:CD3"], "log2_fold_change": 2},
        {"name": "peaks", "condition": "stimulated", "genes": {"n": 30, "modality": "atac"}, "log2_fold_change": 1},
    ],
}


def test_changes_of_proteins_and_peaks_are_planted_and_known(multi_model):
    cells = simulate_cells(multi_model.model, read_design(PLANTED | {"ambient": {"share": 0.01}}))
    truth = cells.uns["truth"]["genes"].query("cell_type == 'CD19+ B'").set_index("change")
    protein, peaks = truth.loc["protein"], truth.loc["peaks"]
    assert protein["normalised_log2_fold_change"] == protein["log2_fold_change"] == 2
    assert peaks["gene"].str.startswith("atac:").all()
    assert (peaks["normalised_log2_fold_change"] < 0.9).all()  # as fragments of the cells rise
    changed = (cells.obs["condition"] == "stimulated").to_numpy()
    for genes, size in ((["prot:CD3"], 2), (list(peaks["gene"]), 1)):
        means = [cells[rows][:, genes].X.mean() for rows in (changed, ~changed)]
        assert np.log2(means[0] / means[1]) == pytest.approx(size, abs=0.15)
    for modality in modalities_of(cells.var):
        np.testing.assert_allclose(cells.varm["ambient"].iloc[modality.features].sum(), 1)


def test_expected_proteins_are_the_means_of_their_counts(multi_model):
    """Also where training cells have other means than the decoder expects, and after a change."""
    autoencoder = multi_model.model.autoencoder
    levels = {name: of + 1 for name, of in autoencoder.levels.items()}
    model = replace(multi_model.model, autoencoder=replace(autoencoder, levels=levels))
    model = replace(model, levels=measure_protein_levels(model, levels, seed=0))
    cells = simulate_cells(model, read_design(PLANTED | {"expected": True}))
    at, changed = modalities_of(cells.var)[1].features, (cells.obs["condition"] == "stimulated").to_numpy()
    for rows in (changed, ~changed):
        counts, expected = (of[rows][:, at].mean(axis=0) for of in (cells.X, cells.layers["expected"]))
        difference = np.log2(np.ravel(counts) / np.ravel(expected))
        assert np.median(np.abs(difference)) < 0.1
        assert difference[0] == pytest.approx(0, abs=0.2)  # CD3, which is changed


def test_power_is_of_rna(multi_model):
    with pytest.raises(InputError, match="no gene of RNA changes"):
        multi_model.power(PLANTED)
    genes = {"name": "genes", "condition": "stimulated", "genes": {"n": 5}, "log2_fold_change": 1}
    design = PLANTED | {"changes": [*PLANTED["changes"], genes], "power": {"n_repeats": 1, "methods": ["t_test"]}}
    assert multi_model.power(design).repeats.query("cell_type == 'CD19+ B'")["n_planted"].tolist() == [5]
    with pytest.raises(InputError, match=r"no modality 'lipids'; it has rna, prot, atac"):
        multi_model.simulate(PLANTED | {"changes": [genes | {"genes": {"n": 5, "modality": "lipids"}}]})


def test_transmuted_cells_are_evaluated_by_modality(multi_model):
    cells, model = joined(), multi_model.model
    sources = select_sources(cells[(cells.obs["bulk_labels"] == "CD19+ B").to_numpy()], model, "Dendritic")
    found = transmuted_cells(model, sources, seed=0).in_memory()
    assert block_sizes(found.var) == block_sizes(multi_model.prepared.var)
    evaluation = multi_model.evaluate_transmuted(cells, found)
    table = wide(evaluation.scores[evaluation.scores["score"] == "energy"], "group")
    assert list(table.index) == ["CD19+ B", "CD19+ B, prot", "CD19+ B, atac"]
    assert (table["transmuted"] < table["unchanged"])[:2].all()
    assert evaluation.original_types == ["CD19+ B"]


def test_donors_differ_in_proteins(multi_model):
    cells = multi_model.prepared.copy()
    cells.obs["donor"] = pd.Categorical(np.arange(cells.n_obs) % 8).rename_categories("d{}".format)
    settings = json.loads(cells.uns["bdm"]["settings"])
    cells.uns["bdm"] = cells.uns["bdm"] | {"settings": json.dumps(settings | {"donor_key": "donor"})}
    protein = modalities_of(cells.var)[1].features.start
    factor = np.exp(np.random.default_rng(0).normal(0, 0.8, 8))[cells.obs["donor"].cat.codes]
    counts = cells.X.toarray()
    counts[:, protein] = np.random.default_rng(1).poisson(counts[:, protein] * factor)
    cells.X = sp.csr_matrix(counts)
    autoencoder = multi_model.model.autoencoder
    effects = fit_donors(cells, encode(cells, autoencoder), autoencoder)
    sd = effects.sd.median(dim=0).values
    assert sd.shape == (cells.n_vars + 2,)  # library sizes of RNA and peaks
    assert effects.latent_covariance.shape[1:] == (len(multi_model.model.layout.names),) * 2
    assert sd[protein] > 2 * np.delete(sd.numpy(), protein).max()


def test_models_with_donors_and_covariates_have_all_modalities(tiny_settings):
    cells = joined()
    cells.obs["donor"] = np.array([f"d{number % 3}" for number in range(cells.n_obs)])
    cells.obs["time"] = np.linspace(0, 1, cells.n_obs)
    keys = {"label_key": "bulk_labels", "donor_key": "donor", "covariate_key": "time"}
    model = BranchedDiffusion(cells, settings=tiny_settings, **keys).fit()
    new = generated(model.model, {"CD19+ B": 5})
    assert block_sizes(new.var)[1:] == (N_PROTEINS, N_PEAKS)
    assert new.obs["time"].between(0, 1).all()
    experiment = simulate_cells(model.model, read_design({"samples": {"donors": 2, "cells": 20}}))
    assert experiment.obs["donor"].nunique() == 2


def test_cells_of_all_modalities_are_audited(tiny_settings):
    model = BranchedDiffusion(joined(), label_key="bulk_labels", settings=tiny_settings)
    audit = model.audit(AuditSettings(n_folds=1, cells_only=True))
    assert audit.record["n_cells"] == model.prepared.n_obs
    assert set(audit.scores["fold"]) == {1}


# ---- steps that know RNA alone


def in_two_conditions(cells: AnnData) -> AnnData:
    """Cells in two conditions and at three times, by turns."""
    cells.obs["condition"] = np.tile(["ctrl", "stim"], cells.n_obs)[: cells.n_obs]
    cells.obs["time"] = np.tile([0.0, 1.0, 2.0], cells.n_obs)[: cells.n_obs]
    return cells


def with_raw(cells: AnnData) -> AnnData:
    """Cells whose counts are in ``raw``, with proteins and peaks first."""
    order = np.roll(np.arange(cells.n_vars), N_PROTEINS + N_PEAKS)
    counts = AnnData(cells.X[:, order], cells.obs, cells.var.iloc[order])
    logs = AnnData(counts.X.log1p(), cells.obs, counts.var)
    logs.raw = counts
    return logs


def respond_and_predict(cells: AnnData) -> list[AnnData]:
    responses = tl.respond(cells, tl.ResponseSettings(label_key="bulk_labels"))
    return [tl.predict(responses, cells, "stim")]


def trace_and_reconstruct(cells: AnnData) -> list[AnnData]:
    tree = f"({','.join(repr(name) for name in cells.obs['bulk_labels'].unique())})stem;"
    lineage = tl.lineage(cells, tl.LineageSettings(time_key="time", label_key="bulk_labels"), tree=tree)
    return [tl.reconstruct(lineage, cells, "CD19+ B", at=1.0, n_cells=20)]


@pytest.mark.parametrize("form", [lambda cells: cells, with_raw], ids=["blocks", "raw"])
@pytest.mark.parametrize("step", [respond_and_predict, trace_and_reconstruct])
def test_responses_and_lineages_are_of_rna_alone(parts, step, form, caplog):
    cells = in_two_conditions(joined())
    rna = of_modality(cells, modalities_of(cells.var)[0])
    with caplog.at_level("INFO"):
        found = step(form(cells))
    assert "RNA is used alone; proteins and peaks are left out." in caplog.messages
    for ours, alone in zip(found, step(rna), strict=True):
        assert list(ours.var_names) == list(parts["rna"].var_names)
        assert (ours.X != alone.X).nnz == 0
