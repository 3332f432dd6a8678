"""Conditions that no cell has, by features, doses and combinations: commands, workflow, figure, invalid input."""

import json
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from test_workflow import ROOT, snakemake, write_config

import bdm as package
from bdm._core.errors import InputError
from bdm.applications.relations.responses import Responses

GENES = [f"gene {i}" for i in range(60)]
TYPES = {name: np.random.default_rng(number).normal(0, 1, len(GENES)) for number, name in enumerate("AB")}
PATHWAYS = {"up": ["KLF1", "KLF2", "KLF3", "KLF4"], "down": ["GATA1", "GATA2", "GATA3"]}
PATHWAY = {name: pathway for pathway, names in PATHWAYS.items() for name in names}
FEATURES = pd.DataFrame({pathway: [int(name in names) for name in PATHWAY] for pathway, names in PATHWAYS.items()})
FEATURES.index = pd.Index(PATHWAY, name="target")


def change(name: str) -> np.ndarray:
    """Log fold changes of a perturbation: mostly the ones of its pathway."""
    of_pathway, own = (np.random.default_rng(sum(map(ord, text))) for text in (PATHWAY[name], name))
    changed = of_pathway.random(len(GENES)) < 0.4
    return changed * of_pathway.normal(0, 1, len(GENES)) + own.normal(0, 0.1, len(GENES))


def curve(dose: float) -> float:
    return dose / (dose + 0.5)


def effect_of(condition: tuple[str, float | str]) -> np.ndarray:
    parts, doses = condition[0].split("+"), [*map(float, str(condition[1]).split("+"))]
    return sum(change(part) * curve(dose) for part, dose in zip(parts, doses * (len(parts) // len(doses)), strict=True))


def cells_of(conditions: list[tuple[str, float | str]], *, n_cells: int = 50) -> ad.AnnData:
    """Simulate two types of cells in the control, and in perturbations or combinations at doses.

    A combination has one dose for all parts, or a text with a dose for each.
    """
    rng, pieces, obs = np.random.default_rng(0), [], []
    for cell_type, profile in TYPES.items():
        for condition in [("ctrl", 0.0), *conditions]:
            share = np.exp(profile + (0 if condition[0] == "ctrl" else effect_of(condition)))
            pieces.append(rng.poisson(share / share.sum() * rng.lognormal(7, 0.3, (n_cells, 1))))
            obs += [(cell_type, *condition)] * n_cells
    names = [f"cell {i}" for i in range(len(obs))]
    table = pd.DataFrame(obs, columns=["cell_type", "target", "dose"], index=names)
    return ad.AnnData(sp.csr_matrix(np.vstack(pieces).astype(np.float32)), table, pd.DataFrame(index=GENES))


DOSES = [0.1, 0.3, 1.0, 3.0]
# Conditions of the cells, options of bdm respond, a condition that no cell has, and options of bdm predict for it
CASES = {
    "features": (
        [(name, 3.0) for name in PATHWAY if name != "KLF4"],
        ("--condition-features", "features.csv"),
        ("KLF4", 3.0),
        ("--condition", "KLF4"),
    ),
    "dose": (
        [(name, dose) for name in ("KLF1", "GATA1") for dose in DOSES],
        ("--dose-key", "dose"),
        ("KLF1", 0.6),
        ("--condition", "KLF1", "--dose", 0.6),
    ),
    "combination": (
        [(name, 3.0) for name in ("KLF1", "KLF2", "GATA1", "GATA2", "KLF1+GATA1", "KLF2+GATA2", "KLF2+GATA1")],
        ("--combination-separator", "+"),
        ("KLF1+GATA2", 3.0),
        ("--condition", "KLF1+GATA2"),
    ),
}
KEYS = ("--condition-key", "target", "--control", "ctrl")
LEFT_OUT = ("condition", "type")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Working directory with the table of features."""
    monkeypatch.chdir(tmp_path)
    FEATURES.to_csv(tmp_path / "features.csv")
    return tmp_path


def log_shares(cells: ad.AnnData) -> np.ndarray:
    counts = np.stack([cells[(cells.obs["cell_type"] == name).to_numpy()].X.sum(axis=0).A1 for name in TYPES])
    return np.log(counts / counts.sum(axis=1, keepdims=True) + 1e-3)


def off(cells: ad.AnnData, real: ad.AnnData) -> float:
    """Root mean squared error of log shares in each type."""
    return float(np.sqrt(np.mean((log_shares(cells) - log_shares(real)) ** 2)))


@pytest.mark.parametrize("name", CASES)
def test_a_condition_that_no_cell_has_is_predicted(folder, bdm, caplog, name):
    conditions, options, condition, named = CASES[name]
    cells_of(conditions).write_h5ad("cells.h5ad")
    assert bdm("respond", "cells.h5ad", "responses", *KEYS, *options) == (0, "")
    assert "error      a condition that was not measured is predicted with" in caplog.text
    assert set(pd.read_csv("responses/errors.csv")["left_out"]) == {"type", "condition"}
    assert bdm("predict", "responses", "cells.h5ad", "predicted.h5ad", *named, "--effects", "effects.csv") == (0, "")
    predicted, real, control = ad.read_h5ad("predicted.h5ad"), cells_of([condition]), cells_of([])
    assert set(predicted.obs["response"]) == {"predicted"}
    assert set(pd.read_csv("effects.csv")["condition"]) == {predicted.uns["bdm"]["condition"]}
    real = real[(real.obs["target"] != "ctrl").to_numpy()]
    assert off(predicted, real) < 0.6 * off(control, real)
    panels = package.pl.response_errors(Responses.load("responses"), show=False)
    assert [panel.get_title() for panel in panels] == [f"each {left_out} left out in turn" for left_out in LEFT_OUT]


def test_conditions_are_predicted_in_any_order():
    names = [name for name in PATHWAY if name not in ("KLF4", "GATA3")]
    settings = package.tl.ResponseSettings(condition_key="target", control="ctrl")
    fitted = package.tl.respond(cells_of([(name, 3.0) for name in names]), settings, features=FEATURES)
    both = package.tl.predict(fitted, cells_of([]), ["GATA3", "KLF4"])
    alone = package.tl.predict(fitted, cells_of([]), "KLF4")
    assert (both[(both.obs["target"] == "KLF4").to_numpy()].X != alone.X).nnz == 0


def test_a_series_of_doses_is_compared_with_doses_in_another_order():
    """Two types have no other order, so their relations have no comparison."""
    settings = package.tl.ResponseSettings(condition_key="target", control="ctrl", dose_key="dose")
    fitted = package.tl.respond(cells_of([("KLF1", dose) for dose in DOSES]), settings)
    assert fitted.expected_error()["predicted"] < 0.7 * fitted.expected_error()["permuted"]
    assert fitted.warnings("KLF1, 0.6") == []
    names = "In 'KLF1, 0.1', 'KLF1, 0.3', 'KLF1, 1' and 1 more"
    assert fitted.warnings() == [f"{names}: only 2 types were measured, too few to say what others do."]
    assert fitted.errors.query("left_out == 'type'")["permuted"].isna().all()
    assert "permuted" not in fitted.sentence("KLF1, 1")
    low = package.tl.predict(fitted, cells_of([]), "KLF1", dose=0.05)
    assert set(low.obs["dose"]) == {0.05}  # between the control and the lowest dose
    both = package.tl.predict(fitted, cells_of([]), ["KLF1, 0.05", "KLF1, 0.2"])
    assert set(both.obs["dose"]) == {0.05, 0.2}
    assert json.loads(both.uns["bdm"]["condition"]) == ["KLF1, 0.05", "KLF1, 0.2"]
    first = both[(both.obs["dose"] == 0.05).to_numpy()]
    assert [*first.obs_names] == [f"{name} KLF1, 0.05" for name in low.obs_names]
    assert (first.X != low.X).nnz == 0
    with pytest.raises(InputError, match=r"^There is no condition to predict"):
        package.tl.predict(fitted, cells_of([]), [])


def test_a_combination_with_a_dose_for_each_part_is_predicted_better_than_without_doses(folder, bdm):
    """One part is at a high dose, and the other one at a low dose; other combinations have them the other way round."""
    alone = [(name, str(dose)) for name in ("KLF1", "GATA1") for dose in DOSES]
    both = [("KLF1+GATA1", doses) for doses in ("0.1+3", "0.3+1", "1+1", "0.3+3")]
    cells = cells_of([*alone, *both])
    cells.obs["dose"] = cells.obs["dose"].astype(str)
    cells.write_h5ad("cells.h5ad")
    arguments = ("respond", "cells.h5ad", "responses", *KEYS, "--combination-separator", "+", "--dose-key", "dose")
    assert bdm(*arguments) == (0, "")
    fitted, name = Responses.load("responses"), "KLF1+GATA1, 3+0.1"
    real = effect_of(("KLF1+GATA1", "3+0.1"))
    real = pd.Series(real - real.mean(), GENES)

    def error(responses: Responses, condition: str) -> float:
        effects = responses.effects(condition).pivot(index="gene", columns="cell_type", values="log2_fold_change")
        changes = effects.loc[GENES] * np.log(2)
        return float(np.sqrt(np.mean((changes - changes.mean()).sub(real, axis=0).to_numpy() ** 2)))

    settings = replace(fitted.settings, dose_key=None)
    without_doses = package.tl.respond(ad.read_h5ad("cells.h5ad"), settings)
    one_dose = {condition: error(fitted, f"KLF1+GATA1, {condition}") for condition in ("3", "0.1")}
    assert error(fitted, name) < 0.5 * error(without_doses, "KLF1+GATA1")
    assert error(fitted, name) < 0.6 * min(one_dose.values())
    command = ("predict", "responses", "cells.h5ad", "predicted.h5ad")
    assert bdm(*command, "--condition", name, "--condition", "KLF1, 0.5") == (0, "")
    predicted = ad.read_h5ad("predicted.h5ad")
    assert set(predicted.obs["dose"]) == {"3+0.1", "0.5"}
    measured = package.tl.predict(fitted, cells_of([]), "KLF1+GATA1, 0.1+3")
    back = package.tl.predict(fitted, measured, "ctrl")
    assert set(back.obs["original_condition"]) == {"KLF1+GATA1, 0.1+3"}
    assert set(back.obs["dose"]) == {0}
    code, message = bdm(*command, "--condition", "KLF1+GATA1, 9+0.1", "--force")
    assert code == 2
    assert "The dose of 'KLF1' in 'KLF1+GATA1, 9+0.1' is above the measured doses, up to 3; predict" in message


def test_a_condition_like_the_others_has_a_smaller_error_than_one_without_relatives():
    names = [name for name in PATHWAY if name != "KLF4"]
    settings = package.tl.ResponseSettings(condition_key="target", control="ctrl")
    table = pd.concat([FEATURES, pd.DataFrame({"up": [0], "down": [0]}, index=["MYC"])])
    fitted = package.tl.respond(cells_of([(name, 3.0) for name in names]), settings, features=table)
    alike, alone = (fitted.error_of_condition(name) for name in ("KLF4", "MYC"))
    assert alike <= alone
    assert (alike < alone) == (fitted.fit.slope > 0)
    assert (f"KLF4: about {alike:.0%} of the error" in fitted.sentence("KLF4")) == (fitted.fit.slope > 0)


def test_combinations_without_a_separator_are_rejected_with_the_remedy():
    settings = package.tl.ResponseSettings(condition_key="target", control="ctrl")
    fitted = package.tl.respond(cells_of([("KLF1", 3.0), ("GATA1", 3.0)], n_cells=12), settings)
    remedy = r"^There is no condition 'KLF1\+GATA1'; to predict .* `combination_separator='\+'`\.$"
    with pytest.raises(InputError, match=remedy):
        package.tl.predict(fitted, cells_of([]), "KLF1+GATA1")


def test_types_are_not_needed_to_relate_conditions(folder, bdm, caplog):
    cells = cells_of([(name, 3.0) for name in PATHWAY if name != "KLF4"])
    cells[(cells.obs["cell_type"] == "A").to_numpy()].copy().write_h5ad("cells.h5ad")
    features = ("--condition-features", "features.csv")
    assert bdm("respond", "cells.h5ad", "responses", *KEYS, *features) == (0, "")
    assert "a type that was not measured" not in caplog.text
    assert "In " not in caplog.text  # no warnings of single conditions
    _, heat = package.pl.response(Responses.load("responses"), show=False)
    assert heat.get_title().startswith("KLF")  # whose responses are stronger
    assert "--condition KLF4 --cell-type A" in caplog.text  # the next command
    [panel] = package.pl.response_errors(Responses.load("responses"), show=False)
    assert panel.get_title() == "each condition left out in turn, in A"
    assert {label.get_text() for label in panel.get_yticklabels()} == set(PATHWAY) - {"KLF4"}


# ---- invalid input

BAD_FEATURES = {
    "missing": ("target,up,down\nKLF1,1,0\nGATA1,,1\n", "'up' of 'GATA1' is missing, but must be a finite number."),
    "constant": (
        "target,up,down\nKLF1,1,0\nGATA1,1,1\n",
        "'up' is the same for all perturbations; leave this column out.",
    ),
}


@pytest.mark.parametrize("name", BAD_FEATURES)
def test_bad_features_are_rejected_in_one_sentence(folder, bdm, name):
    text, sentence = BAD_FEATURES[name]
    (folder / "features.csv").write_text(text)
    cells_of([("KLF1", 3.0), ("GATA1", 3.0)], n_cells=12).write_h5ad("cells.h5ad")
    rejected = bdm("respond", "cells.h5ad", "responses", *KEYS, "--condition-features", "features.csv")
    assert rejected == (2, f"bdm: features.csv: {sentence}\n")


def test_one_condition_has_no_relations(folder, bdm):
    cells_of([("KLF1", 3.0)], n_cells=12).write_h5ad("cells.h5ad")
    code, message = bdm("respond", "cells.h5ad", "responses", *KEYS, "--condition-features", "features.csv")
    assert code == 2
    assert message.startswith("bdm: cells.h5ad: There is one condition, 'KLF1', besides the control 'ctrl'; ")


def test_unknown_conditions_are_rejected_with_the_remedy(folder, bdm, caplog):
    """Perturbations, parts and doses are all in these cells."""
    doses = [(name, dose) for name in ("KLF1", "KLF2", "GATA1", "KLF1+GATA1") for dose in (0.1, 1.0)]
    cells_of(doses, n_cells=12).write_h5ad("cells.h5ad")
    relations = ("--dose-key", "dose", "--combination-separator", "+")
    assert bdm("respond", "cells.h5ad", "responses", *KEYS, *relations)[0] == 0
    arguments = ("predict", "responses", "cells.h5ad", "predicted.h5ad")
    for words, sentence in {
        ("GATA9", "--dose", 0.5): "Neither cells nor features have the perturbation 'GATA9'; did you mean 'GATA1'?",
        ("KLF2+GATB1", "--dose", 0.5): "Neither cells nor features have the perturbation 'GATB1'; did you mean 'GATA1'",
        ("KLF1",): "Condition 'KLF1' has no dose; name it by `--dose`.",
        (
            "KLF1",
            "--dose",
            5,
        ): "The dose of 'KLF1, 5' is above the measured doses, up to 1; predict a condition",
    }.items():
        code, message = bdm(*arguments, "--condition", *words)
        assert code == 2
        assert message.startswith(f"bdm: cells.h5ad: {sentence}")
        assert message.count("\n") == 1
    assert "`--extrapolate`" in message
    assert bdm(*arguments, "--condition", "KLF1", "--dose", 5, "--extrapolate")[0] == 0
    assert "in KLF1, 5: response of their type measured in 0, predicted in 24" in caplog.text
    assert bdm(*arguments, "--condition", "KLF2+GATA1", "--dose", 0.5, "--force")[0] == 0
    assert set(ad.read_h5ad("predicted.h5ad").obs["dose"]) == {0.5}


# ---- the workflow


@pytest.mark.slow
def test_workflow_predicts_conditions_that_no_cell_has(folder):
    doses = [(name, dose) for name in ("KLF1", "KLF2", "GATA1", "GATA2", "KLF1+GATA1") for dose in (0.3, 3.0)]
    cells_of(doses, n_cells=20).write_h5ad("cells.h5ad")
    predictions = {
        "new": {"condition": "KLF4", "dose": 1},
        "pair": {"condition": "KLF1+GATA2", "dose": 9, "extrapolate": True, "cell_types": ["A"]},
    }
    respond = {"run": True, "condition_key": ["target"], "control": "ctrl", "dose_key": "dose"}
    respond |= {"combination_separator": "+", "condition_features": "features.csv", "predictions": predictions}
    write_config(folder, {"datasets": {"mine": {"path": "cells.h5ad", "respond": respond}}})
    targets = [f"results/mine/predicted/{name}.h5ad" for name in predictions]
    done = snakemake("--snakefile", ROOT / "Snakefile", "--cores", 1, *targets, cwd=folder)
    assert done.returncode == 0, done.stderr
    conditions = [ad.read_h5ad(folder / path).uns["bdm"]["condition"] for path in targets]
    assert conditions == ["KLF4, 1", "KLF1+GATA2, 9"]
