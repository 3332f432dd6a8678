"""Model cards: in the folder of each model, with valid metadata, and without effect on the model."""

import re
from dataclasses import asdict, replace

import anndata
import numpy as np
import pytest
import yaml

from bdm import tl
from bdm._core.errors import InputError
from bdm._core.files import sha256
from bdm._core.store import checksum_of
from bdm.api import BranchedDiffusion
from bdm.applications.audit.audit import check_settings
from bdm.cli import app, main
from bdm.evaluation.table import SCORES
from bdm.generation.generate import GeneratedFile
from bdm.model.model import load_model, record_of_cells
from bdm.report.card import CARD, metadata, model_card, table
from bdm.settings import GenerationSettings, PrepareSettings, ResponseSettings


def front_matter(card: str) -> dict:
    """Metadata of a card, as Hugging Face reads them."""
    before, text, _ = card.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def saved(batch_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "model"
    batch_model.save(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved):
    """Model and checksum, as functions of the card take them."""
    return load_model(saved), checksum_of(saved, "model")


@pytest.fixture(scope="module")
def evaluation(batch_model, example_cells):
    held_out = example_cells[~example_cells.obs["bulk_labels"].str.contains("Naive T")].copy()
    held_out.X.data[::2] += 1  # so that they are none of the cells that the model is fitted on
    held_out.obs["donor"] = "one"
    return batch_model.evaluate(adata_test=held_out, n_repeats=1)


def test_saved_model_has_its_card(saved, loaded, batch_model):
    card, (model, checksum) = (saved / CARD).read_text(), loaded
    assert card == model_card(model, checksum=checksum)
    assert checksum in card
    for cell_type, n_cells in batch_model.model.composition_of_types.sum(axis=1).items():
        assert table(("a",), [(cell_type, f"{n_cells:,}")]).splitlines()[-1][:-2] in card
    assert "| column of cell types | `bulk_labels` |" in card
    assert "| batches | 2, in the column `donor` |" in card
    assert "| `prepare.n_genes` | 200 |" in card
    assert "The privacy of the donors has not been audited" in card
    _, _, text = card.split("---\n", 2)
    assert text.split("\n\n")[1].startswith(
        "**Not anonymous: treat this model and its cells like the\noriginal cells.**"
    )
    assert "### Donors" not in card


def test_loading_ignores_the_card(batch_model, tmp_path):
    batch_model.save(tmp_path / "model")
    before = checksum_of(tmp_path / "model", "model")
    (tmp_path / "model" / CARD).write_text("My own words.")
    assert checksum_of(tmp_path / "model", "model") == before
    (tmp_path / "model" / CARD).unlink()
    assert load_model(tmp_path / "model").cell_types == batch_model.model.cell_types


def test_extended_model_names_its_additions(small_model, example_cells, tmp_path):
    few = example_cells[example_cells.obs["bulk_labels"] == "CD34+"].copy()
    few.obs["bulk_labels"] = "new type"
    small_model.save(tmp_path / "model")
    model = BranchedDiffusion.load(tmp_path / "model", device="cpu")
    model.extend(few).save(tmp_path / "extended")
    card = (tmp_path / "extended" / CARD).read_text()
    assert "| added by extensions | 1 (new type) |" in card
    assert f"| new type | {model.model.extensions[0].n_cells:,} |" in card
    assert checksum_of(tmp_path / "extended", "model") in card


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        (None, {}),
        ("cc-by-4.0", {"license": "cc-by-4.0"}),
        ("CC-BY-4.0 ", {"license": "cc-by-4.0"}),
        ("dbGaP, general: research", {"license": "other", "license_name": "dbgap-general-research"}),
        ("https://example.org/terms", {"license": "other", "license_link": "https://example.org/terms"}),
        ('"quoted"\n---\n: [', {"license": "other", "license_name": "quoted", "license_link": "LICENSE"}),
    ],
)
def test_metadata_are_valid(batch_model, license, expected):
    found = front_matter(batch_model.card(license=license))
    assert found == metadata(license)
    assert {key: found.get(key) for key in expected} == expected
    assert ("license" in found) == bool(expected)
    assert set(found) <= {"library_name", "license", "license_name", "license_link", "tags"}


def prepared_with(model, **settings: str):
    """Model of cells that were prepared with these settings."""
    record = model.autoencoder.provenance | {"prepare": model.autoencoder.provenance["prepare"] | settings}
    return replace(model, autoencoder=replace(model.autoencoder, provenance=record))


def test_license_of_the_data_reaches_the_card_and_the_cells(batch_model):
    model = prepared_with(batch_model.model, license=PrepareSettings(license="cc0-1.0").license)
    card = model_card(model)
    assert front_matter(card)["license"] == record_of_cells(model, seed=0)["license"] == "cc0-1.0"
    assert "| license | cc0-1.0 |" in card
    assert "was not given" in batch_model.card()


def test_names_are_no_markup(batch_model):
    card = model_card(prepared_with(batch_model.model, label_key="a|b`c", license="<b> | *x*"))
    assert r"| column of cell types | `a\|b'c` |" in card
    assert r"| license | \<b\> \| \*x\* |" in card


def test_scores_have_the_floor_beside_them(batch_model, evaluation):
    card = batch_model.card(evaluation)
    scores, floor = evaluation.overall["generated"], evaluation.overall["floor"]
    for name, ideal in {"forest_auc": "0.5", "f1": "1"}.items():
        assert f"| {SCORES[name].name} | {scores[name]:.3f} | {floor[name]:.3f} | {ideal} |" in card
    assert evaluation.verdict().text in card
    assert "| score | generated | floor | perfect |" in card
    assert "does not record which model" in card


def test_evaluation_of_another_model_or_without_generated_cells_is_rejected(batch_model, evaluation):
    of_other = replace(evaluation, provenance=evaluation.provenance | {"sha256": {"model": "f" * 64}})
    with pytest.raises(InputError, match="of another model"):
        model_card(batch_model.model, checksum="0" * 64, evaluation=of_other)
    assert "does not record" not in model_card(batch_model.model, checksum="f" * 64, evaluation=of_other)
    with pytest.raises(InputError, match="no generated cells"):
        batch_model.card(replace(evaluation, n_compared=evaluation.n_compared.drop(columns="generated")))


def test_card_states_the_expected_errors_of_responses(saved, batch_model, example_cells, tmp_path, bdm):
    cells = example_cells.copy()
    cells.obs["condition"] = np.resize(["ctrl", "stim"], cells.n_obs)
    responses = tl.respond(cells, ResponseSettings(label_key="bulk_labels"))
    card = batch_model.card(responses=responses)
    error = responses.expected_error("stim")
    shown = " | ".join(f"{error[name]:.0%}" for name in ("predicted", "common", "nearest", "permuted", "halves"))
    assert f"| type in stim | {responses.measured['stim'].sum()} | {shown} |" in card
    assert f"measured in {cells.n_obs} cells" in card
    assert f"largest error, {responses.errors['predicted'].max():.0%}," in card
    [*warnings] = responses.warnings("stim")  # as the condition does nothing
    assert warnings
    assert all(f"* {warning}\n" in card for warning in warnings)
    assert "## Responses" not in batch_model.card()
    responses.save(tmp_path / "responses")
    assert bdm("card", saved, "--responses", tmp_path / "responses", "--out", tmp_path / "card.md")[0] == 0
    assert f"| type in stim | {responses.measured['stim'].sum()} | {shown} |" in (tmp_path / "card.md").read_text()
    others = replace(responses, cell_types=tuple(f"other {name}" for name in responses.cell_types))
    with pytest.raises(InputError, match=r"other cell types \(other CD14"):
        batch_model.card(responses=others)


@pytest.fixture(scope="module")
def generated(saved, tmp_path_factory):
    path = tmp_path_factory.mktemp("generated") / "my cells.h5ad"
    app(["generate", str(saved), str(path), "--cells", "3", "--seed", "4"], standalone_mode=False)
    return path


def test_card_describes_the_generated_cells(saved, loaded, generated):
    model, checksum = loaded
    card = model_card(model, checksum=checksum, cells=GeneratedFile.read(generated, model, checksum=checksum))
    n_types = len(model.cell_types)
    assert f"| SHA-256 | `{sha256(generated)}` |" in card
    assert f"| cells | {3 * n_types}, each marked as synthetic" in card
    assert "| seed | 4 |" in card
    assert "    sha256sum 'my cells.h5ad'\n" in card
    assert "| columns of `obs` | `cell_type`, `bulk_labels`, `sub_population`, `synthetic`, `donor` |" in card
    for name in model.cell_types:
        assert re.search(rf"^\| {re.escape(name)} \| [\d,]+ \| \d+ \| 3 \|$", card, flags=re.MULTILINE)
    assert "| columns of `var` | none |" in card
    assert "| sampling | shared_ancestors " in card
    assert "were drawn from original cells" not in card
    assert "## Generated cells" not in (saved / CARD).read_text()


def test_card_names_what_is_known_of_genes(loaded, generated, tmp_path):
    """Such as means of a donor, which come with the cells."""
    cells, (model, checksum) = anndata.read_h5ad(generated), loaded
    cells.var["mean of donor 3"] = 1.0
    cells.write_h5ad(tmp_path / "cells.h5ad")
    file = GeneratedFile.read(tmp_path / "cells.h5ad", model, checksum=checksum)
    assert "| columns of `var` | `mean of donor 3` |" in model_card(model, checksum=checksum, cells=file)


def test_audit_of_cells_that_were_sampled_otherwise_is_rejected(loaded, generated):
    model, checksum = loaded
    file = GeneratedFile.read(generated, model, checksum=checksum)
    with pytest.raises(InputError, match=r"\(shared_ancestors is True, and False in my cells.h5ad\)"):
        check_settings({"shared_ancestors": True}, file.sampling, "cells", f"in {file.name}")
    check_settings(asdict(GenerationSettings()), file.sampling, "cells", f"in {file.name}")


def test_other_cells_are_rejected(saved, loaded, generated, example_cells, tmp_path):
    model, checksum = loaded
    with pytest.raises(InputError, match="has cells of another model"):
        GeneratedFile.read(generated, model, checksum="0" * 64)
    cells = anndata.read_h5ad(generated)
    cells.obs["synthetic"] = False
    cells.write_h5ad(tmp_path / "real.h5ad")
    example_cells.write_h5ad(tmp_path / "example.h5ad")
    to, before = model.cell_types[:2]
    paths = str(tmp_path / "real.h5ad"), str(tmp_path / "transmuted.h5ad")
    app(["transmute", str(saved), *paths, "--to", to, "--from", before], standalone_mode=False)
    for name in ("real.h5ad", "example.h5ad", "transmuted.h5ad"):
        with pytest.raises(InputError, match=f"{name} has other cells"):
            GeneratedFile.read(tmp_path / name, model, checksum=checksum)


def test_source_and_contact_are_stated(saved, generated, bdm, tmp_path):
    given = ("--source", "Study | of blood", "--contact", "A. Miller", "--cells", generated)
    assert bdm("card", saved, *given, "--out", tmp_path / "card.md")[0] == 0
    card = (tmp_path / "card.md").read_text()
    assert r"| source | Study \| of blood |" in card
    assert "| contact | A. Miller |" in card
    assert "| file | `my cells.h5ad` |" in card
    assert "| source |" not in (saved / CARD).read_text()


def test_command_prints_the_card(saved, loaded, evaluation, bdm, capsys, monkeypatch, tmp_path):
    out, (model, checksum) = tmp_path / "card.md", loaded
    scores = replace(evaluation, provenance=evaluation.provenance | {"sha256": {"model": checksum}})
    scores.save(tmp_path / "evaluation")
    assert bdm("card", saved, "--evaluation", tmp_path / "evaluation", "--license", "mit", "--out", out)[0] == 0
    assert out.read_text() == model_card(model, checksum=checksum, evaluation=scores, license="mit")
    monkeypatch.setattr("sys.argv", ["bdm", "card", str(saved)])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == (saved / CARD).read_text()
