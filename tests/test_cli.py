import ast
import logging
import os
import re
import shlex
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.main import get_command

import bdm
from bdm import cli
from bdm._core.errors import ARGUMENT, OPTIONS_FOR_NONE, as_keys, as_options
from bdm._core.files import sha256
from bdm._core.store import checksum_of, load
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.cli import app, main
from bdm.data.prepare import preparation
from bdm.hierarchy.files import load_hierarchy, read_tree, save_hierarchy
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.model.model import load_model

COMMANDS = get_command(app).commands


def files(folder) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


# ---- help


def test_help_is_quick_and_lists_all_commands_by_panel():
    code = (
        "import sys; sys.argv = ['bdm', '--help']\n"
        "from bdm.cli import main\n"
        "try: main()\n"
        "finally: print('loaded:', *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown, _, loaded = done.stdout.partition("loaded:")
    assert not {"numpy", "torch", "tqdm"} & set(loaded.split())  # large packages import one of them
    rows = re.findall(r"^╭─ ([^─]+) ─|^│ ([a-z]\S*) ", shown, flags=re.MULTILINE)
    expected = []
    for panel, commands in cli.COMMANDS.items():
        expected += [panel, *(command.__name__.replace("_", "-") for command in commands)]
    assert [panel or name for panel, name in rows[1:]] == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_defaults_and_an_example(name, bdm, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["bdm", name, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "--quiet" in shown
    examples = re.findall(r"Example: bdm (.*)", COMMANDS[name].help)
    assert examples
    for command, *words in map(shlex.split, examples):
        COMMANDS[command].make_context(command, words)  # raises if it does not understand them
    for parameter in COMMANDS[name].params:
        if parameter.name != "help":
            assert parameter.help, parameter.name
        if parameter.default not in (None, False) and not callable(parameter.default):
            assert re.search(rf"default: {re.escape(str(parameter.default))}\b", shown), parameter.name


def test_version_is_that_of_the_package(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bdm", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert capsys.readouterr().out == f"bdm {version('bdm')}\n"


# ---- the whole way

PREPARE = ("--label-key", "bulk_labels", "--n-genes", 100, "--keep-genes", "none", "--test", 0.2, "--seed", 3)
DRAWN = ("--newick", "tree.nwk", "--figure", "tree.png", "--table", "tree.csv")
STEPS = (
    ("example", "cells.h5ad"),
    ("prepare", "cells.h5ad", "prepared.h5ad", *PREPARE),
    ("autoencoder", "prepared.h5ad", "autoencoder", "--n-latent", 4, "--n-steps", 30, "--seed", 3),
    ("hierarchy", "autoencoder", "tree.json", *DRAWN, "--n-bootstrap", 5),
    ("train", "autoencoder", "tree.json", "model", "--prior", "diffusion", "--width", 16, "--n-steps", 30, "--seed", 3),
    ("generate", "model", "generated.h5ad", "--cells", 4, "--seed", 3),
    ("transmute", "model", "prepared.h5ad", "transmuted.h5ad", "--to", "CD56+ NK", "--from", "CD19+ B", "--seed", 3),
    ("evaluate-transmuted", "prepared.h5ad", "transmuted.h5ad", "transmutation", "--seed", 3),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder in which all steps ran."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for step in STEPS:
            patch.setattr(sys, "argv", ["bdm", *map(str, step)])
            with pytest.raises(SystemExit) as end:
                main()
            assert not end.value.code
    return folder


def test_outputs_are_complete(made):
    assert {path.name for path in made.iterdir()} == {
        "cells.h5ad", "prepared.h5ad", "autoencoder", "tree.json", *DRAWN[1::2], "model", "generated.h5ad",
        "transmuted.h5ad", "transmutation",
    }  # fmt: skip
    names = {
        "autoencoder.json", "autoencoder.safetensors", "effects.json", "effects.safetensors", "latent.h5ad",
        "training.csv",
    }  # fmt: skip
    assert {path.name for path in (made / "autoencoder").iterdir()} == names
    assert list(pd.read_csv(made / "autoencoder" / "training.csv")) == ["round", "step", "loss", "validation"]
    assert list(pd.read_csv(made / "model" / "training.csv")) == ["step", "loss", "validation"]
    decision = pd.read_csv(made / "model" / "decision.csv")
    assert list(decision) == ["n_cells", "closed_form", "network", "gain", "kept"]
    hierarchy = load_hierarchy(made / "tree.json")
    assert sorted(read_tree(made / "tree.nwk").leaves()) == sorted(hierarchy.populations)


def test_record_leads_back_to_the_data(made):
    for name in ("generated", "transmuted"):
        record = anndata.read_h5ad(made / f"{name}.h5ad").uns["bdm"]
        assert record["data_sha256"] == sha256(made / "cells.h5ad")
        assert record["model_sha256"] == checksum_of(made / "model", "model")
        assert record["seed"] == 3
    trained = load(made / "autoencoder", "autoencoder", GeneAutoencoder)
    assert trained.provenance["prepared_sha256"] == sha256(made / "prepared.h5ad")


def test_model_of_prepared_cells_is_of_the_same_data(made, bdm, tmp_path):
    """As an audit of these cells is, and a card compares the two."""
    options = ("--label-key", "bulk_labels", "--sub-populations", "none", "--n-latent", 2, "--autoencoder-n-steps", 1)
    assert bdm("fit", made / "prepared.h5ad", tmp_path / "model", *options, "--n-bootstrap", 0)[0] == 0
    prepared = preparation(anndata.read_h5ad(made / "prepared.h5ad"))
    assert load_model(tmp_path / "model").autoencoder.provenance["data_sha256"] == prepared["data_sha256"]


@pytest.mark.parametrize("shared", [[], ["--shared-ancestors"]])
def test_cells_like_and_from(made, bdm, tmp_path, shared):
    prepared = anndata.read_h5ad(made / "prepared.h5ad")[::5].copy()
    prepared.write_h5ad(tmp_path / "like.h5ad")
    numbers = prepared.obs["cell_type"].value_counts()
    numbers.rename_axis("cell_type").rename("n_cells").reset_index().to_csv(tmp_path / "from.csv", index=False)
    out = tmp_path / "out.h5ad"
    found = []
    by_type = [word for name, number in numbers.items() for word in ("--cells", f"{name}={number}")]
    for option in (("--cells-like", tmp_path / "like.h5ad"), ("--cells-from", tmp_path / "from.csv"), by_type):
        assert bdm("generate", made / "model", out, *option, *shared, "--force") == (0, "")
        found.append(anndata.read_h5ad(out))
        assert found[-1].obs["cell_type"].value_counts()[numbers.index].tolist() == numbers.tolist()
    assert all((other.X != found[0].X).nnz == 0 for other in found[1:])


# ---- training that goes wrong


@pytest.mark.parametrize("step", [STEPS[2], STEPS[4]], ids=lambda step: step[0])
def test_lower_learning_rate_helps_training_that_diverged(made, tmp_path, bdm, monkeypatch, step):
    monkeypatch.chdir(made)
    name, *arguments = step
    again = [name, *(tmp_path / "out" if word == name.replace("train", "model") else word for word in arguments)]
    code, output = bdm(*again, "--learning-rate", 1000)
    assert (code, "or a learning rate below 1000" in output) == (1, True), output
    assert not (tmp_path / "out").exists()
    assert bdm(*again, "--learning-rate", 0.001)[0] == 0
    assert (tmp_path / "out").exists()


# ---- what is shown


def rows(output: str) -> dict[str, str]:
    """Rows of a summary by their first word."""
    found = re.findall(r"^(\w+)( {2,})(.*)$", output, flags=re.MULTILINE)
    assert len({len(name + space) for name, space, _ in found}) == 1, output
    return {name: value for name, _, value in found}


def test_summary_shows_the_output_and_the_next_command(made, tmp_path, bdm, caplog):
    out = tmp_path / "two words.h5ad"
    assert bdm("generate", made / "model", out, "--cells", 3)[0] == 0
    output = rows(caplog.messages[-1])
    assert output["wrote"] == str(out)
    assert output["cells"] == "27 of 9 types x 100 genes"
    assert re.fullmatch(r"\d+ s, \d+\.\d GB of memory at most", output["took"])
    assert "next" not in output  # as there are no test cells that it knows of
    caplog.clear()
    assert bdm("generate", made / "model", out, "--cells-like", made / "prepared.h5ad", "--force")[0] == 0
    assert rows(caplog.messages[-1])["next"] == f"bdm evaluate {made}/prepared.h5ad '{out}' evaluation/"
    caplog.clear()
    anndata.read_h5ad(made / "prepared.h5ad")[:, ::-1].write_h5ad(tmp_path / "other.h5ad")
    assert bdm("generate", made / "model", out, "--cells-like", tmp_path / "other.h5ad", "--force")[0] == 0
    assert "next" not in rows(caplog.messages[-1])  # as the model was not fitted on these


def test_what_is_next_is_a_command_that_runs(made, tmp_path, bdm, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--n-steps", 2)
    for out, *step in (
        ("cells.h5ad", "example", "cells.h5ad"),
        ("prepared.h5ad", "prepare", "cells.h5ad", "prepared.h5ad", *PREPARE),
        ("autoencoder", "autoencoder", "prepared.h5ad", "autoencoder", "--n-latent", 2, *small, "--shared-decoder"),
        ("tree.json, tree.nwk", "hierarchy", "autoencoder", "tree.json", "--newick", "tree.nwk", "--n-bootstrap", 0),
        ("model", "train", "autoencoder", "tree.json", "model", "--width", 8, "--n-layers", 1, *small),
        ("transmuted.h5ad", *STEPS[6][:-2]),
    ):
        caplog.clear()
        assert bdm(*step, "--force") == (0, "")  # a next command may have written it
        output = rows(caplog.messages[-1])
        assert output["wrote"] == out
        program, command, *words = shlex.split(output["next"])
        assert program == "bdm"
        COMMANDS[command].make_context(command, [*words])  # raises if it does not understand them
        if command not in ("fit", "autoencoder"):  # which take minutes
            assert bdm(command, *words) == (0, "")


@pytest.fixture
def printed(bdm, monkeypatch):
    """Run a command whose messages go to stderr, as in a process of its own: pytest has none of them."""

    def run(*arguments) -> list[str]:
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            patch.setattr(logging.root, "handlers", [])
            for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)  # as Python does, and pytest does not
            code, shown = bdm(*arguments)
        assert code == 0, shown
        assert [str(warning.message) for warning in caught] == []
        return shown.splitlines()

    return run


def test_quiet_prints_nothing_but_warnings(made, printed, tmp_path):
    assert printed("generate", made / "model", tmp_path / "new.h5ad", "--cells", "Dendritic=3", "-q") == []
    assert (tmp_path / "new.h5ad").exists()
    few = ("--min-cells-per-type", 20)
    shown = printed("prepare", made / "cells.h5ad", tmp_path / "prepared.h5ad", *PREPARE, *few, "--quiet")
    assert shown
    assert all(line.startswith("Left out type ") for line in shown)


def test_verbose_prints_versions_options_and_times(made, printed, tmp_path):
    step = ("train", made / "autoencoder", made / "tree.json", tmp_path / "model", "--prior=diffusion", "--n-steps", 2)
    first, *others = printed(*step, "-v")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} bdm ", first)
    assert f"torch {version('torch')}" in first
    assert first.endswith(" threads")
    shown = "\n".join(others)
    assert re.search(r" n_steps: 2$", shown, flags=re.MULTILINE)
    assert re.search(r" step 2, loss ", shown)


def test_bash_completes_options():
    code = "import sys; sys.argv = ['bdm']; from bdm.cli import main; main()"
    words = {"_BDM_COMPLETE": "complete_bash", "COMP_WORDS": "bdm generate --sh", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True)
    assert done.stdout.split() == ["--shared-ancestors"]


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyError("x"), 1, f"fault of bdm {version('bdm')} (KeyError)"),
        (MemoryError(), 1, "not enough memory"),
        (KeyboardInterrupt(), 130, "Stopped"),
    ],
)
def test_errors_end_with_one_sentence_and_faults_of_bdm_with_a_traceback(bdm, monkeypatch, error, code, sentence):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("bdm.data.read.pbmc68k_counts", fail)
    found, err = bdm("example", "out.h5ad")
    assert found == code
    *before, last = err.strip().splitlines()
    assert last.startswith("bdm: ")
    assert sentence in last
    assert ("in fail" in err) == isinstance(error, KeyError) == bool(before)


# ---- bad input


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("name one by `label_key=`", "name one by `--label-key`"),
        ("give `counts='raw umi'`; or `from_=`", "give `--counts 'raw umi'`; or `--from`"),
        ("take them as 0 by `missing_as_zero=True`", "take them as 0 by `--missing-as-zero`"),
        ("leave them out by `min_genes_per_cell=1`", "leave them out by `--min-genes-per-cell 1`"),
        ("use no labels, by `label_key=None`", "use no labels, by `--no-labels`"),
        ("the layer `a=b` and `c='", "the layer `a=b` and `c='"),
        ("give `adata_test=`", "give `--test-cells`"),
        ("use `settings.prepare.clip_outliers=True`", "use `--clip-outliers`"),
    ],
)
def test_messages_name_options_on_the_command_line(message, expected):
    assert as_options(message) == expected


def test_messages_name_keys_in_the_report():
    message = "use `settings.prepare.clip_outliers=True`, `keep_genes='markers'`, `leave_out=` or `modality=a={b}`"
    assert as_keys(message) == 'use `clip_outliers: true`, `keep_genes: "markers"`, `leave_out` or `modality=a={b}`'


def test_options_that_messages_name_exist():
    options = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    options |= {f"--{name}" for name in OPTIONS_FOR_NONE.values()}
    only_in_python = {"`--conditions`", "`--n-threads`", "`--pair-key`", "`--settings`"}
    modules = [ast.parse(module.read_text()) for module in Path(bdm.__file__).parent.rglob("*.py")]
    texts = [node.value for code in modules for node in ast.walk(code) if isinstance(node, ast.Constant)]
    sentences = [text for text in texts if isinstance(text, str) and "\n" not in text]  # without long docstrings
    named = {
        as_options(found[0].replace("%d", "1")) for text in sentences for found in ARGUMENT.finditer(text)
    } - only_in_python
    assert len(named) > 20
    assert [shown for shown in named if shown.strip("`").split()[0] not in options] == []


BAD = [
    ("autoencoder none.h5ad OUT", "none.h5ad"),
    ("autoencoder cells.h5ad OUT", "bdm prepare"),
    ("autoencoder prepared.h5ad model --force", "other content"),
    ("hierarchy model OUT.json", "latent.h5ad"),
    ("hierarchy autoencoder OUT.json --newick OUT.nwk --figure OUT.xyz", "OUT.xyz"),
    ("train autoencoder small.json OUT", "have different populations"),
    ("generate autoencoder OUT.h5ad --cells 1", "model.json"),
    ("generate model OUT.h5ad", "--cells-like"),
    ("generate model OUT.h5ad --cells 1 --cells-like cells.h5ad", "--cells-like"),
    ("generate model OUT.h5ad --cells many", "--cells many is not of the form"),
    ("generate model OUT.h5ad --cells =3", "--cells =3 is not of the form"),
    ("generate model OUT.h5ad --cells 1 --cells Dendritic=3", "one number for all"),
    ("generate model OUT.h5ad --cells Dendritic=1 --cells Dendritic=3", "once for each"),
    ("generate model OUT.h5ad --cells Dendritik=3", "'Dendritic'?"),
    ("generate model OUT.h5ad --cells 1 --label-key x", "--label-key names a column of"),
    ("generate model OUT.h5ad --cells-like generated_without.h5ad", "`--label-key`"),
    ("prepare cells.h5ad cells.h5ad", "would be read and overwritten"),
    ("extend model new.h5ad OUT --joined OUT/joined.h5ad", "OUT/joined.h5ad is in OUT, which is replaced"),
    ("prepare cells.h5ad kept/genes.txt --keep-genes kept/genes.txt", "would be read and overwritten"),
    ("train autoencoder model/tree.json model", "tree.json is in model, which is replaced"),
    ("evaluate-transmuted prepared.h5ad generated.h5ad OUT", "'original_type'"),
    ("evaluate-transmuted prepared.h5ad transmuted.h5ad OUT --compare x=elsewhere.h5ad", "different types"),
    ("evaluate-transmuted prepared.h5ad two.h5ad OUT", "2 types"),
    ("evaluate-transmuted prepared.h5ad transmuted.h5ad OUT --compare unchanged=transmuted.h5ad", "taken"),
    ("extend model prepared.h5ad OUT", "No new cell type"),
    ("extend model prepared.h5ad OUT --cell-type T-800", "0 cells of type 'T-800'"),
    ("prepare cells.h5ad OUT.h5ad --label-key bulk_labels --leave-out T-800", "no cell type 'T-800' to leave out"),
    ("hierarchy autoencoder OUT.json --newick OUT.json", "Two outputs"),
    ("extend model prepared.h5ad OUT --cell-type Dendritic", "already has the type 'Dendritic'"),
    ("extend model new.h5ad OUT --label-key new --known few_genes.h5ad", "of the model's genes"),
    ("example " + 300 * "x" + ".h5ad", "Cannot write"),
    ("hierarchy autoencoder tree.json", "tree.json exists; name another output, or replace it by `--force`."),
    ("hierarchy autoencoder OUT.json --newick tree.nwk", "tree.nwk exists"),
    ("generate model OUT.h5 --cells 3", "OUT.h5 does not end in .h5ad or .h5mu"),
]


@pytest.fixture(scope="module")
def inputs(made):
    """The folder of all steps, with wrong inputs beside."""
    cells = anndata.read_h5ad(made / "generated.h5ad")
    del cells.obs["cell_type"], cells.obs["bulk_labels"]
    cells.write_h5ad(made / "generated_without.h5ad")
    new = anndata.read_h5ad(made / "prepared.h5ad")
    new.obs["new"] = np.where(new.obs["cell_type"] == "Dendritic", "new", "CD19+ B")
    new.write_h5ad(made / "new.h5ad")
    new[:, :50].write_h5ad(made / "few_genes.h5ad")
    (made / "kept").mkdir()
    (made / "kept/genes.txt").write_text("\n".join(new.var_names))
    transmuted = anndata.read_h5ad(made / "transmuted.h5ad")
    transmuted.obs["cell_type"] = "Dendritic"
    transmuted.write_h5ad(made / "elsewhere.h5ad")
    transmuted.obs["cell_type"] = np.where(np.arange(transmuted.n_obs) % 2 == 0, "Dendritic", "CD56+ NK")
    transmuted.write_h5ad(made / "two.h5ad")
    branches = (Branch("r", None, 1.0, 2), Branch("a", "r", 0.0, 1), Branch("b", "r", 0.0, 1))
    save_hierarchy(made / "small.json", Hierarchy(branches, sigma_max=9.0, threshold=0.9))
    return made


@pytest.mark.parametrize(("command", "expected"), BAD)
def test_bad_input_ends_with_one_sentence_and_leaves_nothing(inputs, bdm, monkeypatch, command, expected):
    monkeypatch.chdir(inputs)
    before = files(inputs)
    code, err = bdm(*command.split())
    assert code == 2
    assert "Traceback" not in err
    assert err.count("bdm: ") == 1
    assert expected in err.strip().splitlines()[-1].partition("bdm: ")[2]
    assert files(inputs) == before
    assert not [path.name for path in inputs.iterdir() if path.name.startswith((".", "OUT"))]
