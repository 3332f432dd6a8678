"""Dataclasses come back from their files, as they were, or are rejected."""

import json
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from same_tables import assert_same_table
from torch import Tensor, nn

from bdm._core.errors import InputError
from bdm._core.files import sha256, write_checksummed_json
from bdm._core.store import FORMAT, OLDEST, TEXT, UPGRADES, checksum_of, load, save


@dataclass(frozen=True)
class Shape:
    n_input: int


class Network(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(shape.n_input, 2)


@dataclass(frozen=True)
class Part:
    name: str
    level: float | None
    values: Tensor


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    by_name: dict[str, Tensor]
    table: pd.DataFrame
    array: np.ndarray
    network: Network
    record: dict[str, Any]
    compute: Callable[[], np.ndarray]
    first: Part | None = None


@pytest.fixture
def whole() -> Whole:
    columns = {
        "real": [0.5, np.nan, np.inf],
        "single": np.float32([0.1, 2, 3]),
        "whole": np.uint16([1, 2, 3]),
        "flag": [True, False, True],
        "gap": pd.array([1, None, 3], dtype="Int64"),
        "text": ["a", None, "δ/."],
        "group": pd.Categorical(["x", None, "y"]),
    }
    shared = torch.arange(6.0).reshape(2, 3).T
    return Whole(
        parts=(Part("a/b", 0.1, shared), Part("a.b", None, shared)),
        by_name={"x.y": torch.tensor([1]), "λ": torch.empty(0)},
        table=pd.DataFrame(columns, index=["g1", "g2", "g3"]),
        array=np.arange(4).reshape(2, 2)[:, ::-1],
        network=Network(Shape(3)),
        record={"list": [1, None, {"a": "b"}]},
        compute=lambda: np.arange(3),
    )


def test_dataclass_comes_back(whole, tmp_path):
    state = torch.get_rng_state()
    assert save(tmp_path, "thing", whole) == checksum_of(tmp_path, "thing")
    found = load(tmp_path, "thing", Whole)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(part.name, part.level) for part in found.parts] == [("a/b", 0.1), ("a.b", None)]
    assert all(torch.equal(part.values, whole.parts[0].values) for part in found.parts)
    assert {name: value.tolist() for name, value in found.by_name.items()} == {"x.y": [1], "λ": []}
    assert np.array_equal(found.array, whole.array)
    assert (found.record, found.first) == (whole.record, None)
    assert found.compute().tolist() == [0, 1, 2]
    assert found.network.shape == whole.network.shape
    assert torch.equal(found.network.linear.weight, whole.network.linear.weight)


def test_tables_come_back_with_missing_values(whole, tmp_path):
    save(tmp_path, "thing", whole)
    found = load(tmp_path, "thing", Whole).table
    expected = whole.table.assign(
        whole=np.int32([1, 2, 3]),
        gap=[1, np.nan, 3],
        text=pd.Series(["a", None, "δ/."], whole.table.index, dtype=TEXT),
        group=pd.Series(["x", None, "y"], whole.table.index, dtype=TEXT),
    )
    pd.testing.assert_frame_equal(found, expected, check_index_type=False, check_column_type=False)
    save(tmp_path, "thing", replace(whole, table=whole.table[:0].reset_index(drop=True)))
    assert load(tmp_path, "thing", Whole).table.shape == (0, len(whole.table.columns))


@pytest.mark.parametrize("by", [["set"], ["set", "cell type"]])
def test_tables_come_back_with_their_index(whole, tmp_path, by):
    table = pd.DataFrame({"set": ["a", "a"], "cell type": ["x", "y"], "score": [1.5, np.nan]}).set_index(by)
    save(tmp_path, "thing", replace(whole, table=table))
    assert_same_table(load(tmp_path, "thing", Whole).table, table)


def test_rows_of_a_table_keep_their_numbers(whole, tmp_path):
    save(tmp_path, "thing", replace(whole, table=pd.DataFrame({"score": [0.5, 1.5, 2.5]})[1:]))
    assert list(load(tmp_path, "thing", Whole).table.index) == ["1", "2"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "thing.safetensors").unlink(),
        lambda folder: (folder / "thing.safetensors").write_bytes((folder / "thing.safetensors").read_bytes()[:-1]),
        lambda folder: (folder / "thing.json").unlink(),
        lambda folder: (folder / "thing.json").write_text("[]"),
        lambda folder: (folder / "thing.json").write_text(f'{{"format": {FORMAT}}}'),
        lambda folder: (folder / "thing.json").write_text(f'{{"format": {FORMAT + 1}}}'),
    ],
)
def test_damaged_files_are_rejected(whole, tmp_path, damage):
    save(tmp_path, "thing", whole)
    damage(tmp_path)
    with pytest.raises(InputError):
        load(tmp_path, "thing", Whole)


@pytest.mark.parametrize("change", [{"parts": None}, {"other": 1}, {"array": "absent"}, {"network": {"shape": {}}}])
def test_content_of_another_class_is_rejected(whole, tmp_path, change):
    save(tmp_path, "thing", whole)
    content = json.loads((tmp_path / "thing.json").read_text())
    del content["checksum"]
    write_checksummed_json(tmp_path / "thing.json", {**content, "thing": {**content["thing"], **change}})
    with pytest.raises(InputError, match=r"thing\.json is damaged"):
        load(tmp_path, "thing", Whole)


def test_networks_larger_than_their_tensors_are_rejected_before_memory_is_used(whole, tmp_path):
    save(tmp_path, "thing", whole)
    content = json.loads((tmp_path / "thing.json").read_text())
    del content["checksum"]
    content["thing"]["network"]["shape"]["n_input"] = 10**15
    write_checksummed_json(tmp_path / "thing.json", content)
    with pytest.raises(InputError, match=r"thing\.json is damaged \(RuntimeError: Error\(s\) in loading"):
        load(tmp_path, "thing", Whole)


@dataclass(frozen=True)
class Later:
    """Whole in the next format: a field has another name, and a field is new."""

    parts: tuple[Part, ...]
    by_name: dict[str, Tensor]
    table: pd.DataFrame
    array: np.ndarray
    network: Network
    note: dict[str, Any]
    compute: Callable[[], np.ndarray]
    first: Part | None = None
    scale: float = 1.0


def test_older_formats_are_upgraded_for_kinds_that_keep_them(whole, tmp_path, monkeypatch):
    def rename(content, tensors):
        content["thing"]["note"] = content["thing"].pop("record")
        tensors["thing.array"] = tensors["thing.array"] * 2

    checksum = save(tmp_path, "thing", whole)
    monkeypatch.setattr("bdm._core.store.FORMAT", FORMAT + 2)
    with pytest.raises(InputError, match=f"has format {FORMAT}, but this version of bdm reads {FORMAT + 2}"):
        load(tmp_path, "thing", Later)
    monkeypatch.setitem(OLDEST, "thing", FORMAT)
    monkeypatch.setitem(UPGRADES, FORMAT, rename)
    found = load(tmp_path, "thing", Later)
    assert (found.note, found.scale) == (whole.record, 1.0)
    assert np.array_equal(found.array, whole.array * 2)
    assert checksum_of(tmp_path, "thing") == checksum
    monkeypatch.setitem(OLDEST, "thing", FORMAT + 1)
    with pytest.raises(InputError, match=f"reads {FORMAT + 1}, {FORMAT + 2}"):
        load(tmp_path, "thing", Later)


def test_facts_of_another_folder_are_rejected(whole, tmp_path):
    save(tmp_path, "thing", whole, model="one")
    assert load(tmp_path, "thing", Whole, model="one").record == whole.record
    with pytest.raises(InputError, match=r"thing\.json is of another model than the folder's"):
        load(tmp_path, "thing", Whole, model="other")


def test_files_are_as_readable_as_others(whole, tmp_path):
    save(tmp_path, "thing", whole)
    (tmp_path / "other").write_text("")
    assert len({stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}) == 1


def test_no_tensors_with_the_right_checksum_are_rejected(whole, tmp_path):
    save(tmp_path, "thing", whole)
    (tmp_path / "thing.safetensors").write_bytes(b"no tensors")
    content = json.loads((tmp_path / "thing.json").read_text())
    del content["checksum"]
    write_checksummed_json(tmp_path / "thing.json", {**content, "tensors": sha256(tmp_path / "thing.safetensors")})
    with pytest.raises(InputError, match="not a safetensors file"):
        load(tmp_path, "thing", Whole)
