"""Columns of cells that the configuration names, and donors for an audit, are looked for before any job starts."""

import re
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from snakemake.exceptions import WorkflowError
from test_configuration import CONFIG, MINE, keys, planned_rules, with_value
from test_workflow import ROOT, SCHEMA, snakemake, write_config

from bdm.data.header import n_cells_by_value, obs_columns
from bdm.data.read import read_cells

MODULE = """
module bdm:
    snakefile: "{root}/workflow/Snakefile"
    config: {config}

use rule * from bdm as bdm_*
"""
RULE = """
include: "{root}/workflow/Snakefile"

rule count:
    output: "cells.h5ad"
    input: "script.py"
    shell: "touch {{output}}"
"""


N_CELLS = 36


def cells() -> ad.AnnData:
    number = np.arange(N_CELLS)
    obs = {"cell_type": np.array(["A", "B", "C"])[number % 3], "term": np.where(number % 2, "CL:0000236", "CL:0000084")}
    obs |= {"batch": [f"b{i % 2}" for i in number], "person": [f"p{i % 6}" for i in number], "lane": number % 6}
    obs |= {"condition": np.where(number % 2, "ctrl", "stim")}
    table = pd.DataFrame(obs, index=[f"c{i}" for i in number]).astype({"person": "category"})
    return ad.AnnData(sparse.csr_matrix(np.ones((N_CELLS, 4), dtype=np.float32)), obs=table)


def named_columns() -> list[str]:
    """List the keys of the configuration that name a column of obs, by their descriptions."""
    of = {key: SCHEMA["$defs"][key.split("/")[0]]["properties"][key.split("/")[1]] for key in keys() if "/" in key}
    return [key for key, schema in of.items() if schema.get("description", "").startswith("Column of `obs`")]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Folder with the files of the configuration, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("cells.h5ad", "more.h5ad"):
        cells().write_h5ad(tmp_path / name)
    for name in ("design.yaml", "lineage.nwk"):
        (tmp_path / name).touch()
    return tmp_path


def message(config: dict) -> str:
    """Give the sentence in which a configuration is rejected."""
    with pytest.raises(WorkflowError) as error:
        planned_rules(config)
    [found] = re.findall("^Configuration.*$", str(error.value), flags=re.MULTILINE)
    return found


@pytest.mark.parametrize("key", named_columns())
def test_no_such_column_is_reported_before_any_job(folder, key):
    section, _, name = key.partition("/")
    several = key in ("respond/condition_key", "dataset/covariate_key")
    config = with_value(key, ["lane"] if several else "lane")
    mine = config["datasets"][MINE]
    del mine["transmute"], mine["respond"]["predictions"]  # whose types and conditions are not in the other column
    mine["respond"]["control"] = "0" if key == "respond/condition_key" else "ctrl"
    assert planned_rules(config)
    found = message(with_value(key, ["tpyo"] if several else "tpyo"))
    place = {"dataset": "", "addition": "extend.additions.more."}.get(section, f"{section}.")
    file = "more.h5ad" if section == "addition" else "cells.h5ad"
    assert found.startswith(f"Configuration, datasets.{MINE}.{place}{name}: {file}: obs has no column 'tpyo'; ")
    assert f"{name}" in found.partition(";")[2]
    assert "cell_type, term, batch, person, lane, condition)" in found
    assert ("`label_key: null`" in found) == (key == "dataset/label_key")


def test_columns_of_a_file_that_is_open_are_read(folder):
    with h5py.File(folder / "cells.h5ad"):
        assert n_cells_by_value(folder / "cells.h5ad", "cell_type") == {"A": 12, "B": 12, "C": 12}


def test_default_label_key_is_reported_as_well(folder):
    other = cells()
    other.obs = other.obs.rename(columns={"cell_type": "kind"})
    other.write_h5ad(folder / "cells.h5ad")
    assert "label_key: cells.h5ad: obs has no column 'cell_type'" in message(CONFIG)
    assert planned_rules(with_value("dataset/label_key", None))


@pytest.mark.parametrize("label_key", ["cell_type", "kind", None])
def test_additions_have_the_labels_of_the_data_or_the_usual_ones(folder, label_key):
    labelled = cells()
    labelled.obs["kind"] = labelled.obs["cell_type"]
    labelled.write_h5ad(folder / "cells.h5ad")
    config = with_value("addition/label_key", None, config=with_value("dataset/label_key", label_key))
    assert planned_rules(config)
    labelled.obs = labelled.obs.rename(columns={"cell_type": "type", "kind": "sort"})
    labelled.write_h5ad(folder / "more.h5ad")
    columns = "'kind' or 'cell_type'" if label_key == "kind" else "'cell_type'"
    assert f"extend.additions.more.label_key: more.h5ad: obs has no column {columns} " in message(config)


LABELS = {
    "labels.csv": "cell,kind\nc0,T\n",
    "labels.tsv": "kind\nc0\tT\n",  # as R writes it
    "labels.txt": '\ufeff\n"cell"\tkind\nc0\tT\n',
}


@pytest.mark.parametrize("labels", LABELS)
def test_columns_of_a_table_of_labels(folder, labels):
    (folder / labels).write_text(LABELS[labels])
    assert obs_columns(folder / "cells.h5ad", folder / labels) == [*cells().obs, "kind"]
    assert planned_rules(with_value("dataset/label_key", "kind", config=with_value("dataset/labels", labels)))


@pytest.mark.parametrize("text", ["", "cell,kind\n", "cell,kind,kind\nc0,T,T\n", "cell\nc0,T,1,2\n", "\xff"])
def test_unclear_tables_are_left_to_bdm_prepare(folder, text):
    (folder / "labels.csv").write_text(text, encoding="latin-1")
    assert obs_columns(folder / "cells.h5ad", folder / "labels.csv") is None


def test_cells_that_cannot_be_read_are_left_to_bdm_prepare(folder):
    for name, content in {"cells.h5ad": b"", "text.h5ad": b"no cells", "cells.loom": b""}.items():
        (folder / name).write_bytes(content)
        assert obs_columns(folder / name) is None
        assert n_cells_by_value(folder / name, "person") is None
    assert obs_columns(folder / "absent.h5ad") is None
    with h5py.File(folder / "no_obs.h5ad", "w") as file:
        file["X"] = 1
    assert obs_columns(folder / "no_obs.h5ad") is None
    assert planned_rules(with_value("dataset/label_key", "tpyo"))


@pytest.mark.parametrize("text", [MODULE, RULE], ids=["module", "rule"])
def test_cells_that_a_rule_may_make_anew(folder, text):
    config = with_value("dataset/donor_key", "new")
    write_config(folder, config)
    (folder / "Snakefile").write_text(text.format(root=ROOT, config=config))
    (folder / "script.py").touch()
    done = snakemake("--dry-run", f"results/{MINE}/prepared.h5ad", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_columns_are_those_that_are_read(folder):
    assert obs_columns(folder / "cells.h5ad") == list(read_cells(folder / "cells.h5ad").obs)
    no_columns = ad.AnnData(np.ones((2, 2)))
    no_columns.write_h5ad(folder / "none.h5ad")
    assert obs_columns(folder / "none.h5ad") == []


WRONG = {
    "transmutation/to": ("B cell", "transmute.transmutations.there.to: cells.h5ad has no type 'B cell'"),
    "transmutation/from": (["A", "b"], "transmute.transmutations.there.from: cells.h5ad has no type 'b'"),
    "addition/cell_types": (["D"], "extend.additions.more.cell_types: more.h5ad has no type 'D'; its types are A, B"),
    "respond/control": ("crtl", "respond.control: cells.h5ad: There is no condition 'crtl'; did you mean 'ctrl'?"),
    "prediction/condition": ("stm", "respond.predictions.those.condition: cells.h5ad: There is no condition 'stm'"),
    "prediction/cell_types": (["D"], "respond.predictions.those.cell_types: cells.h5ad has no type 'D'"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_name_that_the_cells_lack_is_reported_before_any_job(folder, key):
    value, sentence = WRONG[key]
    assert message(with_value(key, value)).startswith(f"Configuration, datasets.{MINE}.{sentence}")


def test_names_that_are_not_known_yet_are_no_mistakes(folder):
    for known in ("C", "C/2", "node 1"):  # a type, a sub-population and a clade, which are not known yet
        assert planned_rules(with_value("transmutation/to", known))


def test_the_control_has_to_be_known_and_conditions_of_several_columns_are_combined(folder):
    assert "respond.control: cells.h5ad: " in message(with_value("respond/condition_key", ["batch"]))
    crossed = with_value("respond/condition_key", ["condition", "lane"])
    crossed = with_value("respond/control", "ctrl, 0", config=crossed)
    assert planned_rules(with_value("prediction/condition", "stim, 3", config=crossed))
    found = message(with_value("prediction/condition", "stim, 9", config=crossed))
    assert "'stim, 9'; did you mean 'stim, " in found


RELATED = {  # by key of the section respond: its value, a condition that no cell has, and a misspelt one
    "condition_features": ("features.csv", "JAK2", "JAK3"),
    "combination_separator": ("+", "stim+ctrl", "stim+ctlr"),
    "dose_key": ("lane", "stim, 0.3", "stm, 0.3"),
}


@pytest.mark.parametrize("key", RELATED)
def test_related_conditions_that_no_cell_has_are_known(folder, key):
    value, condition, misspelt = RELATED[key]
    (folder / "features.csv").write_text("condition,kinase\nstim,0\nJAK2,1\n")
    config = with_value("prediction/condition", condition)
    assert "There is no condition" in message(config)
    config = with_value(f"respond/{key}", value, config=config)
    assert planned_rules(config)
    found = message(with_value("prediction/condition", misspelt, config=config))
    assert re.search("predictions.those.condition: cells.h5ad: There is no condition '.*'; did you mean '.*'", found)


def test_conditions_with_unreadable_features_are_left_to_bdm_respond(folder):
    (folder / "features.csv").write_bytes(b"\xff")
    config = with_value("respond/condition_features", "features.csv")
    assert planned_rules(with_value("prediction/condition", "JAK2", config=config))


def test_a_dose_needs_a_column_of_doses(folder):
    config = with_value("prediction/dose", 0.3)
    assert "respond.predictions.those.dose: dose is 0.3, but doses are not known" in message(config)
    config = with_value("respond/dose_key", "lane", config=config)
    assert planned_rules(config)
    assert "'stim' has no dose; name it by dose." in message(with_value("prediction/dose", None, config=config))
    control = with_value("prediction/condition", "ctrl", config=with_value("prediction/dose", None, config=config))
    assert planned_rules(control)  # which has none
    config = with_value("respond/combination_separator", "+", config=with_value("prediction/dose", None, config=config))
    assert planned_rules(with_value("prediction/condition", "stim+ctrl, 0.3+1", config=config))
    assert "has no dose" in message(with_value("prediction/condition", "stim+ctrl, 0.3+high", config=config))


@pytest.mark.parametrize(("key", "value"), [("prepare/leave_out", ["B"]), ("prepare/min_cells_per_type", 13)])
def test_a_type_that_is_left_out_is_no_type_to_transmute_to(folder, key, value):
    assert "transmute.transmutations.there.to: The cell type 'B' is left out" in message(with_value(key, value))


@pytest.mark.parametrize(
    "design",
    [
        "changes: [{name: up, in: [A, Bc], genes: [g], log2_fold_change: 1}]",
        "changes: [{name: up, in: Bc, genes: [g], log2_fold_change: 1}]",
        "composition: {shifts: [{condition: c, in: [Bc], log_odds: 1}]}",
        "composition: {proportions: {A: 0.5, Bc: 0.5}}",
        "samples: {cells: {A: 5, Bc: 5}}",
    ],
)
def test_a_type_in_a_design_is_reported_before_any_job(folder, design):
    (folder / "design.yaml").write_text(design)
    assert "simulate.designs.here: cells.h5ad has no type 'Bc'; did you mean 'B'?" in message(CONFIG)
    (folder / "design.yaml").write_text(design.replace("Bc", "B/2"))
    assert planned_rules(CONFIG)


def test_columns_with_two_meanings_are_reported_before_any_job(folder):
    found = message(with_value("dataset/batch_key", "cell_type"))
    assert "obs['cell_type'] is named by label_key and by batch_key" in found


def with_donors(column: pd.Series) -> ad.AnnData:
    found = cells()
    found.obs["person"] = column.set_axis(found.obs_names)
    return found


FIVE = pd.Series([f"p{i % 5}" for i in range(N_CELLS)])
COLUMNS = {
    "categories": FIVE.astype("category"),
    "unused categories": pd.Series(pd.Categorical(FIVE, categories=[f"p{i}" for i in range(9)])),
    "missing values": FIVE.where(FIVE.index > 0).astype("category"),
    "numbers": FIVE.str[1:].astype(int),
    "text": FIVE,
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_cells_are_counted_by_the_values_of_a_column(folder, column):
    with_donors(column).write_h5ad(folder / "cells.h5ad")
    if column is FIVE:  # text without categories, which anndata writes no more
        with h5py.File(folder / "cells.h5ad", "a") as file:
            del file["obs/person"]
            file["obs/person"] = list(FIVE)
            file["obs/person"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    expected = read_cells(folder / "cells.h5ad").obs["person"].dropna().astype(str).value_counts()
    assert n_cells_by_value(folder / "cells.h5ad", "person") == expected.to_dict()


def test_too_few_donors_are_warned_of_before_any_job(folder, caplog):
    with_donors(FIVE).write_h5ad(folder / "cells.h5ad")
    assert "audit" in planned_rules(CONFIG)[MINE]
    assert "audit.run: cells.h5ad: Cells are audited in place of donors, because an audit of donors" in caplog.text


def test_enough_donors_and_donors_of_a_table_are_left_to_bdm_audit(folder):
    assert planned_rules(CONFIG)
    with_donors(FIVE).write_h5ad(folder / "cells.h5ad")
    (folder / "labels.csv").write_text("cell,person\nc0,p0\n")
    assert planned_rules(with_value("dataset/labels", "labels.csv"))


def test_an_audit_that_will_be_inconclusive_is_warned_of(folder, caplog):
    with_donors(pd.Series([f"p{i % 9}" for i in range(N_CELLS)])).write_h5ad(folder / "cells.h5ad")
    assert planned_rules(CONFIG)
    assert "inconclusive" not in caplog.text
    assert planned_rules(with_value("audit/n_folds", 1))
    assert "audit.run: cells.h5ad: this audit will be inconclusive: 3 donors" in caplog.text
