"""Labels that nobody would wish for go through all commands, and come out of each unchanged."""

import json
from pathlib import Path
from xml.etree import ElementTree

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from hostile import command
from scipy import sparse

from bdm.hierarchy.files import from_newick

N_CELLS, N_GENES = 20, 30


def cells_of(labels: list[str], genes: list[str], *, seed: int = 0) -> AnnData:
    """Cells of each type with counts of their own."""
    rng = np.random.default_rng(seed)
    programmes = rng.gamma(1, 3, (len(labels), len(genes))) + 0.1
    obs = pd.DataFrame({"type": np.repeat(np.array(labels, dtype=object), N_CELLS)})
    counts = rng.poisson(programmes.repeat(N_CELLS, axis=0))
    obs.index = [f"cell{seed}-{i}" for i in range(len(obs))]
    return AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=pd.DataFrame(index=genes))


def bdm(*arguments: object) -> None:
    """Run a command that must succeed."""
    code, messages = command(*map(str, arguments))
    assert code == 0, (arguments, messages)
    assert "Traceback" not in messages


def column(path: Path, name: str) -> set[str]:
    """Return the values of a column, without the apostrophe before names that look like formulas."""
    names = pd.read_csv(path, dtype=str, keep_default_na=False)[name]
    assert not names.str.match(r"[=+\-@]").any()
    return set(names.str.replace(r"^'(?=[=+\-@])", "", regex=True))


def check_hierarchy(folder: Path, labels: list[str]) -> list[str]:
    """Compare all forms of the tree, and give the names of its branches."""
    branches = json.loads((folder / "hierarchy.json").read_text())["branches"]
    names = [branch["name"] for branch in branches]
    parents = {branch["parent"] for branch in branches}
    assert {name for name in names if name not in parents} == set(labels)
    assert set(from_newick((folder / "hierarchy.nwk").read_bytes().decode()).leaves()) == set(labels)
    bdm("hierarchy", folder / "autoencoder", folder / "again.json", "--tree", folder / "hierarchy.nwk")
    assert column(folder / "hierarchy.csv", "branch") == set(names)
    ElementTree.parse(folder / "hierarchy.svg")
    return names


def check_interpretation(folder: Path, names: list[str], labels: list[str], genes: list[str]) -> None:
    assert column(folder / "markers.csv", "cell_type") == set(labels)
    assert column(folder / "branch_genes.csv", "child") <= set(names)
    assert column(folder / "branch_genes.csv", "gene") <= set(genes)
    branches = anndata.read_h5ad(folder / "branches.h5ad")
    assert list(branches.obs["branch"]) == names
    assert list(branches.var_names) == genes
    groups = branches.uns["rank_genes_groups"]["names"].dtype.names
    assert set(groups) == set(names[1:])
    for group in groups:
        assert set(sc.get.rank_genes_groups_df(branches, group)["names"]) == set(genes)


FORMS = {"newick": ".nwk", "figure": ".svg", "table": ".csv"}
WORST = [
    "../$\\frac{$", "$x^2$ \n\t'\"", " ", "\u00a0", "all", "node 1", "NA", "1.0", "a,b;[c](d:1)'",
    "</script><script>alert(1)</script><b>", "--help `touch hacked` $(touch hacked)", "\u202e界" * 150, "_",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_worst_labels_and_genes_go_all_the_way(tmp_path):
    """Through all commands, which have the types in all that they write."""
    folder, (*labels, new) = tmp_path, WORST
    genes = list(dict.fromkeys([*WORST[::-1], *(f"gene {i}" for i in range(N_GENES - len(WORST)))]))
    data, prepared = folder / "it's data.h5ad", folder / "prepared.h5ad"
    cells_of(labels, genes).write_h5ad(data)
    bdm("prepare", data, prepared, "--label-key=type", "--genes=all", "--test=0.3")
    assert list(anndata.read_h5ad(prepared).obs["cell_type"]) == list(anndata.read_h5ad(data).obs["type"])

    encoded, tree, model = folder / "autoencoder", folder / "hierarchy.json", folder / "model"
    bdm("autoencoder", prepared, encoded, "--n-latent=3", "--n-steps=20")
    written = [f"--{name}={tree.with_suffix(end)}" for name, end in FORMS.items()]
    bdm("hierarchy", encoded, tree, *written, "--n-bootstrap=3")
    names = check_hierarchy(folder, labels)
    bdm("train", encoded, tree, model, "--width=8", "--n-layers=1", "--n-steps=5")

    generated = folder / "generated.h5ad"
    bdm("generate", model, generated, "--cells=5")
    assert dict(anndata.read_h5ad(generated).obs["cell_type"].value_counts()) == dict.fromkeys(labels, 5)
    pd.DataFrame({"cell_type": labels, "n_cells": 1}).to_csv(folder / "asked.csv", index=False)
    bdm("generate", model, folder / "each.h5ad", f"--cells-from={folder / 'asked.csv'}")
    assert set(anndata.read_h5ad(folder / "each.h5ad").obs["cell_type"]) == set(labels)

    bdm("evaluate", prepared, generated, folder / "evaluation", "--n-repeats=1")
    assert column(folder / "evaluation/scores.csv", "group") == {*labels, "all"}
    bdm("interpret", model, prepared, generated, folder / "interpretation", "--n-genes=3")
    check_interpretation(folder / "interpretation", names, labels, genes)

    moved = folder / "moved.h5ad"
    bdm("transmute", model, prepared, moved, f"--to={labels[0]}", f"--from={labels[1]}")
    assert set(anndata.read_h5ad(moved).obs["cell_type"]) == {labels[0]}
    assert set(anndata.read_h5ad(moved).obs["original_type"]) == {labels[1]}
    bdm("evaluate-transmuted", prepared, moved, folder / "transmutation")
    assert labels[1] in column(folder / "transmutation/scores.csv", "group")

    more, extended = folder / "more.h5ad", folder / "extended"
    cells_of([new], genes, seed=1).write_h5ad(more)
    report = folder / "report"
    bdm("extend", model, more, extended, f"--cell-type={new}", "--label-key=type", f"--report={report}")
    assert column(report / "extensions.csv", "cell_type") == {new}
    bdm("generate", extended, folder / "new.h5ad", "--cells=1")
    assert set(anndata.read_h5ad(folder / "new.h5ad").obs["cell_type"]) == {*labels, new}
