import itertools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bdm._core.errors import InputError
from bdm._core.files import atomic_write, read_json, sha256, write_json, write_table
from bdm._core.seeds import derive


def listing(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else "" for path in folder.rglob("*")
    }


def test_writes_file_into_new_folder(tmp_path):
    with atomic_write(tmp_path / "new" / "out.txt") as path:
        path.write_text("all")
    assert listing(tmp_path) == {"new": "", "new/out.txt": "all"}


def test_folder_written_within_another_takes_its_place_with_it(tmp_path):
    with atomic_write(tmp_path / "out", folder_of="one.txt") as folder:
        with atomic_write(folder, folder_of="one.txt") as inner:
            inner.mkdir()
            (inner / "one.txt").write_text("1")
        (folder / "two.txt").write_text("2")
        assert not (tmp_path / "out").exists()
    assert listing(tmp_path) == {"out": "", "out/one.txt": "1", "out/two.txt": "2"}


def write_model(out: Path, text: str, *, stop: bool = False) -> None:
    with atomic_write(out, folder_of="model.json") as folder:
        folder.mkdir()
        (folder / "model.json").write_text(text)
        if stop:
            raise RuntimeError("stopped")


def test_error_keeps_old_file_or_folder_and_leaves_nothing(tmp_path):
    def half(path: Path) -> None:
        with atomic_write(path) as file:
            file.write_text("half")
            raise RuntimeError("stopped")

    (tmp_path / "out.txt").write_text("old")
    write_model(tmp_path / "model", "old")
    with pytest.raises(RuntimeError):
        half(tmp_path / "out.txt")
    with pytest.raises(RuntimeError):
        write_model(tmp_path / "model", "half", stop=True)
    with pytest.raises(OSError, match="model"), atomic_write(tmp_path / "model", folder_of="model.json"):
        pass  # which writes nothing
    assert listing(tmp_path) == {"out.txt": "old", "model": "", "model/model.json": "old"}


def test_old_folder_is_restored_if_the_new_one_does_not_take_its_place(tmp_path, monkeypatch):
    write_model(tmp_path / "model", "old")
    moved, replace = [], os.replace

    def interrupted_once(source, target):
        moved.append(source)
        if len(moved) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path / "model", "new")
    assert listing(tmp_path) == {"model": "", "model/model.json": "old"}


@pytest.mark.parametrize("name", ["model", "replaced"])
@pytest.mark.parametrize("before", [None, [], ["model.json", "left.txt"]])
def test_replaces_folder_of_its_kind(tmp_path, name, before):
    if before is not None:
        (tmp_path / name).mkdir()
        for file in before:
            (tmp_path / name / file).write_text("old")
    write_model(tmp_path / name, "new")
    assert listing(tmp_path) == {name: "", f"{name}/model.json": "new"}


@pytest.mark.parametrize("folder_of", [None, "model.json"])
def test_rejects_to_replace_another_folder(tmp_path, folder_of):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years")
    with pytest.raises(InputError, match="other content"), atomic_write(tmp_path / "thesis", folder_of=folder_of):
        pytest.fail("must not start")
    assert listing(tmp_path) == {"thesis": "", "thesis/chapter.tex": "years"}


def test_rejects_folder_in_place_of_file_and_below_one(tmp_path):
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(InputError, match="Cannot write"), atomic_write(path, folder_of="model.json"):
            pytest.fail("must not start")
    assert listing(tmp_path) == {"file": "old"}


def test_sha256_of_folder_depends_on_content_names_and_paths(tmp_path):
    trees = [{"a": "1"}, {"a": "2"}, {"b": "1"}, {"sub/a": "1"}, {"a": "1", "b": ""}, {}]
    hashes = []
    for number, files in enumerate(trees):
        for copy in ("x", "y"):
            folder = tmp_path / f"{copy}{number}"
            folder.mkdir()
            for name, text in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(text)
        assert sha256(tmp_path / f"x{number}") == sha256(tmp_path / f"y{number}")
        hashes.append(sha256(tmp_path / f"x{number}"))
    assert len(set(hashes)) == len(trees)


def test_tables_have_no_formulas(tmp_path):
    columns = {"=gene": ["@SUM(A1)", "-", "-0.5", None], "level": [-1.0, 0.123456, np.nan, 2.0]}
    table = pd.DataFrame(columns, ["+a", "b", "c", "d"])
    write_table(table, tmp_path / "table.csv", index="cell", digits=3)
    expected = ["cell,'=gene,level", "'+a,'@SUM(A1),-1", "b,'-,0.123", "c,-0.5,", "d,,2"]
    assert (tmp_path / "table.csv").read_text().splitlines() == expected


def test_json_comes_back(tmp_path):
    content = {"name": "Zellen: γδ T", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert "γδ" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_no_json(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def test_no_json_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_derived_seeds_differ():
    keys = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), (1,), ("1",), (1, 1), (11,), ("a", 1, 1)]
    seeds = {derive(seed, *key) for seed, key in itertools.product(range(20), keys)}
    assert len(seeds) == 20 * len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derived_seed_is_fixed():
    assert derive(0, "path", "B cell", 512) == 6349603297415476388
