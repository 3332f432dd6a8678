"""Generation of cells: sample latents in chunks, decode them in portions of one size, write counts by blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem
from torch import Tensor
from torch.nn.functional import pad

from bdm._core.errors import InputError
from bdm._core.files import require_space, sha256
from bdm._core.parallel import Map, keep_freed_memory, threads
from bdm._core.progress import Item, progress
from bdm._core.seeds import derive, numpy_generator, torch_generator
from bdm.autoencoder.observation import ObservationModel
from bdm.data.columns import RESERVED_COLUMNS, writable_name
from bdm.data.matrix import COMPRESSION, ENTRIES, appended_rows, new_h5ad
from bdm.data.modalities import MUDATA_FILE, write_h5mu
from bdm.data.read import read_cells
from bdm.data.space import SECTION
from bdm.generation.request import Request, complete_inputs
from bdm.model.match import labels_of
from bdm.model.model import BranchedModel, expected_counts, generated_noise, record_of_cells
from bdm.prior.base import Sampler
from bdm.settings import GenerationSettings

EXPECTED = "expected"  # layer of expected counts


@dataclass(frozen=True)
class GeneratedBlock:
    """Generated cells that are in memory together."""

    counts: sp.csr_matrix  # cells x genes
    latent: np.ndarray  # cells x latent dimensions
    # Population of each cell, if it is known only after generating the block; None if ``obs`` has it
    population: np.ndarray | None = None
    expected: np.ndarray | None = None  # expected counts, cells x genes, if requested


@dataclass(frozen=True)
class GeneratedCells:
    """Cells that are generated as their blocks are read."""

    obs: pd.DataFrame  # columns that are known before generation; see :meth:`whole_obs`
    var: pd.DataFrame
    blocks: Iterator[GeneratedBlock]  # all cells in the order of ``obs``; can be read once
    populations: tuple[str, ...] = ()  # names of all populations
    # obsm (without the latent), varm, uns: as in AnnData
    obsm: Mapping[str, np.ndarray] = field(default_factory=dict)
    varm: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    uns: Mapping[str, Any] = field(default_factory=dict)

    def whole_obs(self, population: Sequence[np.ndarray | None]) -> pd.DataFrame:
        """Return ``obs`` with ``sub_population`` from all blocks, if they have it."""
        names = [name for name in population if name is not None]
        return self.obs.assign(sub_population=in_order(np.concatenate(names), self.populations)) if names else self.obs

    def in_memory(self) -> ad.AnnData:
        """Generate all cells: counts in ``X`` (CSR), the latent in ``obsm['latent']``."""
        blocks = list(self.blocks)
        counts = sp.vstack([block.counts for block in blocks], format="csr")
        latent = np.concatenate([block.latent for block in blocks])
        obs = self.whole_obs([block.population for block in blocks])
        expected = [block.expected for block in blocks if block.expected is not None]
        layers = {EXPECTED: np.concatenate(expected)} if expected else {}
        return ad.AnnData(
            counts,
            obs=obs,
            var=self.var,
            obsm={"latent": latent, **self.obsm},
            varm=dict(self.varm),
            uns=dict(self.uns),
            layers=layers,
        )


def generate_cells(
    model: BranchedModel,
    request: Request,
    settings: GenerationSettings,
    *,
    seed: int,
) -> ad.AnnData:
    """Generate the requested cells in memory.

    Parameters
    ----------
    model
        Fitted model.
    request
        Numbers of cells by population, batch and values of covariates, from
        :func:`bdm.generation.request.request_cells`.
    settings
        Whether populations share their ancestors.
    seed
        Seed of every random draw; a cell does not depend on how many others are requested.

    Returns
    -------
    AnnData with raw counts in ``X`` (CSR, float32 as in scanpy), the model's ``var``, and the latent in
    ``obsm['latent']``. ``obs`` has ``cell_type``, ``sub_population`` and ``synthetic`` (True), and cell types, batches
    and covariates under their column names in the training data. With shared ancestors, ``ancestor`` is the number of
    the cell's root sample. Cells are in the order of the request's rows if these are cells; else they are ordered by
    population, so the first cells of a type may share a sub-population.
    In cell types with a sub-population of one donor, ``sub_population`` is the cell type.
    """
    return generated_cells(model, request, settings, seed=seed).in_memory()


def generated_cells(
    model: BranchedModel,
    request: Request,
    settings: GenerationSettings,
    *,
    seed: int,
    sampler: Sampler | None = None,
) -> GeneratedCells:
    """Generate the requested cells by blocks, see :func:`generate_cells`."""
    sampler = sampler or model.sampler()
    chunks = shared_chunks if settings.shared_ancestors else independent_chunks
    inputs = complete_inputs(model, request.table, seed)

    def decode(chunk: Chunk) -> GeneratedBlock:
        return decode_chunk(model, chunk, seed, inputs[chunk.population])

    def blocks() -> Iterator[GeneratedBlock]:
        keep_freed_memory()
        with threads() as run:
            sorted_blocks = run(decode, chunks(sampler, request, seed, run))
            yield from sorted_blocks if order is None else [reordered(list(sorted_blocks), order)]

    order, by_cell = request.order, pd.concat(inputs.values(), ignore_index=True)
    by_cell = by_cell if order is None else by_cell.iloc[order]
    obs = make_obs(model, request, by_cell.get("batch"), ancestors=settings.shared_ancestors)
    obs = obs.assign(**{name: by_cell[name].to_numpy() for name in model.input_names})
    named = request.table.assign(sub_population=np.asarray(named_populations(model, request.table)))
    record = record_of_cells(model, seed=seed, settings=asdict(settings), **replace(request, table=named).record)
    obs, obsm = obs.assign(**section_columns(model, by_cell)), position_columns(model, by_cell)
    if request.cells is not None:
        obs = request.cells.assign(**obs.set_index(request.cells.index))
    return GeneratedCells(obs, model.autoencoder.genes.copy(), blocks(), uns={"bdm": record}, obsm=obsm)


def reordered(blocks: Sequence[GeneratedBlock], order: np.ndarray) -> GeneratedBlock:
    """Join blocks, with their cells in another order."""
    counts = sp.vstack([block.counts for block in blocks], format="csr")
    return GeneratedBlock(counts[order], np.concatenate([block.latent for block in blocks])[order])


# ---- latents, in chunks: cells of one population that are sampled together

MIN_CHUNK, MAX_CHUNK = 64, 512  # cells that are sampled together; changing these changes the result of a seed


@dataclass(frozen=True)
class ChunkSpec:
    """Specification of a chunk of cells of one population."""

    population: str
    start: int  # number of cells of the population before the chunk
    size: int  # number of cells to sample, requested or not
    n_cells: int  # number of requested cells


def chunk_specs(request: Request) -> list[ChunkSpec]:
    """Divide the cells of each population into chunks of growing size.

    Chunks are sampled whole, so that a cell does not depend on the requested number.
    """
    specs = []
    for population, n_cells in request.n_by_population.items():
        start = 0
        while start < n_cells:
            size = min(max(start, MIN_CHUNK), MAX_CHUNK)
            specs.append(ChunkSpec(population, start, size, min(size, n_cells - start)))
            start += size
    return specs


@dataclass(frozen=True)
class Chunk:
    """Cells of one population that were sampled together."""

    population: str
    start: int  # number of cells of the population before these
    x: Tensor  # whitened cells, cells x dimensions


def independent_chunks(sampler: Sampler, request: Request, seed: int, run: Map = map) -> Iterator[Chunk]:
    """Sample independent cells, determined by seed, population and number alone."""

    def sample(spec: ChunkSpec) -> Chunk:
        generator = torch_generator(seed, "path", spec.population, spec.start)
        x = sampler.sample(spec.population, spec.size, generator)
        return Chunk(spec.population, spec.start, x[: spec.n_cells])

    specs = chunk_specs(request)
    yield from _progress(run(sample, specs), len(specs))


def shared_chunks(sampler: Sampler, request: Request, seed: int, run: Map = map) -> Iterator[Chunk]:
    """Sample all populations from shared ancestors, with all latents in memory."""
    specs = chunk_specs(request)
    by_start: dict[int, list[ChunkSpec]] = {}
    for spec in specs:
        by_start.setdefault(spec.start, []).append(spec)

    def sample(group: list[ChunkSpec]) -> dict[str, Tensor]:
        first = group[0]
        populations = [spec.population for spec in group]
        samples = sampler.sample_shared(populations, first.size, derive(seed, "ancestors", first.start))
        return {spec.population: samples[spec.population][: spec.n_cells].clone() for spec in group}

    samples = dict(zip(by_start, _progress(run(sample, by_start.values()), len(by_start)), strict=True))
    for spec in specs:
        yield Chunk(spec.population, spec.start, samples[spec.start].pop(spec.population))


def _progress(chunks: Iterator[Item], n: int) -> Iterator[Item]:
    return progress(chunks, total=n, doing="generating", unit="chunk")


# ---- counts, in portions of one size


def decode_chunk(model: BranchedModel, chunk: Chunk, seed: int, inputs: pd.DataFrame) -> GeneratedBlock:
    """Sample the counts of a chunk in portions of one size.

    With a fixed size, results do not depend on the number of cells, not even in the last digit. ``inputs`` are
    those of all cells of the population.
    """
    counts, latent = [], []
    observation = generated_noise(model, chunk.population, inputs)
    for portion in portions_of(chunk):
        at = portion.select(inputs)
        x = model.moved(portion.padded, chunk.population, at)
        expected = portion.without_padding(expected_counts(model, x, at, chunk.population))
        for_counts = numpy_generator(seed, "counts", chunk.population, portion.start)
        counts.append(sample_counts(model, expected, chunk.population, for_counts, observation))
        latent.append(portion.without_padding(latents(model, x)))
    return GeneratedBlock(sp.vstack(counts, format="csr"), np.concatenate(latent))


@dataclass(frozen=True)
class Portion:
    """Cells of a chunk that are decoded together."""

    start: int  # number of cells of the population before these
    n_cells: int
    padded: Tensor  # whitened cells with zero padding to ``MIN_CHUNK`` cells, cells x dimensions

    def without_padding(self, rows: np.ndarray) -> np.ndarray:
        """Remove the rows of the padding."""
        return rows[: self.n_cells]

    def select(self, inputs: pd.DataFrame) -> pd.DataFrame:
        """Select these cells from the inputs of the whole population, padded with the last cell."""
        return inputs.iloc[np.minimum(np.arange(self.start, self.start + len(self.padded)), len(inputs) - 1)]


def portions_of(chunk: Chunk) -> Iterator[Portion]:
    """Divide the cells of a chunk into portions of one size."""
    for i, x in enumerate(chunk.x.split(MIN_CHUNK)):
        yield Portion(chunk.start + i * MIN_CHUNK, len(x), pad(x, (0, 0, 0, MIN_CHUNK - len(x))))


def latents(model: BranchedModel, x: Tensor) -> np.ndarray:
    """Return the latents of whitened cells, cells x latent dimensions."""
    return np.asarray(model.whitening.inverse(x)[:, model.layout.latent])


def sample_counts(
    model: BranchedModel,
    mean: np.ndarray,
    population: str,
    generator: np.random.Generator,
    observation: ObservationModel | None = None,
) -> sp.csr_matrix:
    """Sample counts of a population from their means, cells x genes, by default with the model's noise."""
    counts = (observation or generated_noise(model, population)).sample(mean, generator)
    return model.with_protein_levels(counts, population, generator)


# ---- columns of obs


def make_obs(model: BranchedModel, request: Request, batch: pd.Series | None, *, ancestors: bool) -> pd.DataFrame:
    """Return ``obs`` of the requested cells."""
    table = request.table.loc[request.table.index.repeat(request.table["n_cells"])]
    columns = {
        **type_columns(model, table["cell_type"]),
        "sub_population": named_populations(model, table),
        "synthetic": True,
    }
    if ancestors:
        columns["ancestor"] = table.groupby("sub_population", sort=False).cumcount().to_numpy()
    columns |= batch_columns(model, None if batch is None else batch.to_numpy())
    return pd.DataFrame(columns, index=[f"synthetic-{number}" for number in range(1, len(table) + 1)])


def named_populations(model: BranchedModel, table: pd.DataFrame) -> pd.Categorical:
    """Return the population of each cell; only the cell type where a name of a sub-population would tell the donor."""
    unnamed = model.autoencoder.unnamed_types  # all names of a type: a single missing one would tell as much
    names = table["sub_population"].mask(table["cell_type"].isin(unnamed), table["cell_type"])
    return in_order(names, (*model.populations, *unnamed))


def in_order(values: Sequence[str] | np.ndarray, order: Sequence[str]) -> pd.Categorical:
    """Return a categorical in a given order, without unused categories (with them, scanpy's tests fail)."""
    return pd.Categorical(values, categories=order).remove_unused_categories()


def type_columns(model: BranchedModel, cell_type: Sequence[str], *names: str | None) -> dict[str, pd.Categorical]:
    """Return the columns with cell types: ``cell_type``, and as in training data."""
    known = set(cell_type) <= set(model.cell_types)
    column = in_order(cell_type, model.cell_types if known else sorted(set(cell_type)))
    return {"cell_type": column, **dict.fromkeys(names_in_file(model.label_key, *names), column)}


def batch_columns(
    model: BranchedModel, batch: Sequence[str] | np.ndarray | None, *names: str
) -> dict[str, pd.Categorical]:
    """Return columns with batches, named as in training data, if any."""
    if batch is None:
        return {}
    column = in_order(batch, model.autoencoder.batches)
    return dict.fromkeys(names_in_file(model.preparation["batch_key"], *names) or ["batch"], column)


def section_columns(model: BranchedModel, at: pd.DataFrame) -> dict[str, pd.Categorical]:
    """Return the column with sections, named as in training data, if the model has several."""
    if model.space is None or SECTION not in at or (key := model.preparation["section_key"]) is None:
        return {}
    return {writable_name(key): in_order(at[SECTION].to_numpy(), model.space.sections)}


def position_columns(model: BranchedModel, at: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return ``obsm`` with positions, named as in training data, if they were requested."""
    if model.space is None or not set(model.space.coordinates) <= set(at):
        return {}
    return {model.preparation["spatial_key"]: at[model.space.coordinates].to_numpy(dtype=float)}


def names_in_file(*names: str | None) -> list[str]:
    """Return column names as in files, without None and reserved names."""
    return [writable_name(name) for name in filter(None, names) if name not in RESERVED_COLUMNS]


# ---- files, written by blocks

ROWS = 2**10  # rows per chunk of the file, at most
# Higher than for prepared counts, as there may be many more cells; takes 1% of the time to generate them
COUNTS = COMPRESSION | {"compression_opts": 4}


def write_cells(path: Path, cells: GeneratedCells, checksums: Mapping[str, str]) -> None:
    """Generate cells and write them to an ``.h5ad`` or MuData file.

    An ``.h5ad`` file is written by blocks, with only ``obs`` in memory; a MuData file needs all cells in memory.
    ``checksums`` of input files are added to the record of the cells.
    """
    made_from = {f"{name}_sha256": checksum for name, checksum in checksums.items()}
    cells = replace(cells, uns={**cells.uns, "bdm": {**cells.uns["bdm"], **made_from}})
    if path.suffix.lower() == MUDATA_FILE:
        write_h5mu(path, cells.in_memory())
        return
    populations: list[np.ndarray | None] = []
    n_cells, n_genes = len(cells.obs), len(cells.var)
    empty = ad.AnnData(obs=cells.obs, var=cells.var, varm=dict(cells.varm), uns=dict(cells.uns), obsm=dict(cells.obsm))
    with (
        new_h5ad(path, empty, compression="gzip") as file,
        appended_rows(file, "X", n_columns=n_genes, max_entries=n_cells * n_genes, compression=COUNTS) as append,
    ):
        latent, expected = DenseRows(file, "obsm", "latent"), DenseRows(file, "layers", EXPECTED)
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
    """Dense array that grows by rows in an open ``.h5ad`` file."""

    file: h5py.File
    group: str
    name: str
    stored: h5py.Dataset | None = None

    def append(self, rows: np.ndarray) -> None:
        """Append rows; the first call creates the array."""
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
class GeneratedFile:
    """File of generated cells."""

    name: str  # name of the file, without its folder
    sha256: str
    n_by_type: pd.Series  # number of cells by cell type
    var: pd.DataFrame
    seed: int
    columns: tuple[str, ...]  # columns of ``obs``
    sampling: dict[str, Any]  # settings of ``bdm generate``, by name

    @classmethod
    def read(cls, path: Path, model: BranchedModel, *, checksum: str) -> Self:
        """Read the record of a file from ``bdm generate``, without its counts."""
        adata = read_cells(path, on_disk=True)
        record = dict(adata.uns.get("bdm", {}))
        recorded = record.get("model_sha256")
        is_generated = "request" in record and "synthetic" in adata.obs and bool(adata.obs["synthetic"].all())
        if recorded is None or not is_generated:
            raise InputError(f"{path} has other cells than bdm generate writes; name a file that it wrote.")
        if recorded != checksum:
            raise InputError(
                f"{path} has cells of another model (its checksum begins with {recorded[:8]}, this model's with "
                f"{checksum[:8]}); generate cells of this model."
            )
        return cls(
            Path(path).name,
            sha256(path),
            labels_of(adata.obs, model).value_counts(),
            adata.var,
            int(record["seed"]),
            tuple(map(str, adata.obs.columns)),
            json.loads(record["settings"]),
        )
