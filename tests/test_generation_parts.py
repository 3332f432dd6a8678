"""Cells that several jobs generate are those that one would."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bdm.cli import main
from bdm.errors import InputError
from bdm.generation.chunks import MAX_CHUNK, MIN_CHUNK, Part, chunk_specs_of, rows_of
from bdm.generation.request import Request

B, NK, MONO = "CD19+ B", "CD56+ NK", "CD14+ Monocyte"
CELLS = {B: 700, NK: 3, MONO: 200}  # 4 and 3 chunks of the sub-populations of B, 1 and 3 of the others
N_STARTS = 4  # at which chunks begin


def asked(**n_cells: int) -> Request:
    """Request of populations, each two of which are of one cell type."""
    types = [f"type {number // 2}" for number in range(len(n_cells))]
    columns = {"cell_type": types, "sub_population": list(n_cells), "n_cells": list(n_cells.values())}
    return Request(pd.DataFrame(columns))


REQUESTS = [asked(a=1), asked(a=70, b=3, c=3000), asked(**{f"population {i}": 40 * i + 1 for i in range(30)})]


# ---- division


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("n_parts", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("shared", [False, True])
def test_every_chunk_is_in_one_part(request_, n_parts, shared):
    parts = [chunk_specs_of(request_, Part(i + 1, n_parts), shared=shared) for i in range(n_parts)]
    every = chunk_specs_of(request_)
    assert Counter(place for part in parts for place in part) == Counter(every)
    rows = np.concatenate([rows_of(part, request_) for part in parts])
    assert sorted(rows) == list(range(sum(request_.n_cells.values())))
    if not shared:
        assert [place for part in parts for place in part] == every
        assert (np.diff(rows) == 1).all()
    else:
        starts = [{place.start for place in part} for part in parts]
        assert sum(map(len, starts)) == len(set.union(*starts))


@pytest.mark.parametrize("n_parts", [2, 3, 7])
def test_parts_have_about_as_much_work(n_parts):
    request = REQUESTS[-1]
    sizes = [sum(place.size for place in chunk_specs_of(request, Part(i + 1, n_parts))) for i in range(n_parts)]
    assert max(sizes) - min(sizes) <= 2 * MAX_CHUNK
    assert min(sizes) >= MIN_CHUNK


@pytest.mark.parametrize("text", ["2", "0-of-3", "4-of-3", "1-of-3 "])
def test_no_part(text):
    with pytest.raises(InputError, match="2-of-8"):
        Part.parse(text)


# ---- files


@pytest.fixture(scope="module")
def folder(small_model, batch_model, tmp_path_factory) -> Path:
    """Models, and what to generate."""
    folder = tmp_path_factory.mktemp("parts")
    small_model.save(folder / "model")
    batch_model.save(folder / "batches")
    table = pd.DataFrame({"cell_type": list(CELLS), "n_cells": list(CELLS.values())})
    table.to_csv(folder / "cells.csv", index=False)
    return folder


def bdm(*arguments: str | Path) -> int:
    """Run a command, and give its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bdm", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code or 0


def generate(folder: Path, out: Path, *options: str, model: str = "model") -> Path:
    """Generate cells, or a part of them."""
    of = ["--cells-from", folder / "cells.csv", "--n-levels", 3, "--seed", 5]
    assert bdm("generate", folder / model, out, *of, *options) == 0
    return out


def content(path: Path) -> dict[str, tuple]:
    """Read all that a file holds, with types and attributes."""
    found = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        values = (item.dtype, item.shape, np.asarray(item[()]).tobytes()) if isinstance(item, h5py.Dataset) else ()
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "O":
            values = ("text", item.shape, tuple(np.ravel(item.asstr()[()])))
        found[name] = (values, {key: np.asarray(value).tolist() for key, value in item.attrs.items()})

    with h5py.File(path) as file:
        file.visititems(add)
    return found


@pytest.mark.parametrize("options", [(), ("--shared-ancestors",), ("--stochastic",)], ids=" ".join)
@pytest.mark.parametrize("model", ["model", pytest.param("batches", marks=pytest.mark.nightly)])
def test_file_does_not_depend_on_the_number_of_jobs(folder, tmp_path, options, model):
    expected = content(generate(folder, tmp_path / "whole.h5ad", *options, model=model))
    for n_parts in (3, 7):
        names = [f"{i + 1}-of-{n_parts}" for i in range(n_parts)]
        parts = [generate(folder, tmp_path / f"{n}.h5ad", *options, "--part", n, model=model) for n in names]
        sizes = [len(ad.read_h5ad(part).obs) for part in parts]
        assert sum(sizes) == sum(CELLS.values())
        assert n_parts > N_STARTS or all(sizes)
        assert bdm("merge", tmp_path / "gathered.h5ad", *parts[::-1]) == 0
        found = content(tmp_path / "gathered.h5ad")
        assert "obs/sub_population/codes" in found
        assert found.keys() == expected.keys()
        assert not [name for name in found if found[name] != expected[name]]


def test_part_records_its_number(folder, tmp_path):
    generate(folder, tmp_path / "part.h5ad", "--part", "2-of-3")
    part, whole = ad.read_h5ad(tmp_path / "part.h5ad"), ad.read_h5ad(generate(folder, tmp_path / "whole.h5ad"))
    assert part.uns["bdm"].pop("part") == "2-of-3"
    assert part.uns["bdm"] == whole.uns["bdm"]
    assert (part.X != whole[part.obs_names].X).nnz == 0
    request = pd.DataFrame(json.loads(part.uns["bdm"]["request"]))
    assert request.groupby("cell_type")["n_cells"].sum().to_dict() == CELLS
    assert request["sub_population"].tolist() == [MONO, f"{B}/1", f"{B}/2", NK]


@pytest.fixture(scope="module")
def parts(folder) -> dict[str, Path]:
    """Parts of the same cells and of others."""
    paths = {f"{i}-of-3": generate(folder, folder / f"{i}-of-3.h5ad", "--part", f"{i}-of-3") for i in (1, 2, 3)}
    paths["of other cells"] = generate(folder, folder / "other.h5ad", "--part", "3-of-3", "--stochastic")
    paths["of four"] = generate(folder, folder / "4-of-4.h5ad", "--part", "4-of-4")
    paths["whole"] = generate(folder, folder / "whole.h5ad")
    paths["no file"] = folder / "none.h5ad"
    paths["other file"] = folder / "cells.csv"
    paths["damaged"] = folder / "damaged.h5ad"
    paths["damaged"].write_bytes(paths["1-of-3"].read_bytes()[:3000])
    return paths


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["1-of-3", "2-of-3"], "Part 3-of-3 is missing"),
        (["1-of-3", "2-of-3", "2-of-3", "3-of-3"], "Part 2-of-3 is given twice"),
        (["1-of-3", "2-of-3", "of other cells"], "differ in settings"),
        (["1-of-3", "2-of-3", "3-of-3", "of four"], "differ in the number of parts"),
        (["whole"], "is not a part of generated cells"),
        (["1-of-3", "no file"], "No such file"),
        (["other file"], "is no part of a power analysis"),
        (["damaged"], "is damaged, or was changed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_that_cannot_be_merged_are_reported_in_one_sentence(parts, tmp_path, capsys, given, expected):
    assert bdm("merge", tmp_path / "gathered.h5ad", *(parts[name] for name in given)) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("bdm: ")
    assert expected in line
    assert not list(tmp_path.iterdir())


def write_part(path: Path, number: int, n_cells: int) -> None:
    """Write one of two parts, whose cells lie between those of the other."""
    i = np.arange(n_cells)
    names = [f"synthetic-{k}" for k in 1 + i % 500 + 500 * (2 * (i // 500) + number - 1)]
    counts = sparse.random(n_cells, 50, 0.5, format="csr", dtype=np.float32, rng=0)
    obsm, uns = {"latent": np.zeros((n_cells, 1000), np.float32)}, {"bdm": {"part": f"{number}-of-2"}}
    ad.AnnData(counts, obs=pd.DataFrame(index=names), obsm=obsm, uns=uns).write_h5ad(path)


@pytest.mark.slow
def test_merging_takes_little_memory(tmp_path):
    """Gather 80 MB of latents in a process that may take 40 MB more than it does for a few cells."""
    program = """
import resource
from bdm.generation.merge import merged_cells
from bdm.generation.merge import write_cells

write_cells("gathered.h5ad", *merged_cells(["2.h5ad", "1.h5ad"]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for n_cells in (500, 10_000):
        for number in (1, 2):
            write_part(tmp_path / f"{number}.h5ad", number, n_cells)
        command = [sys.executable, "-c", program]
        peaks.append(int(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout))
    gathered = ad.read_h5ad(tmp_path / "gathered.h5ad", backed="r")
    assert list(gathered.obs_names) == [f"synthetic-{i + 1}" for i in range(20_000)]
    assert peaks[1] - peaks[0] < 40_000
