"""Reading of cells from all supported formats, with checks for damage; example cells."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData, io
from scipy import sparse

from bdm._core.errors import InputError, error_prefix, missing_package
from bdm._core.files import check_hdf5, reading
from bdm.data.header import separator_of
from bdm.data.matrix import Matrix, SparseMatrix, reject_if_unreadable
from bdm.data.modalities import (
    FEATURE_TYPES,
    MUDATA_FILE,
    PROTEIN_NAMES,
    PROTEINS,
    TYPE_COLUMN,
    from_mudata,
    has_modalities,
    in_blocks,
    is_rna,
    read_h5mu,
)

logger = logging.getLogger(__name__)


def read_cells(
    path: Path,
    *,
    labels: Path | None = None,
    on_disk: bool = False,
    modality: Sequence[str] = (),
    intersect: bool = False,
    counts: str = "auto",
) -> AnnData:
    """Read cells from a file or folder.

    With ``on_disk``, matrices of ``.h5ad`` and ``.zarr`` files stay on disk, and only part of ``uns`` is read. Several
    modalities become blocks of one matrix in memory; see :func:`bdm.data.modalities.from_mudata` for the options.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"No such file or folder: {path}.")
    if path.suffix.lower() == MUDATA_FILE:
        with reject_if_unreadable(path), warnings.catch_warnings(action="ignore"):
            check_hdf5(path)
            parts, obs, obsm, uns = read_h5mu(path)
        with error_prefix(path):
            adata = from_mudata(parts, obs, obsm=obsm, modality=modality, intersect=intersect, counts=counts)
        adata.uns |= uns
    else:
        adata = read_anndata(path, on_disk=on_disk)
        with error_prefix(path):
            adata = in_blocks(adata, counts=counts)
    return adata if labels is None else add_labels(adata, labels)


def cells_in(
    adata: Any,
    *,
    on_disk: bool = True,
    modality: Sequence[str] = (),
    intersect: bool = False,
    counts: str = "auto",
) -> AnnData:
    """Return the cells of an AnnData, a MuData or a file.

    Several modalities become blocks of one matrix.
    """
    if isinstance(adata, str | Path):
        return read_cells(Path(adata), on_disk=on_disk, modality=modality, intersect=intersect, counts=counts)
    if isinstance(adata, AnnData):
        return in_blocks(with_text_names(adata), counts=counts)
    if isinstance(getattr(adata, "mod", None), Mapping):  # a MuData, without an import of its package
        obsm = getattr(adata, "obsm", {})
        return from_mudata(adata.mod, adata.obs, obsm=obsm, modality=modality, intersect=intersect, counts=counts)
    raise InputError(f"Cells must be an AnnData, a MuData or a file of one, not {type(adata).__name__}.")


def with_text_names(adata: AnnData) -> AnnData:
    """Convert numeric names of cells and genes to text, if there are any."""
    if all(isinstance(name, str) for names in (adata.obs_names, adata.var_names) for name in names[:1]):
        return adata
    with warnings.catch_warnings(action="ignore"):  # about numeric names
        with_text = adata.to_memory(copy=True)
    with_text.obs_names, with_text.var_names = (names.astype(str) for names in (adata.obs_names, adata.var_names))
    return with_text


def rna_in(adata: Any, *, counts: str = "auto") -> AnnData:
    """Return the RNA of cells; log if other modalities are left out."""
    cells = with_text_names(adata) if isinstance(adata, AnnData) else cells_in(adata, counts=counts)
    raw = None if cells.raw is None else cells.raw.var
    if not has_modalities(cells.var) and (raw is None or not has_modalities(raw)):
        return cells
    logger.info("RNA is used alone; proteins and peaks are left out.")
    rna = cells[:, is_rna(cells.var)].to_memory()
    if cells.raw is not None and raw is not None:
        rna.raw = cells.raw[:, is_rna(raw)].to_adata()
    return rna


def read_anndata(path: Path, *, on_disk: bool) -> AnnData:
    """Read cells of all formats except MuData, and check their matrices."""
    read = select_reader(path)
    with reject_if_unreadable(path), warnings.catch_warnings(action="ignore"):
        if path.is_file():
            check_hdf5(path)
        opened = open_h5ad(path) if on_disk else None
        adata = read(path) if opened is None else opened
        for matrix in (adata.X, adata.raw and adata.raw.X, *adata.layers.values()):
            if isinstance(matrix, SparseMatrix):
                if matrix.indptr.dtype != matrix.indices.dtype:  # scipy requires one type
                    index_type = sparse.get_index_dtype(maxval=max(matrix.nnz, *matrix.shape))
                    matrix.indptr, matrix.indices = matrix.indptr.astype(index_type), matrix.indices.astype(index_type)
                matrix.check_format()  # a damaged matrix could end the process
    return adata


def open_h5ad(path: Path) -> AnnData | None:
    """Open an ``.h5ad`` or ``.zarr`` file in backed mode; None for other formats."""
    openers = {".h5ad": h5py.File, ".zarr": zarr.open_group}
    suffix = path.suffix.lower()
    if suffix not in openers:
        return None
    file = openers[suffix](path, mode="r")
    if not all(name in file and file[name].attrs.get("encoding-type") == "dataframe" for name in ("obs", "var")):
        return None
    uns = file.get("uns", {})
    layers = {name: matrix_at(file["layers"][name]) for name in file.get("layers", ())}
    raw = {"X": matrix_at(file["raw/X"]), "var": io.read_elem(file["raw/var"])} if "raw/X" in file else None
    obsm = file.get("obsm", {})
    read = [name for name in obsm if name == PROTEINS or getattr(obsm[name], "shape", (0, 0))[1:] in ((2,), (3,))]
    return AnnData(
        matrix_at(file["X"]) if "X" in file else None,
        obs=io.read_elem(file["obs"]),
        var=io.read_elem(file["var"]),
        uns={
            name: io.read_elem(uns[name])
            for name in uns
            if name in ("bdm", PROTEIN_NAMES) or uns[name].attrs.get("encoding-type") == "string"
        },
        obsm={name: io.read_elem(obsm[name]) for name in read},  # proteins and positions
        layers=layers,
        raw=raw,
    )


def matrix_at(stored: h5py.Group | h5py.Dataset | zarr.Group | zarr.Array[Any]) -> Matrix:
    """Return a stored matrix, on disk if its format allows it."""
    kind = stored.attrs.get("encoding-type")
    if kind in ("csr_matrix", "csc_matrix"):
        check_chunks(stored)
        return io.sparse_dataset(stored)
    return stored if kind == "array" else io.read_elem(stored)


SMALL = 100  # entries; smaller matrices may be all zeros, for which Zarr stores no file


def check_chunks(stored: h5py.Group | zarr.Group) -> None:
    """Reject a Zarr matrix with missing files, which would read as zeros."""
    shape: Any = stored.attrs["shape"]
    for name in ("data", "indices") if min(shape) > 1 else ("data",):  # indices of one gene are all zero
        part = stored[name]
        if isinstance(part, zarr.Array) and part.size > SMALL and part.nchunks_initialized < part.nchunks:
            raise ValueError(f"{part.nchunks - part.nchunks_initialized} files of {part.path} are missing")


def select_reader(path: Path) -> Callable[[Path], AnnData]:
    """Select a reader by file ending; folders other than ``.zarr`` are 10x."""
    readers: dict[str, Callable[[Path], AnnData]] = {
        ".h5ad": io.read_h5ad,
        ".zarr": io.read_zarr,
        ".loom": read_loom,
        ".h5": read_10x_h5,
    }
    suffix = path.suffix.lower()
    if path.is_dir() and suffix != ".zarr":
        return read_10x_folder
    if suffix not in readers:
        raise InputError(f"{path} {explain_ending(path, ', '.join((*readers, MUDATA_FILE)))}")
    return readers[suffix]


FROM_R = (
    "write it as .h5ad in R first, for example by anndataR::write_h5ad(object, 'cells.h5ad') (From R and Seurat, in "
    "the documentation)"
)


def explain_ending(path: Path, known: str) -> str:
    """Explain why a file with this ending cannot be read."""
    name = path.name.lower()
    if name.endswith((".rds", ".rda", ".rdata", ".h5seurat")):
        return f"holds an R object, which cannot be read; {FROM_R}."
    if name.endswith((".mtx", ".mtx.gz")):
        return "is a matrix without names of genes and cells; give the 10x folder with the tables of names."
    return f"has an unknown ending; cells are read from {known} (10x), or a 10x folder."


def read_loom(path: Path) -> AnnData:
    """Read a ``.loom`` file of velocyto, SCope or AnnData."""
    try:
        import loompy  # takes seconds, and overrides OMP_NUM_THREADS for the process
    except ImportError as error:
        raise missing_package(f"{path}", "loompy", extra="loom") from error
    with loompy.connect(str(path), "r") as loom:
        cell_names = first_available(("CellID", "obs_names", "index"), loom.ca.keys(), axis="column")
        gene_names = first_available(("Gene", "var_names", "index"), loom.ra.keys(), axis="row")
    return io.read_loom(path, X_name="", obs_names=cell_names, var_names=gene_names)


def first_available(names: tuple[str, ...], available: list[str], *, axis: str) -> str:
    """Return the first of ``names`` that is available."""
    for name in names:
        if name in available:
            return name
    raise ValueError(f"no {axis} attribute {' or '.join(names)}")


def read_10x_h5(path: Path) -> AnnData:
    """Read all known modalities from a Cell Ranger ``.h5`` file (any version)."""
    import scanpy as sc  # takes a second, and few files need it

    return known_features(sc.read_10x_h5(path, gex_only=False))


def read_10x_folder(path: Path) -> AnnData:
    """Read all known modalities from a Cell Ranger folder; a file prefix is allowed."""
    import scanpy as sc

    matrices = list(path.glob("*matrix.mtx*"))
    if len(matrices) != 1:
        raise ValueError(f"a 10x folder has one file *matrix.mtx(.gz), but this folder has {len(matrices)}")
    prefix = matrices[0].name.partition("matrix.mtx")[0]
    return known_features(sc.read_10x_mtx(path, prefix=prefix, make_unique=False, gex_only=False))


def known_features(adata: AnnData) -> AnnData:
    """Select the genes, proteins and peaks of 10x data, and make their names unique."""
    if TYPE_COLUMN in adata.var:
        adata = adata[:, adata.var[TYPE_COLUMN].isin(FEATURE_TYPES.values()).to_numpy()].copy()
    adata = in_blocks(adata)  # X is the only matrix
    if n_repeated := adata.var_names.duplicated().sum():
        logger.info("Numbered %d repeated gene symbols; identifiers are in var['gene_ids'].", n_repeated)
        adata.var_names_make_unique()
    return adata


def add_labels(adata: AnnData, path: Path) -> AnnData:
    """Add the columns of a label table to ``obs``, replacing existing ones."""
    table = read_labels(path)
    missing = adata.obs_names.difference(table.index, sort=False)
    if len(missing):
        raise InputError(
            f"{path} has no row for {len(missing)} of {adata.n_obs} cells, for example {missing[0]} "
            f"(its first row is {table.index[0]}); add them, or leave these cells out of the data."
        )
    surplus = table.index.difference(adata.obs_names, sort=False)
    if len(surplus):
        logger.warning("%s has %d rows for cells not in the data, for example %s.", path, len(surplus), surplus[0])
    replaced = table.columns.intersection(adata.obs.columns)
    if len(replaced):
        logger.warning("%s replaces columns of obs: %s.", path, ", ".join(replaced))
    adata.obs[table.columns] = table.reindex(adata.obs_names)
    return adata


def read_labels(path: Path) -> pd.DataFrame:
    """Read a table of text columns, indexed by its first column; see :func:`add_labels`."""
    path = Path(path)
    separator = separator_of(path)
    with reading(path, "a table"):
        table = pd.read_csv(path, sep=separator, dtype=str)
    # R writes no header for row names, which pandas then uses as the index.
    if isinstance(table.index, pd.RangeIndex):
        table = table.set_index(table.columns[0])
    if table.empty or table.index.nlevels > 1:
        separated = "tabs" if separator == "\t" else "commas"
        raise InputError(f"{path} is not a table of cell names and labels, separated by {separated}.")
    table.index = table.index.astype(str)
    if not table.index.is_unique:
        repeated = table.index[table.index.duplicated()][0]
        raise InputError(f"{path} has more than one row for cell {repeated}; keep one.")
    return table


def pbmc68k_counts() -> AnnData:
    """Return counts of 700 real blood cells of 10 types, for examples.

    scanpy ships these cells (Zheng et al. 2017, https://doi.org/10.1038/ncomms14049) normalised to 10,000 counts and
    log1p-transformed. With the total counts of each cell, which are included, raw counts are recovered exactly.

    Returns 700 cells x 765 genes with integer counts in ``X`` (CSR, float32) and cell types in ``obs['bulk_labels']``.
    """
    import scanpy as sc

    cells = sc.datasets.pbmc68k_reduced()
    counts = counts_before_rounding(cells).rint()
    return AnnData(counts.astype(np.float32), obs=cells.obs, var=cells.raw.var)


def counts_before_rounding(cells: AnnData) -> sparse.csr_matrix:
    """Undo log1p and the normalisation to 10,000 counts per cell."""
    totals = cells.obs["n_counts"].to_numpy(dtype=float)
    return sparse.csr_matrix(sparse.diags(totals / 1e4) @ cells.raw.X.astype(float).expm1())
