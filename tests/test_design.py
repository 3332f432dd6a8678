"""Designs are read from files and dictionaries, and rejected in one sentence."""

import pytest
import yaml

from bdm._core.errors import InputError
from bdm.api import BranchedDiffusion
from bdm.applications.design.design import Design, read_design
from bdm.applications.design.experiment import compile_design
from bdm.applications.design.simulate import design_record

TWO = {"donors": 2, "conditions": ["control", "treated"]}
UP = {"name": "up", "condition": "treated", "genes": ["CD3D"], "log2_fold_change": 1}


def with_change(**keys):
    return {"samples": TWO, "changes": [{**UP, **keys}]}


def test_an_empty_design_has_defaults(tmp_path):
    (tmp_path / "design.yaml").write_text("")
    assert read_design(tmp_path / "design.yaml") == read_design({}) == Design()


def test_a_file_and_a_dictionary_are_the_same_design(tmp_path):
    content = with_change(share=0.5, **{"in": "Dendritic"})
    (tmp_path / "design.yaml").write_text(yaml.safe_dump(content))
    design = read_design(str(tmp_path / "design.yaml"))
    assert design == read_design(content) == read_design(design)
    assert design.changes[0].in_ == ("Dendritic",)
    assert design.changes[0].share == 0.5


def test_names_may_be_numbers_in_yaml():
    design = read_design({"samples": {"conditions": [0, 24]}, "changes": [{**UP, "condition": 24, "genes": [7157]}]})
    assert design.samples.conditions == ("0", "24")
    assert (design.changes[0].condition, design.changes[0].genes.names) == ("24", ("7157",))


def test_the_keys_of_a_design_are_in_the_help_of_simulate():
    text = str(BranchedDiffusion.simulate.__doc__)
    assert "samples.paired: Every donor has a sample in every condition. [`false`]" in text
    assert all(f" {key}: " in text for key in ("changes[].genes.n", "composition.shifts[].in", "power.fdr", "seed"))


def test_the_record_of_a_design_is_a_design():
    content = with_change(genes={"n": 5, "expression": [0.2, 0.9]}, log2_fold_change=[1.5], **{"in": ["Dendritic"]})
    content |= {"depth": {"factor": {"treated": 0.5}}, "composition": {"proportions": {"Dendritic": 1}}}
    design = read_design(content)
    assert read_design(design_record(design)) == design


def test_an_empty_section_is_none(tmp_path):
    (tmp_path / "design.yaml").write_text("samples:\nchanges:\ncomposition:\n  shifts:\n")
    assert read_design(tmp_path / "design.yaml") == Design()
    with pytest.raises(InputError, match="there is no genes, which is required"):
        read_design(with_change(genes=None))


INVALID = {
    "shifts of exact numbers": (
        {
            "samples": {**TWO, "cells": {"Dendritic": 5}},
            "composition": {"shifts": [{"condition": "treated", "in": ["Dendritic"], "log_odds": 1}]},
        },
        "composition.shifts has no effect",
    ),
    "proportions of exact numbers": (
        {"samples": {**TWO, "cells": {"Dendritic": 5}}, "composition": {"proportions": {"Dendritic": 1}}},
        "composition.proportions has no effect",
    ),
    "a misspelt section": ({"sample": {}}, "There is no setting sample; did you mean samples?"),
    "a misspelt key": (with_change(log_fold_change=1), "changes.up: There is no setting log_fold_change; did you mean"),
    "no section": ({"samples": 5}, "samples: there is 5, but there must be keys with values."),
    "no list": ({"changes": UP}, "changes is {'name': 'up'"),
    "no donors": (
        {"samples": {"donors": 0}},
        "donors is 0, but must be a whole number that is at least 1 or keys with values.",
    ),
    "no donors in a condition": ({"samples": {**TWO, "donors": {"control": 2, "treated": 0}}}, "donors.treated is 0"),
    "donors of one condition": (
        {"samples": {**TWO, "donors": {"control": 2}}},
        "no number for the condition 'treated'",
    ),
    "donors of no condition": (
        {"samples": {"donors": {"x": 2}}},
        "there is no condition 'x'; the conditions are control.",
    ),
    "batches of no condition": ({"samples": {**TWO, "batches": {"cold": "a"}}}, "batches: there is no condition or"),
    "unequal pairs": (
        {"samples": {**TWO, "donors": {"control": 2, "treated": 3}, "paired": True}},
        "one number of donors",
    ),
    "no cells": ({"samples": {"cells": 0}}, "cells sum to 0"),
    "a condition twice": ({"samples": {"conditions": ["a", "a"]}}, "the same name twice"),
    "no conditions": ({"samples": {"conditions": []}}, "conditions is empty"),
    "proportions": (
        {"composition": {"proportions": {"a": 0.5, "b": 0.4}}},
        "proportions sum to 0.9, but must sum to 1.",
    ),
    "shift of the reference": (
        {"samples": TWO, "composition": {"shifts": [{"condition": "control", "in": "a", "log_odds": 1}]}},
        "'control' is the reference",
    ),
    "shift of nothing": (
        {"samples": TWO, "composition": {"shifts": [{"condition": "treated", "log_odds": 1}]}},
        "composition: shifts.1: there is no in, which is required.",
    ),
    "log odds that overflow": (
        {"samples": TWO, "composition": {"shifts": [{"condition": "treated", "in": "a", "log_odds": 5000}]}},
        "log_odds is 5000, but must be at least -20 and at most 20.",
    ),
    "unknown condition": (
        with_change(condition="cold"),
        "changes.up: there is no condition 'cold'; the conditions are",
    ),
    "change of the reference": (with_change(condition="control"), "changes.up: 'control' is the reference"),
    "fold change of a list": (
        with_change(log2_fold_change=[1, "x"]),
        "log2_fold_change: values is 'x', but must be a finite number",
    ),
    "no fold change": ({"changes": [{"name": "up", "genes": ["CD3D"]}]}, "no log2_fold_change, which is required"),
    "no numbers": (with_change(log2_fold_change=[]), "log2_fold_change: give numbers, or the `distribution`"),
    "numbers of a distribution": (
        with_change(log2_fold_change={"values": [1], "distribution": "normal"}),
        "or the `distribution` to sample them from, not both",
    ),
    "no genes": (with_change(genes={}), "changes.up: genes: give names, or a number `n` to sample"),
    "genes named and sampled": (with_change(genes={"names": ["CD3D"], "n": 3}), "not both"),
    "a gene twice": (with_change(genes=["CD3D", "CD3D"]), "the gene CD3D is named twice; name each gene once."),
    "quantiles": (with_change(genes={"n": 3, "expression": [0.9, 0.2]}), "the lower first"),
    "the same name": ({"samples": TWO, "changes": [UP, UP]}, "two changes have the name 'up'"),
    "depth of no condition": ({"depth": {"factor": {"cold": 0.5}}}, "depth.factor: there is no condition 'cold'"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_designs_are_rejected_in_one_sentence(case):
    content, sentence = INVALID[case]
    with pytest.raises(InputError) as error:
        read_design(content)
    assert sentence in str(error.value)
    assert str(error.value).startswith("design: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("changes: [", "design.yaml cannot be read as YAML (while parsing a flow node expected the node content"),
        ("- a", "design.yaml: there is ['a'], but there must be keys with values."),
        (None, "design.yaml."),
        ("seed: x", "design.yaml: seed is 'x', but must be a whole number."),
    ],
)
def test_a_message_names_the_file(text, sentence, tmp_path):
    if text is not None:
        (tmp_path / "design.yaml").write_text(f"{text}\n")
    with pytest.raises(InputError, match=r"design\.yaml") as error:
        read_design(tmp_path / "design.yaml")
    assert sentence in str(error.value)


LACKING = {
    "gene": (with_change(genes=["T-800"]), "changes.up.genes: the model has no gene T-800; it has 200 genes, such as"),
    "clade": (
        with_change(genes={"n": 1}, **{"in": "node 99"}),
        "changes.up: the model has no cell type or clade 'node 99'",
    ),
    "type of a shift": (
        {"samples": TWO, "composition": {"shifts": [{"condition": "treated", "in": "T-800", "log_odds": 1}]}},
        "composition.shifts: the model has no cell type or clade 'T-800'",
    ),
    "type of proportions": (
        {"composition": {"proportions": {"T-800": 1}}},
        "composition.proportions: the model has no cell type 'T-800'; its types are",
    ),
    "type of cells": ({"samples": {"cells": {"T-800": 10}}}, "samples.cells: the model has no cell type 'T-800'"),
    "type and its part": (
        {"samples": {"cells": {"Dendritic": 10, "Dendritic/1": 5}}},
        "'Dendritic/1' is counted twice",
    ),
    "learned donors": ({"samples": {"variation": "learned"}}, "the model has learned no donors"),
    "learned cells": ({"samples": {"cells": "learned"}}, "the model has learned no donors"),
    "learned composition": ({"composition": {"concentration": "learned"}}, "the model has learned no donors"),
    "numbers": (with_change(genes={"n": 3}, log2_fold_change=[1, 2]), "log2_fold_change has 2 numbers for 3 genes"),
    "too many genes": (
        with_change(genes={"n": 300}),
        "300 genes are to be sampled, but the model has 200",
    ),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_the_model_lacks_is_rejected_in_one_sentence(case, small_model):
    content, sentence = LACKING[case]
    with pytest.raises(InputError) as error:
        compile_design(small_model.model, read_design(content))
    assert sentence in str(error.value)
