"""Files of generated cells: written a block at a time, and merged from the parts of several jobs."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, sparse_dataset, write_elem

from bdm._core.files import check_hdf5, reading, require_space
from bdm.data.matrix import COMPRESSION, ENTRIES, appended_rows, new_h5ad
from bdm.errors import InputError
from bdm.generation.chunks import MAX_CHUNK, Part
from bdm.generation.generate import EXPECTED, Block, GeneratedCells

ROWS = 2**10  # in a piece of the file
# Compressed more than prepared counts, as there may be many more cells; takes a hundredth of the time to generate them
COUNTS = COMPRESSION | {"compression_opts": 4}


def write_cells(path: Path, cells: GeneratedCells, uns: dict[str, Any]) -> None:
    """Generate cells into an ``.h5ad`` file block by block; only ``obs`` is kept in memory."""
    populations: list[np.ndarray | None] = []
    n_cells, n_genes = len(cells.obs), len(cells.var)
    empty = ad.AnnData(obs=cells.obs, var=cells.var, varm=dict(cells.varm), uns={**cells.uns, **uns})
    with (
        new_h5ad(path, empty, compression="gzip") as file,
        appended_rows(file, "X", n_columns=n_genes, max_entries=n_cells * n_genes, compression=COUNTS) as append,
    ):
        latent, expected = DenseRows(file, "obsm", cells.embedding), DenseRows(file, "layers", EXPECTED)
        for block in cells.blocks:
            append(block.counts)
            populations.append(block.population)
            latent.append(block.latent)
            if block.expected is not None:
                expected.append(block.expected)
        if (obs := cells.whole_obs(populations)) is not cells.obs:
            write_elem(file, "obs", obs, dataset_kwargs={"compression": "gzip"})


@dataclass
class DenseRows:
    """A dense array in an ``.h5ad`` file that grows by rows, and is left open, as X is in appended_rows."""

    file: h5py.File
    group: str
    name: str
    stored: h5py.Dataset | None = None

    def append(self, rows: np.ndarray) -> None:
        """Append rows, the first of which make the array."""
        require_space(Path(self.file.filename), rows.nbytes)
        if self.stored is None:
            n_columns = rows.shape[1]
            pieces = {"chunks": (min(ROWS, ENTRIES // n_columns + 1), n_columns), "maxshape": (None, n_columns)}
            write_elem(self.file[self.group], self.name, rows, dataset_kwargs={**pieces, **COMPRESSION})
            self.stored = self.file[self.group][self.name]
        else:
            self.stored.resize(len(self.stored) + len(rows), axis=0)
            self.stored[-len(rows) :] = rows


@dataclass(frozen=True)
class PartFile:
    """File of a part of generated cells, without the counts, which stay on disk."""

    path: Path
    part: Part
    record: dict[str, Any]  # how the cells were generated
    cells: GeneratedCells  # without blocks

    @classmethod
    def read(cls, path: Path) -> "PartFile":
        """Read everything except counts and latents."""
        path = Path(path)
        with reading(path, "a part of generated cells"):
            check_hdf5(path)
        try:
            with h5py.File(path) as file:
                obs, var, varm, uns = (read_elem(file[name]) for name in ("obs", "var", "varm", "uns"))
                record = uns.pop("bdm")
                [embedding] = file["obsm"]
                cells = GeneratedCells(obs, var, iter(()), varm=varm, uns=uns, embedding=embedding)
                return cls(path, Part.parse(record.pop("part")), record, cells)
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not a part of generated cells; make it by bdm generate --part.") from error


def merged_cells(paths: Sequence[Path]) -> tuple[GeneratedCells, dict[str, Any]]:
    """Merge the cells of all parts, block by block, as one job would have generated them; with their record."""
    files = [PartFile.read(path) for path in paths]
    check_whole(files)
    obs = pd.concat([file.cells.obs for file in files])
    number = obs.index.str.rpartition("-").get_level_values(2).astype(int)
    order = np.argsort(number)
    file = np.repeat(np.arange(len(files)), [len(file.cells.obs) for file in files])[order]
    row = np.concatenate([np.arange(len(file.cells.obs)) for file in files])[order]
    first = files[0]
    blocks = blocks_at(paths, file, row, first.cells.embedding)
    return replace(first.cells, obs=obs.iloc[order], blocks=blocks), first.record


def check_whole(files: Sequence[PartFile]) -> None:
    """Reject files that are not all parts of the same cells, each once."""
    first, *others = files
    for file in others:
        differing = [key for key in first.record | file.record if first.record.get(key) != file.record.get(key)]
        if differing or file.part.n_parts != first.part.n_parts:
            raise InputError(
                f"{first.path} and {file.path} are not parts of the same cells: they differ in "
                f"{', '.join(differing) or 'the number of parts'}; generate all parts with the same options."
            )
    numbers = [file.part.number for file in files]
    for number in range(1, first.part.n_parts + 1):
        if numbers.count(number) != 1:
            problem = "given twice" if number in numbers else "missing"
            raise InputError(f"Part {Part(number, first.part.n_parts)} is {problem}; give every part once.")


def blocks_at(paths: Sequence[Path], file: np.ndarray, row: np.ndarray, embedding: str) -> Iterator[Block]:
    """Read rows of files in blocks: ``row[i]`` of file number ``file[i]``, for each ``i`` in order."""
    ends = np.flatnonzero((np.diff(file) != 0) | (np.diff(row) != 1)) + 1
    with ExitStack() as opened:
        parts = [opened.enter_context(h5py.File(path)) for path in paths]
        counts = [sparse_dataset(part["X"]) for part in parts]
        expected = [part["layers"].get(EXPECTED) for part in parts]
        for start, stop in pairwise([0, *ends, len(row)]):
            for i in range(start, stop, MAX_CHUNK):
                rows = slice(row[i], row[min(i + MAX_CHUNK, stop) - 1] + 1)
                layer = None if expected[file[i]] is None else expected[file[i]][rows]
                yield Block(counts[file[i]][rows], parts[file[i]]["obsm"][embedding][rows], expected=layer)
