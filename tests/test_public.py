"""The public API as completion lists it; ``typed_script.py`` is a script of a user, whose types mypy checks."""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import bdm
from bdm import tl
from bdm._core.schema import places_of_settings

FUNCTIONS = [
    *(each for name, each in inspect.getmembers(bdm.BranchedDiffusion, callable) if name[0] != "_"),
    *(each for name, each in vars(tl).items() if name in tl.__all__ and not inspect.isclass(each)),
    bdm.BranchedDiffusion.__init__,
]
IN_COMMANDS = {"model", "test_cells"}  # arguments of commands alone


@pytest.mark.parametrize("module", [bdm, bdm.pl, bdm.tl], ids=["bdm", "bdm.pl", "bdm.tl"])
def test_the_public_names_are_listed_and_no_others(module):
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name).__doc__ for name in module.__all__)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (tl.respond, (None, "x"), "`settings=` must be of class ResponseSettings, not str"),
        (tl.respond, (None, {}), "`settings=` must be of class ResponseSettings, not dict"),
        (tl.predict, ("x", None, "stim"), "`responses=` must be of class Responses, not str"),
        (tl.reconstruct, (3, None, "a"), "`lineage=` must be of class Lineage, not int"),
        (tl.pseudobulk_tests, (None, None), "`settings=` must be of class ExperimentSettings, not NoneType"),
        (tl.lineage, (3,), "Cells must be an AnnData, a MuData or a file of one, not int"),
        (bdm.BranchedDiffusion.audit, ("x",), "`settings=` must be of class AuditSettings, not str"),
        (bdm.BranchedDiffusion.transmute, (None, "NK"), "Cells must be an AnnData, a MuData or a file of one"),
    ],
)
def test_what_is_of_another_class_is_rejected(small_model, function, arguments, expected):
    if function.__qualname__.startswith("BranchedDiffusion"):
        arguments = (small_model, *arguments)
    with pytest.raises(bdm.InputError, match=expected):
        function(*arguments)


def test_errors_name_settings_as_they_are_passed(small_model, example_cells):
    cells, unlabelled = example_cells.copy(), example_cells.copy()
    cells.layers["umi"], cells.X = cells.X, cells.X.log1p()
    unlabelled.obs["cell_type"] = cells.obs["bulk_labels"].astype(object).where(np.arange(cells.n_obs) > 5)
    settings = tl.ResponseSettings(label_key="bulk_labels", condition_key="phase", control="G1")
    for error, function in {
        "`settings.prepare.counts='umi'`": lambda: bdm.BranchedDiffusion(cells, "bulk_labels"),
        "`settings.prepare.drop_unlabelled=True`": lambda: bdm.BranchedDiffusion(unlabelled),
        "`settings.counts='umi'`": lambda: tl.respond(cells, settings),
        "`keys.counts='umi'`": lambda: small_model.get_latent_representation(cells),
        "or fit again with `settings.prepare.test=0.2`": lambda: small_model.evaluate(),
        "name one by `label_key=`": lambda: bdm.BranchedDiffusion(example_cells, "kind"),
    }.items():
        with pytest.raises(bdm.InputError, match=re.escape(error)):
            function()


def test_arguments_that_messages_name_exist():
    places = {place + name for function in FUNCTIONS for name, place in places_of_settings(function)}
    names = {place.rpartition(".")[2] for place in places} | IN_COMMANDS
    for module in Path(bdm.__file__).parent.rglob("*.py"):
        texts = [node.value for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Constant)]
        for text in texts:
            if isinstance(text, str) and "\n" not in text:  # without long docstrings
                named = {*re.findall(r"`([a-z_.]+)=", text)}
                assert {name for name in named if "." in name} <= places, module
                assert {name for name in named if "." not in name} <= names, module


def test_cells_and_genes_may_have_numbers_as_names(example_cells):
    cells = example_cells.copy()
    cells.obs.index, cells.var.index = range(cells.n_obs), range(cells.n_vars)
    prepared = bdm.BranchedDiffusion(cells, "bulk_labels").prepared
    assert prepared.obs_names[0] == "0"
    assert cells.obs_names[0] == 0
