"""Paths, columns and cell types that a shell would take for more reach the commands of the workflow as they are."""

import anndata
import pytest
from test_workflow import COMMANDS, ROOT, demo_config, shell_commands, snakemake, write_config

HACK = "$(touch hacked) `touch hacked`; touch hacked & 'it''s' \"é\" \\ * ~ | %s"
NAMES = {
    "path": f"{HACK}.h5ad",
    "labels": f"labels {HACK}.csv",
    "genes": f"genes {HACK}.txt",
    "keep_genes": f"kept {HACK}.txt",
    "tree": f"tree {HACK}.nwk",
    "addition": f"more {HACK}.h5ad",
    "design": f"design {HACK}.yaml",
}


def config() -> dict:
    """Configuration in which all that is free to choose is odd."""
    mine = {
        "path": NAMES["path"],
        "label_key": f"type {HACK}",
        "batch_key": f"--batch {HACK}",
        "labels": NAMES["labels"],
        "counts": f"counts {HACK}",
        "prepare": {"genes": NAMES["genes"], "keep_genes": NAMES["keep_genes"], "leave_out": [HACK, "--help"]},
        "hierarchy": {"tree": NAMES["tree"]},
        "transmute": {"transmutations": {"odd": {"to": HACK, "from": ["--to", "-", " ", HACK]}}},
        "simulate": {"designs": {"odd": {"path": NAMES["design"]}}},
        "extend": {"additions": {"more": {"path": NAMES["addition"], "cell_types": [HACK, "--x"], "label_key": HACK}}},
    }
    return demo_config(datasets={"mine": mine})


def test_commands_get_odd_values_as_they_are(tmp_path):
    for name in NAMES.values():
        (tmp_path / name).touch()
    write_config(tmp_path, config())
    plan = ("--snakefile", ROOT / "Snakefile", "--dry-run", "--printshellcmds")
    done = snakemake(*plan, "all", "results/mine/power/odd", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    values = {}
    for _, name, *arguments in shell_commands(done.stdout):
        context = COMMANDS[name].make_context(name, arguments)
        if not context.params.get("flat"):  # its tree is none of the data's
            values[name] = context.params
    mine = config()["datasets"]["mine"]
    found = values["prepare"]
    assert str(found["data"]) == NAMES["path"]
    for key in ("label_key", "batch_key", "labels", "counts"):
        assert str(found[key]) == mine[key]
    assert list(found["leave_out"]) == mine["prepare"]["leave_out"]
    assert found["genes"] == NAMES["genes"]
    assert str(found["keep_genes"]) == NAMES["keep_genes"]
    assert str(values["hierarchy"]["tree"]) == NAMES["tree"]
    transmutation = mine["transmute"]["transmutations"]["odd"]
    assert (values["transmute"]["to"], list(values["transmute"]["from_"])) == (
        transmutation["to"],
        transmutation["from"],
    )
    assert str(values["extend"]["cells"]) == NAMES["addition"]
    assert str(values["simulate"]["design"]) == str(values["power"]["design"]) == NAMES["design"]
    assert list(values["extend"]["cell_type"]) == [HACK, "--x"]
    assert values["extend"]["label_key"] == HACK
    assert not (tmp_path / "hacked").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_rule_runs_on_odd_values(example_cells, tmp_path):
    cells = example_cells.copy()
    cells.obs[HACK] = cells.obs["bulk_labels"].astype(str).replace({"Dendritic": HACK, "CD34+": "line\nbreak"})
    cells.write_h5ad(tmp_path / NAMES["path"])
    mine = {"path": NAMES["path"], "label_key": HACK, "prepare": {"leave_out": [HACK, "line\nbreak"], "n_genes": 100}}
    write_config(tmp_path, demo_config(datasets={"mine": mine}))
    made = "results/mine/prepared.h5ad"
    done = snakemake("--snakefile", ROOT / "Snakefile", "--cores", "1", made, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = set(anndata.read_h5ad(tmp_path / made).obs["cell_type"])
    assert found
    assert found.isdisjoint({HACK, "line\nbreak"})
    assert not (tmp_path / "hacked").exists()
