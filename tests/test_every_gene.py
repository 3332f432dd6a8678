"""Genes that are not highly variable: their decoder, generated cells, scores, and all that a model does with them."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import bdm
from bdm._core.errors import InputError
from bdm.applications.extension.extend import ExtendSettings, add_type
from bdm.applications.extension.new_cells import select_new_cells
from bdm.autoencoder.decoder import AutoencoderShape, NegativeBinomialDecoder
from bdm.autoencoder.fit_autoencoder import fit_autoencoder
from bdm.autoencoder.latent import SampledCells
from bdm.autoencoder.other_genes import fit_decoder
from bdm.data.modalities import HIGHLY_VARIABLE, blocks_of, parts_of_rna
from bdm.data.prepare import prepare
from bdm.model.match import cells_for, counts_of_genes, known_cells
from bdm.settings import AutoencoderSettings

NK, B, MONOCYTE = "CD56+ NK", "CD19+ B", "CD14+ Monocyte"


def settings_of(small_settings, **changes):
    return replace(small_settings, prepare=replace(small_settings.prepare, keep_genes="all", **changes))


@pytest.fixture(scope="module")
def settings(small_settings):
    return settings_of(small_settings, n_genes=150, test=0.3)


@pytest.fixture(scope="module")
def fitted(example_cells, settings) -> bdm.BranchedDiffusion:
    cells = example_cells.copy()
    cells.obs["sample"] = np.where(np.arange(cells.n_obs) % 2, "one", "two")
    return bdm.BranchedDiffusion(cells, "bulk_labels", batch_key="sample", settings=settings).fit()


@pytest.fixture(scope="module")
def generated(fitted) -> AnnData:
    return fitted.generate(150, seed=1)


def others(cells: AnnData) -> AnnData:
    return cells[:, ~cells.var[HIGHLY_VARIABLE].to_numpy()]


def shares(cells: AnnData) -> np.ndarray:
    total = np.asarray(cells.X.sum(axis=0)).ravel()
    return total / total.sum()


# ---- decoder


def test_cells_without_counts_of_other_genes_have_finite_log_means():
    shape = AutoencoderShape(6, 1, 2, blocks=(3, 3), normalised=(True, True), encoded=(True, False))
    decoder, counts = NegativeBinomialDecoder(shape), torch.tensor([[1.0, 2, 3, 4, 5, 6], [1, 2, 3, 0, 0, 0]])
    assert decoder.decode(torch.zeros(2, 2), log_size=decoder.size(counts).log()).isfinite().all()


def test_regressions_find_loadings_batches_and_noise():
    rng, n_genes, n_cells = np.random.default_rng(0), 80, 1500
    decoder = NegativeBinomialDecoder(AutoencoderShape(n_genes, 2, 3, n_batches=2))
    with torch.no_grad():
        decoder.loadings.weight.copy_(torch.from_numpy(rng.normal(0, 0.3, (n_genes, 3))))
        decoder.loadings.bias.copy_(torch.from_numpy(rng.normal(0, 0.7, n_genes)))
        decoder.batch_offset.copy_(torch.from_numpy(rng.normal(0, 0.3, (2, n_genes))))
        latent, batch = torch.randn(n_cells, 3, generator=torch.Generator().manual_seed(0)), torch.arange(n_cells) % 2
        mean = decoder.decode(latent, batch, log_size=torch.full((n_cells, 1), 400.0).log()).exp().numpy()
        counts = sparse.csr_matrix(decoder.observation(torch.zeros(n_cells, dtype=torch.long)).sample(mean, rng))
    halves = [slice(0, 500), slice(500, None)]  # populations
    cells = [SampledCells(counts[rows], latent[rows], batch[rows]) for rows in halves]
    found = fit_decoder(cells, decoder)
    loadings = [each.loadings.weight.detach().numpy() for each in (decoder, found)]
    batches = [np.diff(each.batch_offset.detach().numpy(), axis=0) for each in (decoder, found)]
    for truth, values in (loadings, batches):
        assert np.corrcoef(truth.ravel(), values.ravel())[0, 1] > 0.95
    noise = found.noise(torch.tensor([0]))["log_inverse_dispersion"]
    assert noise.median() == pytest.approx(0, abs=0.3)


def test_latents_and_populations_do_not_depend_on_other_genes(example_cells, small_settings):
    quick, fitted = AutoencoderSettings(n_latent=4, n_steps=20), []
    for keep_genes in ("none", "all"):
        prepared = prepare(
            example_cells, replace(small_settings.prepare, label_key="bulk_labels", keep_genes=keep_genes)
        )
        fitted.append((prepared, fit_autoencoder(prepared, quick, seed=0, provenance={})[0]))
    (few, without), (every, with_others) = fitted
    assert every.n_vars > few.n_vars == 200
    assert without.network_types == with_others.network_types
    assert list(without.adapters) == list(with_others.adapters)
    for name, value in without.network.decoder.state_dict().items():
        assert torch.equal(value, with_others.network.decoder.encoded_part().state_dict()[name])
    counts = [torch.from_numpy(cells.X[:40].toarray()) for cells in (few, every)]
    code = torch.zeros(40, dtype=torch.long)
    latents = [each.network.encode(x, code, code).mean for x, each in zip(counts, (without, with_others), strict=True)]
    assert torch.equal(*latents)


# ---- cells


def test_generated_cells_have_every_gene(generated, fitted, example_cells):
    assert set(generated.var_names) == set(fitted.prepared.var_names)
    assert generated.n_vars > 700
    real, made = (
        cells[cells.obs[column].isin([B, MONOCYTE])]
        for cells, column in ((example_cells, "bulk_labels"), (generated, "cell_type"))
    )
    for name in (B, MONOCYTE):
        of_type = others(made[made.obs["cell_type"] == name])
        of_real = real[real.obs["bulk_labels"] == name, of_type.var_names]
        assert np.corrcoef(np.sqrt(shares(of_type)), np.sqrt(shares(of_real)))[0, 1] > 0.98
        sizes = [np.log(np.asarray(cells.X.sum(axis=1)).ravel()) for cells in (of_type, of_real)]
        assert sizes[0].mean() == pytest.approx(sizes[1].mean(), abs=0.1)
        assert sizes[0].std() == pytest.approx(sizes[1].std(), rel=0.5)


def test_other_genes_differ_between_types_as_in_real_cells(generated, example_cells):
    genes = others(generated).var_names
    real = example_cells[:, genes]
    changes = [
        np.log2(shares(cells[labels == B]) + 1e-4) - np.log2(shares(cells[labels == MONOCYTE]) + 1e-4)
        for cells, labels in ((real, real.obs["bulk_labels"]), (generated[:, genes], generated.obs["cell_type"]))
    ]
    expressed = np.asarray(real.X.mean(axis=0)).ravel() > 0.3
    assert np.corrcoef(*(change[expressed] for change in changes))[0, 1] > 0.85


def test_the_saved_model_generates_the_same_cells(fitted, generated, tmp_path):
    fitted.save(tmp_path / "model")
    again = bdm.BranchedDiffusion.load(tmp_path / "model").generate(150, seed=1)
    assert (again.X != generated.X).nnz == 0
    assert list(again.var_names) == list(generated.var_names)


def test_transmuted_designed_and_interpreted_cells_have_every_gene(fitted, example_cells):
    cells = example_cells[example_cells.obs["bulk_labels"] == B].copy()
    cells.obs["sample"] = "one"
    assert fitted.transmute(cells, to=NK).n_vars == fitted.prepared.n_vars
    assert fitted.simulate({"samples": {"donors": 2, "cells": 20}}).n_vars == fitted.prepared.n_vars
    assert fitted.interpret().n_vars == fitted.prepared.n_vars


# ---- scores


def test_scores_are_of_highly_variable_genes_with_rows_of_the_others(fitted, generated):
    test = fitted.prepared[fitted.prepared.obs["split"] == "test"]
    numbers = test.obs["cell_type"].value_counts()
    cells = fitted.generate(numbers[numbers > 0].to_dict(), seed=2)
    mixed, rng = cells.copy(), np.random.default_rng(0)
    x, other = cells.X.toarray(), ~cells.var[HIGHLY_VARIABLE].to_numpy()
    x[:, other] = x[rng.permutation(len(x))][:, other]  # of other types
    mixed.X = sparse.csr_matrix(x)
    evaluation = fitted.evaluate(cells, compare={"mixed": mixed}, n_repeats=1)
    rows = evaluation.scores_of("other_genes").set_index(["set", "score"])
    changes = rows["value"].xs("fold_change_correlation", level="score")
    assert changes["mixed"] < 0.1 < changes["generated"]
    assert "(other genes)" in str(evaluation.verdict("mixed").text)
    assert set(evaluation.gene_statistics["gene"]) == set(cells.var_names[~other])
    scores = evaluation.overall
    assert scores.loc["forest_auc", "mixed"] == pytest.approx(scores.loc["forest_auc", "generated"], abs=0.02)


# ---- cells that lack genes


def test_cells_may_lack_a_few_other_genes_and_no_highly_variable_one(fitted, example_cells, caplog):
    genes = fitted.model.autoencoder.genes
    variable, other = genes.index[genes[HIGHLY_VARIABLE]], genes.index[~genes[HIGHLY_VARIABLE]]
    lacking = example_cells[:, ~example_cells.var_names.isin(other[:5])]
    with caplog.at_level(logging.WARNING):
        matched = counts_of_genes(lacking, genes)
    assert "not expressed: 5 genes" in caplog.text
    assert list(matched.var_names) == list(genes.index)
    assert not matched[:, other[:5]].X.nnz
    with pytest.raises(InputError, match=f"lack 1 of the model's .*{variable[3]}.* needs all that are highly variable"):
        counts_of_genes(example_cells[:, example_cells.var_names != variable[3]], genes)
    with pytest.raises(InputError, match="and 90% of the others"):
        counts_of_genes(example_cells[:, ~example_cells.var_names.isin(other[::2])], genes)


# ---- extension, modalities, donors


def test_added_types_have_every_gene(example_cells, settings):
    cells = example_cells[example_cells.obs["bulk_labels"] != NK].copy()
    base = bdm.BranchedDiffusion(cells, "bulk_labels", settings=settings).fit().model
    [new] = select_new_cells(example_cells, base, cell_types=(NK,), seed=0).by_type.values()
    added = add_type(base, new, NK, ExtendSettings(n_bootstrap=3), seed=0, provenance={})
    model = bdm.BranchedDiffusion.__new__(bdm.BranchedDiffusion)
    model.fitted, model.n_threads = added.model, None
    made = model.generate({NK: 300, MONOCYTE: 300}, seed=0)
    real = example_cells[example_cells.obs["bulk_labels"] == NK, others(made).var_names]
    distances = [
        np.linalg.norm(np.sqrt(shares(others(made[made.obs["cell_type"] == name]))) - np.sqrt(shares(real)))
        for name in (NK, MONOCYTE)
    ]
    assert distances[0] < 0.5 * distances[1]


def test_proteins_and_donors_beside_other_genes(example_cells, settings):
    rng, cells = np.random.default_rng(0), example_cells.copy()
    types = pd.factorize(cells.obs["bulk_labels"])[0]
    cells.obsm["protein_expression"] = pd.DataFrame(
        rng.poisson(20 + 15 * (types[:, None] % np.arange(2, 6))), cells.obs_names, ["P1", "P2", "P3", "P4"]
    )
    cells.obs["person"] = rng.choice(["a", "b", "c", "d"], cells.n_obs)
    fitted = bdm.BranchedDiffusion(cells, "bulk_labels", donor_key="person", settings=settings).fit()
    genes = fitted.model.autoencoder.genes
    assert [block.encoded for block in blocks_of(genes)] == [True, False, True]
    variable, other = parts_of_rna(genes)
    assert (variable.n_features, other.n_features + variable.n_features + 4) == (150, len(genes))
    made = fitted.generate({B: 200}, seed=0)
    assert made.n_vars == len(genes) - 4
    real = cells[cells.obs["bulk_labels"] == B]
    np.testing.assert_allclose(made.obsm["protein_expression"].mean(), real.obsm["protein_expression"].mean(), rtol=0.2)
    predicted = fitted.predict_modality(real, "prot")
    assert predicted.shape == (real.n_obs, 4)
    assert fitted.donors is not None
    for name in ("person", "donor"):
        renamed = real.copy()
        renamed.obs = renamed.obs.rename(columns={"person": name})
        assert set(known_cells(cells_for(renamed, fitted.model), fitted.model).donor) == {"a", "b", "c", "d"}
    assert fitted.simulate({"samples": {"donors": 2, "cells": 10}}).n_obs > 0
