from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from PIL import Image
from synthetic_cells import SyntheticSettings, synthesise

from bdm.cli import app
from bdm.interpretation.ancestral_states import Dots, Markers
from bdm.interpretation.contrasts import Contrast, ContrastGenes
from bdm.interpretation.interpretation import contrasts_within_limit, marker_rows

N_TYPES = 61  # more than figures have rows
TALLEST = 6000  # pixels


def bdm(*arguments: str | Path | int) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Results of all commands on simulated cells of many types, with few training steps."""
    sizes = {"n_types": N_TYPES, "n_genes": 250, "min_cells": 20, "max_cells": 20, "module_size": 1}
    settings = SyntheticSettings(**sizes, balanced=True, min_log2_fold_change=3.0)
    at = tmp_path_factory.mktemp("many")
    synthesise(settings, seed=0).adata.write_h5ad(at / "cells.h5ad")
    bdm("prepare", at / "cells.h5ad", at / "prepared.h5ad", "--genes", "all", "--test", 0.3)
    small = ("--n-latent", 8, "--n-steps", 20, "--sub-populations", "none")
    bdm("autoencoder", at / "prepared.h5ad", at / "autoencoder", *small)
    bdm("hierarchy", at / "autoencoder", at / "tree.json", "--table", at / "tree.csv", "--n-bootstrap", 2)
    bdm("train", at / "autoencoder", at / "tree.json", at / "model", "--n-steps", 30)
    bdm("generate", at / "model", at / "generated.h5ad", "--cells", 5)
    bdm("evaluate", at / "prepared.h5ad", at / "generated.h5ad", at / "evaluation", "--n-repeats", 1)
    bdm("interpret", at / "model", at / "prepared.h5ad", at / "generated.h5ad", at / "interpretation")
    return at


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluation", "interpretation"])
def test_figures_of_many_types_stay_small(folder, name):
    figures = sorted((folder / name).glob("*.png"))
    sizes = {path.name: Image.open(path).size for path in figures}
    assert len(sizes) >= 2
    assert all(max(size) <= TALLEST for size in sizes.values()), sizes


@pytest.mark.slow
def test_tables_have_all_types(folder):
    assert len(pd.read_csv(folder / "tree.csv")) == 2 * N_TYPES - 1
    assert pd.read_csv(folder / "evaluation/scores.csv").query("kind == 'type'")["group"].nunique() == N_TYPES
    for name in ("nodes", "agreement"):
        assert len(pd.read_csv(folder / f"interpretation/{name}.csv")) == N_TYPES - 1


@pytest.mark.parametrize("letters", [4, 8, 31, 60])
def test_groups_fit_into_a_file(letters, tmp_path):
    names = [f"{i:0{letters}}" for i in range(1400)]
    contrasts = [
        ContrastGenes(Contrast("node", float(i), name, (name,), ("other",)), None, None, None, None, None)
        for i, name in enumerate(names)
    ]
    groups = [of.contrast.child for of in contrasts_within_limit(contrasts)]
    assert groups == names[-len(groups) :]
    assert 500 < len(groups) < len(names)
    columns = np.rec.fromarrays([np.zeros(2) for _ in groups], names=groups)
    AnnData(np.zeros((1, 1)), uns={"groups": columns}).write_h5ad(tmp_path / "groups.h5ad")
    assert list(read_h5ad(tmp_path / "groups.h5ad").uns["groups"].dtype.names) == groups


@pytest.mark.parametrize(("n_types", "n_rows"), [(20, 20 * 60), (200, 200 * 3)])
def test_marker_table_does_not_grow_with_the_square_of_types(n_types, n_rows):
    types = [f"type {i}" for i in range(n_types)]
    genes = {name: tuple(f"{name} gene {k}" for k in range(3)) for name in types}
    table = pd.DataFrame(0.5, index=types, columns=[gene for members in genes.values() for gene in members])
    dots = Dots(table, table)
    rows = marker_rows(Markers(genes, dots, dots, dots))
    assert len(rows) == n_rows
    assert rows.groupby("cell_type")["gene"].nunique().min() >= 3
