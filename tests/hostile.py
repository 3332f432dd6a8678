"""Cells, labels and names that nobody would wish for, drawn by hypothesis."""

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from scipy import sparse

from bdm.cli import main

MORE = float(os.environ.get("BDM_CASES", "1"))  # how many times as many cases, which then are new ones each time


def cases(number: int) -> settings:
    """Settings of a test of so many cases, the same ones each time unless more are requested."""
    return settings(
        max_examples=max(1, round(number * MORE)),
        derandomize=MORE == 1,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def command(*arguments: str) -> tuple[int, str]:
    """Run a command in this process, and give its exit code and messages."""
    before, sys.argv = sys.argv, ["bdm", *arguments]
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(messages):
            main()
    except SystemExit as stop:
        return int(stop.code or 0), messages.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("the command neither ended nor failed")


ODD_NAMES = [
    "B", "CD4+/CD45RA+ T", "../../etc/passwd", "//", ".", "-", "--help", "-rf *", "$(touch hacked)", "`touch hacked`",
    "a; rm -rf .", "100%", "{wildcards.dataset}", "back\\slash", "line\nbreak", "tab\there", " ", "\u00a0", "a,b",
    "(a:1,b:2)c;", "_hidden", "<script>alert('x')</script>", "</script><script>alert(1)</script>", "$x^2$",
    "$\\frac{$", "1", "1.0", "inf", "none", "NaN", "nan", "γδ T", "e\u0301", "\u202eright to left", "\ufeffbom",
    "bell\x07", "escape\x1b[31m", "\u2028", "=1+1", "#comment", "node 1", "all", "cell_type", "T" * 300, "界" * 200,
]  # fmt: skip
UNFIT = ["nul\0l", "\ud800"]  # which no file holds
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NAMES = st.one_of(st.sampled_from(ODD_NAMES), TEXT)


@dataclass(frozen=True)
class Case:
    """Cells, how they are to be prepared, and how they are stored."""

    adata: AnnData
    settings: dict[str, Any]  # arguments of PrepareSettings
    storage: str  # in memory, as a view, or in a file


DTYPES = [*"bBhHiIlLefdg?D"]
NOT_SPARSE = "eg"  # of which scipy makes no sparse matrices, or anndata writes none
FORMATS = {
    "dense": np.asarray,
    "fortran": np.asfortranarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr array": sparse.csr_array,
    "csc array": sparse.csc_array,
}
VALUES = [1, 255, 2**15, 2**24 - 1, 2**24, 2**24 + 1, 2**31, 2**33, 2**53 + 1, 0.5, 1 - 1e-7, -1, -0.0, np.nan, np.inf]
STORAGES = ["memory", "view", "backed", "h5ad", "zarr"]
FAULTS = [
    "few cells", "few genes", "repeated cell", "repeated gene", "odd value", "empty cell", "logarithms",
    "labels lack", "labels are numbers", "no column", "no layer", "one type", "leave out", "unfit name",
]  # fmt: skip


@st.composite
def hostile_cells(draw, storages: list[str] = STORAGES) -> Case:
    """Draw a few cells, odd in any way, and most of them with one or two faults."""
    faults = draw(st.sets(st.sampled_from(FAULTS), max_size=2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    storage = draw(st.sampled_from(storages))
    names = draw(st.lists(NAMES.filter(str.strip), min_size=2, max_size=4, unique=True))
    if "unfit name" in faults and storage in ("memory", "view"):
        names[0] = draw(st.sampled_from(UNFIT))
    smallest = 0 if "few cells" in faults else draw(st.sampled_from([3, 10]))
    sizes = [draw(st.sampled_from([smallest, smallest + 1, 2 * smallest, 40, 3])) for _ in names]
    if "one type" in faults:
        names, sizes = names[:1], sizes[:1]
    n_cells, n_genes = sum(sizes), draw(st.sampled_from([0, 1] if "few genes" in faults else [1, 2, 5, 31, 60]))
    order = rng.permutation(n_cells) if draw(st.booleans()) else np.arange(n_cells)
    labels = np.repeat(np.array(names, dtype=object), sizes)[order]
    key = draw(st.sampled_from(["cell_type", "cell type", "it's", "--x", "é", "split", "batch", "$(x)", "_index"]))
    obs = pd.DataFrame({key: draw_labels(draw, labels, names, faults)}, draw_index(draw, n_cells, "cell", faults))
    obs["depth"] = rng.random(n_cells)
    batch_key = draw(st.sampled_from([None, None, None, "sample"]))
    if batch_key:
        batches = np.array(draw(st.lists(NAMES.filter(str.strip), min_size=2, max_size=2, unique=True)), dtype=object)
        obs["sample"] = batches[rng.integers(0, 2, n_cells)]

    def matrix(n_columns: int) -> Any:
        return draw_matrix(draw, rng, (n_cells, n_columns), faults)

    var = pd.DataFrame(index=draw_index(draw, n_genes, "gene", faults))
    adata = AnnData(matrix(n_genes), obs=obs, var=var)
    source = draw(st.sampled_from(["auto", "auto", "X", "raw", "counts", "other"]))
    if source in ("counts", "other"):
        adata.layers[source] = matrix(n_genes)
    if source == "raw" or draw(st.integers(0, 9)) == 0:
        n_raw = n_genes + draw(st.sampled_from([0, 3]))
        raw_var = pd.DataFrame(index=draw_index(draw, n_raw, "gene", faults))
        adata.raw = AnnData(matrix(n_raw), obs=obs[[]], var=raw_var)
    chosen = {
        "label_key": "no such column" if "no column" in faults else key,
        "batch_key": batch_key,
        "counts": "none" if "no layer" in faults else source,
        "genes": draw(st.sampled_from(["all", "all", "seurat_v3"])),
        "n_genes": draw(st.sampled_from([1, 4, 40])),
        "min_genes_per_cell": draw(st.sampled_from([0, 1, 1, 2])),
        "min_cells_per_gene": draw(st.sampled_from([0, 1, 3])),
        "min_cells_per_type": max(3, smallest),
        "test": draw(st.sampled_from([0.0, 0.2])),
        "leave_out": (draw(st.sampled_from([*names, "other"])),) if "leave out" in faults else (),
        "seed": draw(st.integers(0, 3)),
        "drop_unlabelled": draw(st.booleans()),
    }
    return Case(adata, chosen, storage)


def draw_labels(draw, labels: np.ndarray, names: list[str], faults: set[str]) -> Any:
    """Give labels a type of column, which may not be text, and may lack values."""
    codes = pd.Categorical(labels, categories=names).codes
    if "labels lack" in faults:
        missing = draw(st.sampled_from([None, np.nan, pd.NA, "", "nan"]))
        lacking = [missing if code == 0 else name for code, name in zip(codes, labels, strict=True)]
        return pd.Series(lacking, dtype=object).to_numpy()
    if "labels are numbers" in faults:
        numbers = {
            "int": codes.astype(np.int32) - 1,
            "bool": codes > 0,
            "half": codes + 0.5,
            "whole": codes.astype(np.float32),
            "Int64": pd.array(np.where(codes == 0, None, codes), dtype="Int64"),
            "categories": pd.Categorical(codes),
            "mixed": np.where(codes == 0, 1, labels),
            "dates": pd.to_datetime(codes.astype(int), unit="D"),
            "bytes": np.array([b"a", b"b", b"\xff", b""], dtype=object)[codes],
        }
        return numbers[draw(st.sampled_from(list(numbers)))]
    kinds = {
        "object": lambda: labels,
        "category": lambda: pd.Categorical(labels, categories=[*names, "no cell has it"]),
        "ordered": lambda: pd.Categorical(labels, categories=names[::-1], ordered=True),
        "string": lambda: pd.array(labels, dtype="string"),
    }
    return kinds[draw(st.sampled_from(list(kinds)))]()


def draw_index(draw, number: int, kind: str, faults: set[str]) -> pd.Index:
    """Draw names of cells or genes, a few of them odd."""
    names = [f"{kind}{i}" for i in range(number)]
    for i, name in enumerate(draw(st.lists(NAMES, max_size=min(3, number), unique=True))):
        names[i] = name
    if number > 1 and f"repeated {kind}" in faults:
        names[-1] = names[0]
    return pd.Index(names, dtype=object)


def draw_matrix(draw, rng: np.random.Generator, shape: tuple[int, int], faults: set[str]) -> Any:
    """Draw counts in any form; sometimes with a value that needs another, or that no count is."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    values = rng.poisson(draw(st.sampled_from([0.3, 3, 30, 3000])), shape).astype(np.float64)
    if shape[1] and draw(st.booleans()):
        values[:, rng.integers(shape[1])] = 0
    if values.size:
        values[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] += 1
    if shape[0] and "empty cell" in faults:
        values[rng.integers(shape[0])] = 0
    if "logarithms" in faults:
        values = np.log1p(values)
    if dtype.kind == "b":
        values = values > 0
    elif dtype.kind in "iu":
        values = np.minimum(np.floor(values), np.iinfo(dtype).max)
    with np.errstate(all="ignore"):
        values = values.astype(dtype)
        if values.size and ("odd value" in faults or draw(st.integers(0, 9)) == 0):
            values.flat[rng.integers(values.size)] = np.asarray(draw(st.sampled_from(VALUES))).astype(dtype)
    kind = draw(st.sampled_from(list(FORMATS)))
    matrix = FORMATS["dense" if dtype.char in NOT_SPARSE else kind](values)
    if sparse.issparse(matrix):
        match draw(st.sampled_from(["", "", "zeros", "disorder", "long"])):
            case "zeros" if matrix.nnz:
                matrix.data[rng.integers(matrix.nnz)] = 0
            case "disorder":
                disorder(matrix)
            case "long":
                matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return matrix


def disorder(matrix: Any) -> None:
    """Turn the entries of each row or column around."""
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        matrix.data[start:stop] = matrix.data[start:stop][::-1].copy()
        matrix.indices[start:stop] = matrix.indices[start:stop][::-1].copy()
    matrix.has_sorted_indices = False
