"""Settings are described once: Python, the command line and the configuration take and reject the same values."""

import inspect
import json
import re
from dataclasses import MISSING, fields, replace
from itertools import combinations

import numpy as np
import pytest
from config_schema import schema
from test_workflow import demo_config, dry_run
from typer.main import get_command

import bdm
from bdm._core.errors import InputError
from bdm._core.files import provenance
from bdm._core.schema import StageSettings, settings_of
from bdm.api import merged_settings
from bdm.applications.design.design import Samples
from bdm.cli import app
from bdm.data.cells import MIN_CELLS_FOR_MEANS
from bdm.settings import (
    AutoencoderSettings,
    EvaluationSettings,
    GenerationSettings,
    HierarchySettings,
    InterpretationSettings,
    PrepareSettings,
    Settings,
    TrainSettings,
)

COMMANDS = get_command(app).commands
TOO_FEW = MIN_CELLS_FOR_MEANS - 1
STAGES = {  # by command, and section of the configuration
    "prepare": PrepareSettings,
    "autoencoder": AutoencoderSettings,
    "hierarchy": HierarchySettings,
    "train": TrainSettings,
    "generate": GenerationSettings,
    "evaluate": EvaluationSettings,
    "interpret": InterpretationSettings,
}


@pytest.mark.parametrize(
    ("stage", "arguments", "name", "value", "words"),
    [
        ("prepare", "cells.h5ad out.h5ad", "n_genes", 0, "is 0, .* at least 1"),
        ("autoencoder", "prepared.h5ad out", "loading_scale", 0.0, "is 0.0, .* above 0"),
        ("autoencoder", "prepared.h5ad out", "sub_populations", "some", "is 'some', .* auto, none or .* 1"),
        ("autoencoder", "prepared.h5ad out", "n_latents", 3, "; .* n_latent"),
        ("hierarchy", "autoencoder out.json", "threshold", 1.5, "is 1.5, .* above 0.5 and below 1"),
        ("train", "autoencoder tree.json out", "n_steps", "many", "is 'many', .* whole number"),
        ("generate", "model out.h5ad --cells 1", "share_ancestors", 3, "; .* shared_ancestors"),
        ("evaluate", "prepared.h5ad new.h5ad out", "max_cells_per_type", TOO_FEW, f" .* {TOO_FEW + 1}"),
        ("interpret", "model prepared.h5ad new.h5ad out", "n_genes", 0, "is 0, .* at least 1"),
    ],
)
def test_python_the_command_and_the_workflow_reject_a_setting_in_the_same_sentence(
    request, tmp_path, monkeypatch, stage, arguments, name, value, words
):
    settings = STAGES[stage]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{name} ?{words}") as caught:
        settings(**{name: value})
    option = f"--{name.replace('_', '-')}"
    code, err = request.getfixturevalue("bdm")(stage, *arguments.split(), option, value)
    assert code == 2
    if name in {setting.name for setting in settings_of(settings)}:
        assert err == f"bdm: {caught.value}\n"
    else:
        assert re.search(
            rf"No such option: {option} \(Possible options:[^)]*{words.split()[-1].replace('_', '-')}", err
        )
    assert not list(tmp_path.iterdir())
    config = demo_config(**{stage: {name: value}})
    [message] = re.findall("^Configuration, .*$", dry_run(tmp_path, config), flags=re.M)
    assert f": {caught.value} " in message


def test_methods_reject_a_misspelt_argument(small_model):
    with pytest.raises(InputError, match=r"new_location; .*new_locations"):
        small_model.generate(new_location=3)
    with pytest.raises(InputError, match=r"^n_genes is 0, but must be at least 1\.$"):
        small_model.interpret(n_genes=0)


@pytest.mark.parametrize(("stage", "settings"), STAGES.items(), ids=STAGES)
def test_merged_settings_help_are_options_with_the_same_default(stage, settings):
    options = {parameter.name: parameter for parameter in COMMANDS[stage].params}
    described = [setting for setting in settings_of(settings) if setting.help]
    assert described
    for setting in described:
        option = options[setting.name]
        assert setting.help.removesuffix(".") in option.help
        assert option.default in (setting.default, None if setting.default == () else setting.default)
    hidden = {setting.name for setting in settings_of(settings)} - {setting.name for setting in described}
    assert not hidden & set(options)


def test_fit_has_the_settings_of_all_stages():
    names = {parameter.name for parameter in COMMANDS["fit"].params}
    for stage in fields(Settings):
        for setting in filter(lambda setting: setting.help, settings_of(STAGES[stage.name])):
            assert {setting.name, f"{stage.name}_{setting.name}"} & names, setting.name
    assert {"autoencoder_n_steps", "train_n_steps"} <= names


def test_methods_have_the_defaults_of_the_settings():
    for setting in settings_of(GenerationSettings):
        generate = inspect.signature(bdm.BranchedDiffusion.generate)
        assert generate.parameters[setting.name].default == setting.default
    assert inspect.signature(bdm.BranchedDiffusion.evaluate).parameters["n_repeats"].default == 3
    assert inspect.signature(bdm.BranchedDiffusion.interpret).parameters["n_genes"].default == 20


def all_settings(kind: type = StageSettings) -> list[type]:
    """List the settings that have defaults, which are all but parts of a design that users name."""
    found = [of for below in kind.__subclasses__() for of in all_settings(below)]
    return found if any(setting.default is MISSING for setting in settings_of(kind)) else [kind, *found]


@pytest.mark.parametrize("kind", all_settings(), ids=lambda kind: kind.__name__)
def test_defaults_are_within_their_bounds_and_can_be_replaced(kind):
    settings = kind()
    assert replace(settings) == settings
    for setting in settings_of(kind):
        default = setting.default() if setting.nested and callable(setting.default) else setting.default
        assert default == getattr(settings, setting.name)


def test_test_cells_are_held_out_on_request_alone():
    assert PrepareSettings().test == PrepareSettings(n_genes=50).test == Settings().prepare.test == 0
    assert schema()["$defs"]["prepare"]["properties"]["test"]["default"] == 0.2  # as the workflow evaluates


def test_each_part_of_the_split_needs_a_cell_of_each_type():
    assert PrepareSettings(min_cells_per_type=2).min_cells_per_type == 2
    with pytest.raises(InputError, match=r"^min_cells_per_type is 2, but must be at least 3\.$"):
        PrepareSettings(min_cells_per_type=2, test=0.2)


KEYS = ("label_key", "batch_key", "donor_key", "covariate_key")


@pytest.mark.parametrize(("key", "other"), list(combinations(KEYS, 2)))
def test_a_column_has_one_meaning(key, other):
    with pytest.raises(InputError, match=rf"^obs\['kind'\] is named by `{key}=` and by `{other}=`"):
        PrepareSettings(**{key: "kind", other: "kind"})


def test_a_given_seed_of_0_contradicts_another():
    settings = PrepareSettings(seed=5)
    with pytest.raises(InputError, match=r"^seed is 0, and 5 in settings\.prepare"):
        merged_settings(settings, label_key="cell_type", seed=0)
    assert merged_settings(settings, label_key="cell_type", seed=5) == merged_settings(settings) == settings


@pytest.mark.parametrize("value", [3.0, "3", True])
def test_whole_numbers_are_neither_decimal_nor_text(tmp_path, value):
    with pytest.raises(InputError, match=rf"^n_steps is {value!r}, but must be a whole number\.$") as caught:
        TrainSettings(n_steps=value)
    with pytest.raises(InputError, match=rf"^cells\.B is {value!r}, but must be a whole number\.$"):
        Samples(cells={"B": value})
    assert f"train.n_steps: {caught.value}" in dry_run(tmp_path, demo_config(train={"n_steps": value}))


def test_numbers_of_numpy_are_numbers_of_python():
    settings = AutoencoderSettings(n_latent=np.int64(4), learning_rate=np.float32(0.5))
    assert (type(settings.n_latent), type(settings.learning_rate)) == (int, float)
    assert type(PrepareSettings(min_donors=np.int32(2)).min_donors) is int
    assert json.loads(json.dumps(provenance(seed=np.int64(1))))["seed"] == 1
