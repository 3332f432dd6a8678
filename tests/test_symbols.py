"""Genes that are named by identifiers are shown by their symbols, all the way from the data to the report."""

import re
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.figure import Figure
from matplotlib.text import Text

import bdm
from bdm import pl, tl
from bdm.api import BranchedDiffusion
from bdm.cli import app
from bdm.interpretation.interpretation import Interpretation
from bdm.model.model import type_specific_genes
from bdm.pl import FIGURES
from bdm.plotting.style import figure_of
from bdm.report.page import report_page
from bdm.report.summaries import nodes, read_results

B, NK, MONOCYTE, DENDRITIC = "CD19+ B", "CD56+ NK", "CD14+ Monocyte", "Dendritic"
ID = "ENSG"


@pytest.fixture(scope="module")
def cells(example_cells) -> AnnData:
    """Cells whose genes are named by identifiers; two genes share a symbol, and one has none."""
    cells = example_cells[example_cells.obs["bulk_labels"].isin([B, NK, MONOCYTE, DENDRITIC])].copy()
    symbols = cells.var_names.to_series().mask(cells.var_names == "NKG7").replace({"CD79B": "CD79A"})
    cells.var = symbols.astype("category").to_frame("feature_name")
    cells.var_names = [f"{ID}{i:011}" for i in range(cells.n_vars)]
    return cells


@pytest.fixture(scope="module")
def labels(cells) -> pd.Series:
    """What genes are shown as."""
    names = cells.var_names.to_series()
    found = cells.var["feature_name"].astype(object).fillna(names)
    return found.where(found != "CD79A", found + " (" + names + ")")


@pytest.fixture(scope="module")
def model(cells, small_settings) -> BranchedDiffusion:
    model = BranchedDiffusion(cells[::2].copy(), label_key="bulk_labels", settings=small_settings).fit()
    model.interpret()
    return model


def words(figure: Figure) -> str:
    """All that is written in a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def unexplained(text: str, labels: pd.Series) -> list[str]:
    """Identifiers that stand in a text alone, though the gene has a symbol."""
    return [word for word in re.split(r"[\s,;]+", text) if word.startswith(ID) and word not in set(labels)]


@pytest.mark.parametrize("name", FIGURES[Interpretation])
def test_figures_of_an_interpretation_show_symbols(model, labels, name):
    text = words(figure_of(FIGURES[Interpretation][name](model.interpretation)))
    assert not unexplained(text, labels)
    if name != "agreement":
        assert any(label in text.split() for label in labels)


def test_figures_in_python_show_symbols(model, labels):
    axis = pl.branch_genes(model, B, ax=plt.figure().add_subplot())
    left = pl.markers(model)[0]
    for ticks in (axis.get_yticklabels(), left.get_xticklabels()):
        assert ticks
        assert {label.get_text() for label in ticks} <= set(labels)


def test_genes_of_a_transmutation_show_symbols(model, cells, labels):
    moved = model.transmute(cells, to=DENDRITIC, from_=[B])
    assert list(moved.var["feature_name"].dropna()) == list(model.model.autoencoder.genes["feature_name"].dropna())
    [axis] = pl.transmutation_genes(model.evaluate_transmuted(cells, moved, adata_test=cells[1::2]))
    named = {text.get_text() for text in axis.texts}
    assert named
    assert not unexplained(" ".join(named), labels)


def test_genes_of_adapters_have_symbols(model, labels):
    table = type_specific_genes(model.model, B)
    assert list(table["symbol"]) == list(labels[table.index])


@pytest.mark.parametrize("column", ["gene_symbol", None])
def test_responses_show_symbols_or_a_message_says_how(cells, labels, caplog, column):
    caplog.set_level("INFO")
    treated, is_stim = cells.copy(), np.arange(cells.n_obs) % 2 == 0
    treated.var = treated.var[[]] if column is None else treated.var.rename(columns={"feature_name": column})
    treated.obs["condition"] = np.where(is_stim, "stim", "ctrl")
    responses = tl.respond(treated, tl.ResponseSettings(label_key="bulk_labels"))
    text = words(figure_of(pl.response(responses)))
    has_symbols = column is not None
    assert bool(unexplained(text, labels)) != has_symbols
    assert ("symbol" in responses.branches("stim")) == ("symbol" in responses.effects("stim")) == has_symbols
    assert ("Genes are shown as identifiers (ENSG" in caplog.text) != has_symbols


def run(*arguments: str | Path) -> None:
    app([*map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def folder(cells, tmp_path_factory) -> Path:
    """Results of all commands, of three types, to which the fourth is added."""
    folder = tmp_path_factory.mktemp("ids")
    cells.write_h5ad(folder / "cells.h5ad")
    (folder / "genes.txt").write_text("\n".join(cells.var["feature_name"].dropna().unique()[:150]) + "\nCD79A\nLYZ\n")
    prepared, model, generated = (folder / name for name in ("prepared.h5ad", "model", "generated.h5ad"))
    keys = ("--label-key", "bulk_labels", "--leave-out", B)
    (folder / "keep.txt").write_text("\n".join(cells.var["feature_name"].dropna().unique()[150:250]))
    genes = ("--genes", folder / "genes.txt", "--keep-genes", folder / "keep.txt")
    run("prepare", folder / "cells.h5ad", prepared, *keys, "--test", 0.2, *genes)
    run("autoencoder", prepared, folder / "autoencoder", "--n-latent", 4, "--n-steps", 30)
    run("hierarchy", folder / "autoencoder", folder / "hierarchy.json", "--n-bootstrap", 5)
    small = ("--width", 16, "--n-layers", 1, "--n-steps", 30)
    run("train", folder / "autoencoder", folder / "hierarchy.json", model, *small)
    run("generate", model, generated, "--cells-like", prepared)
    run("evaluate", prepared, generated, folder / "evaluation", "--n-repeats", 1)
    run("interpret", model, prepared, generated, folder / "interpretation")
    moved = folder / "moved.h5ad"
    run("transmute", model, prepared, moved, "--to", NK, "--from", DENDRITIC)
    run("evaluate-transmuted", prepared, moved, folder / "transmutation/a")
    more = ("--known", prepared, "--report", folder / "extension")
    run("extend", model, folder / "cells.h5ad", folder / "extended", "--cell-type", B, *more)
    (folder / "genes.txt").unlink()
    (folder / "keep.txt").unlink()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("table", ["branch_genes", "commitment", "markers"])
def test_tables_have_symbols_and_names(folder, table):
    shown = bdm.BranchedDiffusion.load(folder / "model", device="cpu").model.gene_names.labels
    rows = pd.read_csv(folder / f"interpretation/{table}.csv")
    assert list(rows).index("symbol") == list(rows).index("gene") + 1
    assert list(rows["symbol"]) == list(shown[rows["gene"]])


@pytest.mark.slow
def test_other_tables_have_symbols_and_words_are_symbols(folder, labels):
    nodes = pd.read_csv(folder / "interpretation/nodes.csv")
    assert not unexplained(" ".join(nodes["best_genes"]), labels)
    added = pd.read_csv(folder / "extension/extensions.csv")
    assert not unexplained(" ".join(added["type_specific_genes"]), labels)
    assert "symbol" in pd.read_csv(folder / "extension/type_specific_genes.csv")
    rows = pd.read_csv(folder / "evaluation/genes.csv")
    assert list(rows)[1:3] == ["gene", "symbol"]
    assert "LYZ" in set(rows["symbol"])


@pytest.mark.slow
def test_model_of_a_list_of_genes_takes_its_cells_again_without_the_list(folder, cells):
    loaded = BranchedDiffusion.load(folder / "model", adata=cells, device="cpu")
    prepared = anndata.read_h5ad(folder / "prepared.h5ad")
    assert list(loaded.prepared.var_names) == list(prepared.var_names)
    assert "feature_name" in loaded.prepared.var
    assert "CD79A" in type_specific_genes(loaded.model, NK)["symbol"].str.split().str[0].to_numpy()


@pytest.mark.slow
def test_report_shows_symbols(folder, labels):
    results = read_results(folder)
    genes = [gene for node in nodes(results) for _, of_side in node["sides"] for gene in of_side]
    assert genes
    assert not unexplained(" ".join(genes), labels)
    [first, *_] = nodes(results)
    assert ID.lower() in first["words"]
    page = report_page(results)
    assert re.search(r"counts in 3 training cells or more; .* are from the requested \d+ of them", page)
    assert genes[0] in page
    shown = "\n".join(re.findall(r'aria-label="([^"]*)"', page) + re.findall("<title>([^<]*)<", page))
    assert not unexplained(shown.replace(".", " "), labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepared", "generated", "moved", "interpretation/branches"])
def test_files_of_cells_keep_names_and_symbols(folder, cells, name):
    found = anndata.read_h5ad(folder / f"{name}.h5ad").var["feature_name"]
    expected = cells.var.loc[found.index, "feature_name"]
    assert list(found.astype(object).fillna("")) == list(expected.astype(object).fillna(""))
