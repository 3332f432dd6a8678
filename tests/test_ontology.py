"""The Cell Ontology as the tree: groups of types that overlap become a tree by the distances in the data."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from terms import TERMS

from bdm.api import BranchedDiffusion
from bdm.errors import InputError
from bdm.hierarchy.build import build_hierarchy
from bdm.hierarchy.files import load_hierarchy
from bdm.hierarchy.ontology import Taxonomy, cell_ontology, given_tree, ontology_parser
from bdm.latent.cells import encode, latent_cells
from bdm.settings import HierarchySettings

T_CELLS = {name for name in TERMS if name.startswith(("CD4+", "CD8+"))}


def squares(positions: list[float]) -> np.ndarray:
    """Squared distances of types on a line."""
    return np.subtract.outer(positions, positions) ** 2


def clades(tree, found=None) -> dict[frozenset[str], str | None]:
    """Names of the inner nodes of a tree, by the types below."""
    found = {} if found is None else found
    if tree.children:
        found[frozenset(tree.leaves())] = tree.name
    for child in tree.children:
        clades(child, found)
    return found


def obs_with(terms: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame({"cell_type": list(terms), "term": list(terms.values())}).astype("category")


# ---- groups that overlap


OVERLAPPING = Taxonomy({"x": frozenset("ab"), "y": frozenset("bcd"), "z": frozenset("cd"), "all": frozenset("abcde")})


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (1, {"ab": "x", "cd": "y", "abcde": "all"}),  # b is nearer to a than to c and d
        (9, {"bcd": "y", "cd": "z", "abcde": "all"}),
    ],
)
def test_of_several_parents_the_nearer_is_chosen(position, expected):
    tree = OVERLAPPING.resolved("abcde", squares([0, position, 10, 11, 30]))
    found = clades(tree)
    assert set(found) == {frozenset(types) for types in expected}
    assert sorted(tree.leaves()) == list("abcde")
    assert found[frozenset("abcde")] == "all"
    assert found[frozenset("cd")] in ("y", "z")
    assert ("x" in found.values()) == ("ab" in expected)


def test_groups_may_contain_other_types_and_names_may_be_taken():
    groups = Taxonomy({"a": frozenset("ab"), "same": frozenset("ab"), "other": frozenset("abx"), "x": frozenset("x")})
    found = clades(groups.resolved("abc", squares([0, 1, 2]), taken={"a", "b", "c"}))
    assert found == {frozenset("ab"): "a (term)", frozenset("abc"): None}


def test_types_without_groups_are_below_the_root():
    assert clades(Taxonomy({}).resolved("abc", squares([0, 1, 2]))) == {frozenset("abc"): None}
    assert Taxonomy({}).resolved("a", squares([0])).leaves() == ("a",)


# ---- the ontology


def test_terms_group_the_types_below_them():
    groups = cell_ontology(obs_with(TERMS), "term").groups
    assert groups["T cell"] == T_CELLS
    assert groups["lymphocyte"] == T_CELLS | {"CD19+ B", "CD56+ NK"}
    assert groups["leukocyte"] >= groups["lymphocyte"] | {"CD14+ Monocyte"}


def test_type_above_another_is_a_leaf_beside_it():
    terms = {"T": "CL:0000084", "CD8 T": "CL:0000625", "CD4 T": "CL:0000624", "B": "CL:0000236", "B too": "CL:0000236"}
    groups = cell_ontology(obs_with(terms), "term")
    tree = groups.resolved(sorted(terms), squares([0, 1, 10, 11, 12]), taken=terms)
    assert clades(tree)[frozenset({"T", "CD8 T", "CD4 T"})] == "T cell"
    assert clades(tree)[frozenset({"B", "B too"})] == "B cell"


def test_terms_may_be_given_by_name():
    parser = ontology_parser()
    by_name = {name: parser.get_term_label(term) for name, term in TERMS.items()}
    assert cell_ontology(obs_with(by_name), "term") == cell_ontology(obs_with(TERMS), "term")


@pytest.fixture(scope="module")
def latent(small_model):
    prepared = small_model.prepared.copy()
    prepared.obs["term"] = prepared.obs["cell_type"].astype(str).map(TERMS)
    return encode(prepared, small_model.model.autoencoder)


def test_hierarchy_has_the_terms_as_nodes_and_levels_from_the_cells(latent):
    taxonomy = cell_ontology(latent.obs, "term")
    built = build_hierarchy(latent_cells(latent), HierarchySettings(n_bootstrap=5), seed=0, tree=taxonomy)
    known = set(latent.obs["cell_type"])
    assert built.fault() is None
    name_of = {frozenset(built.types_below(branch.name)): branch.name for branch in built.branches}
    t_cell = name_of[frozenset(T_CELLS & known)]
    assert taxonomy.groups[t_cell] == T_CELLS & known
    assert name_of[frozenset(T_CELLS & known) | {"CD19+ B", "CD56+ NK"}] == "lymphocyte"
    assert built.given
    assert built.provenance | taxonomy.source == built.provenance
    levels = [built.by_name[name].level for name in (t_cell, "lymphocyte")]
    assert 0 < levels[0] <= levels[1] < built.sigma_max
    assert 0 <= built.by_name["lymphocyte"].support <= 1


def test_python_accepts_the_ontology(example_cells, small_settings):
    cells = example_cells.copy()
    cells.obs["term"] = cells.obs["bulk_labels"].astype(str).map(TERMS)
    settings = replace(small_settings, hierarchy=HierarchySettings(ontology_key="term"))
    model = BranchedDiffusion(cells, label_key="bulk_labels", tree="cell-ontology", settings=settings)
    assert model.tree.groups["T cell"] == T_CELLS & set(model.cell_types)
    with pytest.raises(InputError, match="give both or neither"):
        BranchedDiffusion(cells, label_key="bulk_labels", settings=settings)


# ---- command


@pytest.fixture(scope="module")
def folder(example_cells, tmp_path_factory):
    from bdm.cli import main

    folder = tmp_path_factory.mktemp("ontology")
    cells = example_cells.copy()
    cells.obs["term"] = cells.obs["bulk_labels"].astype(str).map(TERMS)
    cells.write_h5ad(folder / "cells.h5ad")
    prepare = f"prepare {folder}/cells.h5ad {folder}/prepared.h5ad --label-key bulk_labels --n-genes 100"
    train = f"autoencoder {folder}/prepared.h5ad {folder}/autoencoder --n-latent 4 --n-steps 20 --sub-populations none"
    with pytest.MonkeyPatch.context() as patch:
        for command in (prepare, train):
            patch.setattr(sys, "argv", ["bdm", *command.split()])
            with pytest.raises(SystemExit) as end:
                main()
            assert not end.value.code
    return folder


def test_command_compares_the_ontology_with_clustering(folder, bdm, caplog):
    options = ["--tree", "cell-ontology", "--ontology-key", "term", "--n-bootstrap", "5", "--comparison"]
    files = folder / "tree.json", folder / "comparison.csv"
    code, err = bdm("hierarchy", folder / "autoencoder", files[0], *options, files[1])
    assert code == 0, err
    hierarchy, table = load_hierarchy(files[0]), pd.read_csv(files[1])
    assert hierarchy.provenance["ontology_key"] == "term"
    nodes = table[table["in_tree"]].set_index("node")
    below_root = {branch.name for branch in hierarchy.branches[1:] if len(hierarchy.types_below(branch.name)) > 1}
    assert set(nodes.index) == below_root
    assert T_CELLS & set(hierarchy.cell_types) in [set(text.split("; ")) for text in nodes["cell_types"]]
    others = table[~table["in_tree"]]
    assert others["in_clustering"].all()
    assert others["node"].isna().all()
    n_found, n_against = int(nodes["in_clustering"].sum()), int(nodes["contradicted"].sum())
    assert f"agrees in {n_found} of the {len(nodes)} nodes" in caplog.text
    assert f"contradicts {n_against}" in caplog.text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--tree cell-ontology", "needs `--ontology-key`"),
        ("--ontology-key term", "give both or neither"),
        ("--tree cell-ontology --ontology-key none", "obs has no column 'none'"),
        ("--tree cell-ontology --ontology-key split", "several terms for the cell type"),
        ("--tree cell-ontology --ontology-key bulk_labels", "has no term 'CD14+ Monocyte'"),
        ("--comparison OUT.csv", "give the tree by `--tree`"),
    ],
)
def test_bad_input_is_one_sentence(folder, bdm, options, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, err = bdm("hierarchy", folder / "autoencoder", "OUT.json", *options.split())
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("absent", ["unknown", "na", ""])
def test_type_without_a_term_is_rejected(absent):
    with pytest.raises(InputError, match="has no term for the cell type CD34"):
        cell_ontology(obs_with(TERMS | {"CD34+": absent}), "term")


def test_term_that_was_replaced_is_rejected():
    parser = ontology_parser()
    old = next(
        term
        for term in parser.get_term_label_to_id_map("CL").values()
        if parser.is_term_deprecated(term) and parser.get_term_replacement(term)
    )
    with pytest.raises(InputError, match=f"no longer uses .*use {parser.get_term_replacement(old)}"):
        cell_ontology(obs_with(TERMS | {"CD34+": old}), "term")


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cellxgene_ontology_guide.ontology_parser", None)
    with pytest.raises(InputError, match="extra `ontology` of bdm; install it: pip install cellxgene-ontology-guide"):
        given_tree("cell-ontology", obs_with(TERMS), HierarchySettings(ontology_key="term"))
