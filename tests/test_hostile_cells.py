"""Whatever cells there are, prepare gives them as they are, or reports in one sentence why it does not."""

import contextlib
import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hostile import Case, cases, command, hostile_cells
from hypothesis import given, reject
from scipy import sparse

from bdm._core.errors import InputError
from bdm.data.prepare import prepare, read_prepared
from bdm.settings import PrepareSettings


def truth(matrix) -> np.ndarray:
    """Give values as numbers of 80 bits, which hold those of any other type."""
    values = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)
    return values if values.dtype.kind == "c" else values.astype(np.longdouble)


def slots(adata: AnnData) -> dict[str, tuple[np.ndarray, pd.Index]]:
    found = {name: (truth(layer), adata.var_names) for name, layer in adata.layers.items()}
    if adata.raw is not None:
        found["raw"] = truth(adata.raw.X), adata.raw.var_names
    return {**found, "X": (truth(adata.X), adata.var_names)}


def are_counts(values: np.ndarray) -> bool:
    if values.dtype.kind == "c":
        return False
    return bool((np.isfinite(values) & (values >= 0) & (values <= 2**24) & (values == np.rint(values))).all())


def labels(column: pd.Series) -> pd.Series:
    values = [value.decode(errors="backslashreplace") if isinstance(value, bytes) else value for value in column]
    return pd.Series([None if pd.isna(value) else str(value) for value in values], index=column.index, dtype=object)


def lacks_value(found: pd.Series) -> pd.Series:
    return found.isna() | found.isin(["", "nan"])


def check_prepared(case: Case, prepared: AnnData) -> None:
    """Compare prepared cells with what is right, for cells in which nothing is wrong."""
    adata, chosen = case.adata, PrepareSettings(**case.settings)
    places = ("counts", "raw", "X") if chosen.counts == "auto" else (chosen.counts,)
    found = slots(adata)
    values, genes = next(found[name] for name in places if name in found and are_counts(found[name][0]))
    types = labels(adata.obs[chosen.label_key])
    assert adata.obs_names.is_unique
    assert genes.is_unique
    assert chosen.drop_unlabelled or not lacks_value(types).any()
    assert set(chosen.leave_out) <= set(types)
    left = (
        ~lacks_value(types)
        & ~types.isin(chosen.leave_out)
        & ((values > 0).sum(axis=1) >= max(chosen.min_genes_per_cell, 1))
    )
    sizes = types[left].value_counts()
    left &= types.isin(sizes.index[sizes >= chosen.min_cells_per_type])
    columns = genes.get_indexer(prepared.var_names)
    assert (np.diff(columns) > 0).all()
    assert (columns >= 0).all()
    left &= (values[:, columns] > 0).any(axis=1)
    assert list(prepared.obs_names) == list(adata.obs_names[left])
    np.testing.assert_array_equal(truth(prepared.X), values[np.ix_(left, columns)])
    assert prepared.X.dtype == np.float32
    assert (prepared.X.data != 0).all()
    assert prepared.X.has_canonical_format
    assert list(prepared.obs["cell_type"]) == list(types[left])
    assert set(prepared.obs["cell_type"].cat.categories) == set(types[left])
    if chosen.batch_key:
        assert list(prepared.obs["batch"]) == list(labels(adata.obs[chosen.batch_key])[left])
    if "depth" in prepared.obs:
        assert list(prepared.obs["depth"]) == list(adata.obs["depth"][left])
    wanted = ["train", "validation", *["test"] * (chosen.test > 0)]
    by_type = pd.crosstab(prepared.obs["cell_type"], prepared.obs["split"])
    assert set(by_type.columns) == set(wanted)
    assert (by_type > 0).all(axis=None)
    assert by_type.to_numpy().sum() == left.sum()
    train = prepared[prepared.obs["split"] == "train"]
    seen = (truth(train.X) > 0).sum(axis=0)
    assert (seen >= chosen.min_cells_per_gene).all()
    if chosen.genes == "all" and chosen.min_cells_per_gene == 0:
        assert len(columns) == len(genes)
    if chosen.genes == "seurat_v3":
        assert len(columns) <= chosen.n_genes


def check_refusal(message: str) -> None:
    """See that a message is one sentence, and has a remedy."""
    assert message.isprintable(), repr(message)
    assert ";" in message
    assert message.endswith("."), message


@contextlib.contextmanager
def stored(case: Case):
    """Give cells as they are stored, in memory, as a view, or in a file that anndata reads by and by."""
    with tempfile.TemporaryDirectory() as folder:
        if case.storage == "view":
            twice = [np.arange(n) for n in case.adata.shape]
            yield case.adata[twice[0], twice[1]]
        elif case.storage == "backed":
            path = write(case.adata, Path(folder) / "cells.h5ad")
            try:
                backed = anndata.read_h5ad(path, backed="r")
            except UnicodeDecodeError:
                reject()
            yield backed
            backed.file.close()
        else:
            yield case.adata.copy()


def write(adata: AnnData, path: Path) -> Path:
    """Write cells, if that can be done."""
    try:
        with anndata.settings.override(allow_write_nullable_strings=True):
            (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(path)
    except Exception:
        reject()
    return path


@given(hostile_cells(["memory", "view", "backed"]))
@cases(30)
@pytest.mark.filterwarnings("ignore")
def test_cells_in_memory_are_prepared_or_rejected(case):
    with stored(case) as adata:
        try:
            prepared = prepare(adata, PrepareSettings(**case.settings))
        except InputError as error:
            check_refusal(str(error))
            return
    check_prepared(case, prepared)


def options(case: Case) -> list[str]:
    """Give settings as options of the command, each in one word, as values may begin with a dash."""
    named = {**case.settings, "leave_out": None, "drop_unlabelled": None}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in named.items() if value is not None]
    flags += ["--drop-unlabelled"] * case.settings["drop_unlabelled"]
    return flags + [f"--leave-out={name}" for name in case.settings["leave_out"]]


@pytest.mark.slow
@given(hostile_cells(["h5ad", "zarr"]))
@cases(12)
@pytest.mark.filterwarnings("ignore")
def test_cells_in_files_are_prepared_or_rejected(case):
    """By a command, which makes all of the right file, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        data = write(case.adata, Path(folder) / f"it's <cells> $1.{case.storage}")
        out = Path(folder) / "out" / "prepared.h5ad"
        code, messages = command("prepare", str(data), str(out), *options(case))
        if code == 0:
            assert "Traceback" not in messages
            assert list(out.parent.iterdir()) == [out]
            check_prepared(case, anndata.read_h5ad(out))
            assert read_prepared(out, on_disk=True).shape == anndata.read_h5ad(out, backed="r").shape
            return
        assert code == 2
        assert messages.count("\n") == 1
        if messages.startswith(f"bdm: {data} cannot be read ('utf-8' codec"):
            texts = [value for value in case.adata.obs.to_numpy().ravel() if isinstance(value, bytes)]
            assert any(text.decode(errors="ignore").encode() != text for text in texts)
        else:
            assert messages.startswith(f"bdm: {data}: "), messages
            check_refusal(messages[:-1])
        assert not out.parent.exists() or not any(out.parent.iterdir())
