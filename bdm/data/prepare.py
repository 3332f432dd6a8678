"""Preparation of labelled counts for fitting a model, and reading of prepared cells."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem
from scipy import sparse

from bdm import __version__
from bdm._core.errors import InputError, counted
from bdm._core.validation import donors_rejection
from bdm.data.columns import (
    canonical_columns,
    check_crossed,
    covariate_columns,
    hint_at_batches,
    hint_at_types,
    is_missing,
    is_text,
    without_unused_categories,
    writable,
    writable_name,
)
from bdm.data.counts import CellCounts, count_limits, count_matrix, find_counts, inspect_counts, raw_counts
from bdm.data.filters import (
    check_min_donors,
    check_names,
    check_trained_batches,
    split_by_type,
    without_empty_cells,
    without_small_types,
    without_types,
    without_types_of_few_donors,
    without_uncounted_cells,
)
from bdm.data.genes import (
    GeneNames,
    choose_genes,
    gene_lists,
    hint_at_symbols,
    listed_genes,
    symbol_column,
)
from bdm.data.matrix import appended_rows, blocks_of_rows, new_h5ad, row_offsets, take_rows, to_row_storage
from bdm.data.modalities import (
    FEATURES,
    FORM,
    HIGHLY_VARIABLE,
    Modality,
    blocks_of,
    encoded_features,
    features_in_words,
    modalities_of,
)
from bdm.data.read import read_cells
from bdm.data.space import POSITIONS, check_sections, positions_in
from bdm.settings import PrepareSettings

logger = logging.getLogger(__name__)


def prepare(adata: AnnData, settings: PrepareSettings) -> AnnData:
    """Check counts, select cells and genes, and split the cells.

    Returns the selection with ``cell_type``, ``split`` and, with their keys, ``batch`` and ``donor`` in ``obs``.
    """
    return prepared_cells(adata, settings).in_memory()


def prepared_cells(adata: AnnData, settings: PrepareSettings) -> PreparedCells:
    """Select cells and genes as :func:`prepare`, reading counts by blocks."""
    listed_names, kept_names = gene_lists(settings)
    if sentence := donors_rejection(settings.min_donors, settings.donor_key):
        raise InputError(sentence)
    check_names(adata.obs_names, kind="cell")
    check_names(adata.var_names, kind="gene")
    # Counts of all modalities (`whole`), and of RNA alone
    modalities = modalities_of(adata.var)
    whole = raw_counts(adata, source=settings.counts) if len(modalities) > 1 else None
    if whole is None:
        cells, n_genes = find_counts(adata, source=settings.counts)
    else:
        cells = whole[:, modalities[0].features].copy()
        n_genes = np.diff(cells.X.indptr)
    check_names(cells.var_names, kind="gene")  # raw may have different genes

    column = symbol_column(cells.var, settings.gene_symbols)
    names = GeneNames(writable(cells.var), None if column is None else writable_name(column))
    hint_at_symbols(names)
    listed, kept = (None if some is None else listed_genes(some, names) for some in (listed_names, kept_names))

    obs, left_out = choose_cells(cells.obs, pd.Series(n_genes, cells.obs_names), settings)
    if is_prepared(adata):
        warn_of_former_test_cells(adata.obs["split"], obs["split"])
    rows, is_train = cells.obs_names.get_indexer(obs.index), (obs["split"] == "train").to_numpy()
    counts = with_limits(CellCounts(cells.X, rows), obs["cell_type"], is_train, settings)
    batch = obs["batch"][is_train] if "batch" in obs else None
    variable, others = choose_genes(counts.of_cells(is_train), names, batch, settings, listed=listed, kept=kept)
    chosen = np.concatenate([variable, others])

    record = record_of_preparation(settings, names, n_cells=cells.n_obs, **left_out)
    var, other_modalities = names.var.iloc[chosen].drop(columns=HIGHLY_VARIABLE, errors="ignore"), None
    if whole is not None:
        features = [chosen_features(whole, modality, rows[is_train], settings) for modality in modalities[1:]]
        selected = whole[rows, np.concatenate(features)]
        other_modalities, var = sparse.csr_matrix(selected.X), pd.concat([var, writable(selected.var)])
        record[FORM] = str(adata.uns.get(FORM, FEATURES))
    if len(others):
        var = var.assign(**{HIGHLY_VARIABLE: ~var.index.isin(names.index[others])})
    var = without_unused_categories(var)
    positions = None
    if settings.spatial_key is not None:
        positions = positions_in(adata, settings.spatial_key)[rows]
        check_sections(obs, positions)
    elif POSITIONS in adata.obsm:
        logger.info("The positions in obsm['spatial'] are not used; to use them, set `spatial_key='spatial'`.")
    max_entries = int(n_genes[rows].sum()) + (0 if other_modalities is None else other_modalities.nnz)
    return PreparedCells(obs, var, {"bdm": record}, counts, chosen, max_entries, other_modalities, positions)


def record_of_preparation(settings: PrepareSettings, names: GeneNames, **numbers: Any) -> dict[str, Any]:
    """Return the record of a preparation for ``uns``: settings, and ``numbers`` of the input and what was left out.

    Files are recorded by name, because folders may name a person.
    """
    files = {
        name: Path(value).name
        for name in ("genes", "keep_genes")
        if isinstance(value := getattr(settings, name), str | Path)
    }
    return {
        "version": __version__,
        "seed": settings.seed,
        "settings": json.dumps(asdict(settings) | {"gene_symbols": names.column} | files),
        "input": json.dumps({"n_genes": len(names.index), **numbers}, ensure_ascii=False),
    }


@dataclass(frozen=True)
class PreparedCells:
    """Selected cells and genes; counts are read when they are needed.

    Cells without counts of the selected genes are left out when the counts are read.
    """

    obs: pd.DataFrame  # selected cells, with or without counts of the selected genes
    var: pd.DataFrame
    uns: dict[str, Any]
    counts: CellCounts  # counts of all genes, in the order of ``obs``
    chosen: np.ndarray  # indices of the selected genes, highly variable ones first
    max_entries: int  # upper bound on the number of nonzero counts
    # Counts of the selected proteins and peaks, as columns after the genes; None for RNA alone
    other_modalities: sparse.csr_matrix | None = None
    positions: np.ndarray | None = None  # of each cell in ``obs``, cells x coordinates

    def in_memory(self) -> AnnData:
        """Read all counts into memory, see :func:`prepare`."""
        rows, blocks = zip(*self.blocks(), strict=True)
        counts = sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
        return self.cells_with_counts(np.concatenate(rows), counts)

    def write(self, path: Path) -> AnnData:
        """Write an ``.h5ad`` file by blocks; return the cells without ``X``."""
        with new_h5ad(path, AnnData(var=self.var, uns=self.uns)) as file:
            with appended_rows(file, "X", n_columns=len(self.var), max_entries=self.max_entries) as append:
                rows = []
                for block_rows, block in self.blocks():
                    append(block)
                    rows.append(block_rows)
            cells = self.cells_with_counts(np.concatenate(rows))
            cells.strings_to_categoricals()
            write_elem(file, "obs", cells.obs, dataset_kwargs={"compression": "gzip"})
            write_elem(file, "obsm", dict(cells.obsm), dataset_kwargs={"compression": "gzip"})
        return cells

    def blocks(self) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
        """Yield the cells with counts: their indices in ``obs``, and counts."""
        for rows, block in self.counts:
            counts = block[:, self.chosen]
            if self.other_modalities is not None:
                counts = sparse.hstack([counts, self.other_modalities[rows]], format="csr")
            is_counted = counted_cells(counts, self.var)
            yield np.arange(rows.start, rows.stop)[is_counted], counts[is_counted]

    def cells_with_counts(self, rows: np.ndarray, counts: sparse.csr_matrix | None = None) -> AnnData:
        """Return the cells with counts (``rows``), and check their ``obs``."""
        obs = without_uncounted_cells(self.obs, rows, n_genes=len(encoded_features(self.var)))
        check_trained_batches(obs)
        check_min_donors(obs, recorded_min_donors(self))
        obsm = {} if self.positions is None else {POSITIONS: self.positions[rows]}
        return AnnData(counts, writable(without_unused_categories(obs)), self.var, self.uns, obsm=obsm)


def counted_cells(counts: sparse.csr_matrix, var: pd.DataFrame) -> np.ndarray:
    """Return a mask of cells with counts of each modality except proteins, and of highly variable genes."""
    parts = [counts[:, block.features] for block in blocks_of(var) if block.normalised and block.encoded]
    return np.asarray(np.logical_and.reduce([np.diff(part.indptr) > 0 for part in parts]))


def choose_cells(
    obs: pd.DataFrame, n_genes: pd.Series, settings: PrepareSettings
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Select and split cells, and check the columns that the settings name.

    Returns ``obs`` of the selected cells, and the numbers of cells and types that each setting removed.
    """
    labelled = canonical_columns(obs, settings)
    selected = without_types(labelled, settings.leave_out)
    expressing = without_empty_cells(selected, n_genes, min_genes=settings.min_genes_per_cell)
    large = without_small_types(expressing, settings)
    fractions = {"validation": settings.validation, "test": settings.test}
    large = large.assign(split=split_by_type(large["cell_type"], **fractions, seed=settings.seed))
    chosen = without_types_of_few_donors(large, settings)
    if settings.donor_key is not None:
        check_crossed(chosen, settings.donor_key)
    covariates = covariate_columns(chosen, settings.covariate_key)
    hint_at_types(chosen["cell_type"])
    if settings.batch_key is None:
        hint_at_batches(obs.loc[chosen.index], chosen["cell_type"], settings)
    left_out = {
        "cells_left_out": {
            "drop_unlabelled": len(n_genes) - len(labelled),
            "min_genes_per_cell": len(selected) - len(expressing),
        },
        "types_left_out": [
            *types_lost(labelled, selected, "leave_out"),
            *types_lost(expressing, large, "min_cells_per_type"),
            *types_lost(large, chosen, "min_donors"),
        ],
    }
    chosen = chosen.rename(columns={key: writable_name(key) for key in settings.covariate_key}).assign(**covariates)
    return without_unused_categories(chosen), left_out


def types_lost(before: pd.DataFrame, after: pd.DataFrame, setting: str) -> list[dict[str, Any]]:
    """List the cell types that a step removed, largest first."""
    n_cells = before["cell_type"][~before["cell_type"].isin(after["cell_type"].unique())].value_counts()
    return [
        {"cell_type": str(name), "n_cells": int(number), "setting": setting}
        for name, number in n_cells.items()
        if number
    ]


def chosen_features(cells: AnnData, modality: Modality, training: np.ndarray, settings: PrepareSettings) -> np.ndarray:
    """Return the columns of all proteins, or of the most frequent peaks."""
    columns = np.arange(modality.features.start, modality.features.stop)
    if modality.kind == "prot":
        return columns
    n_cells = np.bincount(take_rows(cells.X, training)[:, modality.features].indices, minlength=len(columns))
    most = np.argsort(-n_cells, kind="stable")[: settings.n_peaks]
    most = np.sort(most[n_cells[most] >= max(settings.min_cells_per_gene, 1)])
    if not len(most):
        raise InputError(
            f"no peak of modality {modality.name} is in {settings.min_cells_per_gene} training cells; lower "
            "`min_cells_per_gene=`."
        )
    return np.asarray(columns[most])


MANY_OUTLYING = 0.005  # share of all counts; at 0.016, clipping brings generated cells closer to real ones


def with_limits(cells: CellCounts, cell_type: pd.Series, is_train: np.ndarray, settings: PrepareSettings) -> CellCounts:
    """Limit outlying counts if the settings ask for it; otherwise, warn of many."""
    limits, counts, is_outlying = count_limits(cells.matrix, cells.rows, cell_type, is_train, seed=settings.seed)
    share = float(counts.data[is_outlying].sum() / max(counts.data.sum(), 1))
    description = (
        f"{counted(is_outlying.sum(), 'outlying value')} of "
        f"{counted(len(np.unique(counts.indices[is_outlying])), 'gene')} in "
        f"{counted(counts.shape[0], 'training cell')}, with {100 * share:.2g}% of all counts"
    )
    if settings.clip_outliers:
        logger.info("Clipped %s.", description)
        return replace(cells, limits=limits)
    if share >= MANY_OUTLYING:
        logger.warning(
            "There are %s; to lower them to the largest regular ones, use `settings.prepare.clip_outliers=True`.",
            description,
        )
    return cells


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Yield a list that records warnings about the data.

    It has no warnings about memory, or about removed cells, which are counted separately.
    """
    messages: list[str] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name not in ("bdm.data.filters", "bdm.data.matrix"):
                messages.append(record.getMessage())

    recorder, package = Recorder(logging.WARNING), logging.getLogger("bdm")
    package.addHandler(recorder)
    try:
        yield messages
    finally:
        package.removeHandler(recorder)


# ---- prepared cells


def is_prepared(adata: AnnData) -> bool:
    """Return whether ``bdm prepare`` made these cells."""
    return {"cell_type", "split"} <= set(adata.obs) and "bdm" in adata.uns


def warn_of_former_test_cells(before: pd.Series, after: pd.Series) -> None:
    """Warn of test cells of an earlier preparation that are now used for the fit."""
    fitted = int((before.reindex(after.index).eq("test") & after.ne("test")).sum())
    if fitted:
        logger.warning(
            "The cells were prepared before, and %d of their test cells are now used for the fit; do not evaluate with "
            "these. To keep the split, fit by bdm autoencoder, hierarchy and train, or fit the original cells.",
            fitted,
        )


def read_prepared(path: Path, *, on_disk: bool = False) -> AnnData:
    """Read and check prepared cells."""
    adata = read_cells(path, on_disk=on_disk)
    if not is_prepared(adata):
        raise InputError(f"{path} was not made by bdm prepare; run it first.")
    adata.X = to_row_storage(adata.X)
    if fault := prepared_fault(adata):
        raise InputError(f"{path} was changed after bdm prepare wrote it: it has {fault}; run bdm prepare again.")
    if adata.X.dtype != np.float32:  # another program may have written the counts
        adata.X = sparse.vstack([count_matrix(block) for _, block in blocks_of_rows(adata.X)], format="csr")
    return adata


def prepared_fault(prepared: AnnData) -> str | None:
    """Describe why no model can be fitted to prepared cells; None if one can.

    Only the values in the first block of counts are checked.
    """
    obs, matrix = prepared.obs, prepared.X
    if recorded_settings(prepared).get("batch_key") is not None and "batch" not in obs:
        return "no column 'batch' in obs"
    for column in filter(obs.__contains__, ("cell_type", "split", "batch")):
        if not (isinstance(obs[column].dtype, pd.CategoricalDtype) and is_text(obs[column])):
            return f"values in obs[{column!r}] that are not categories of text"
        if (missing := is_missing(obs[column])).any():
            return f"no value in obs[{column!r}] for {missing.sum()} of {len(obs)} cells"
    if not (obs["split"] == "train").any():
        return "no training cells, 'train' in obs['split']"
    if untrained := sorted(set(obs["cell_type"]) - set(obs["cell_type"][obs["split"] == "train"])):
        return f"no training cells of the type {untrained[0]!r}"
    if matrix is None:
        return "no counts in X"
    rows, block = next(blocks_of_rows(matrix))
    fault, n_genes = inspect_counts(AnnData(block, obs=obs.iloc[rows], var=prepared.var))
    if fault:
        return fault
    n_entries = np.diff(row_offsets(matrix))
    n_entries[rows] = n_genes
    if not n_entries.all():
        return f"no counts for {(n_entries == 0).sum()} of {len(obs)} cells, such as {obs.index[n_entries.argmin()]}"
    return None


def gene_names(prepared: AnnData) -> GeneNames:
    """Return the gene names of prepared cells, with the recorded symbols."""
    return GeneNames(prepared.var, recorded_settings(prepared).get("gene_symbols"))


def preparation(prepared: AnnData) -> dict[str, Any]:
    """Return how cells were prepared: settings, and hash of the input file."""
    record = prepared.uns["bdm"]
    form = {FORM: record[FORM]} if FORM in record else {}  # only with several modalities
    return {"prepare": json.loads(record["settings"]), "data_sha256": record.get("data_sha256"), **form}


def has_donors(prepared: AnnData) -> bool:
    """Return whether the donors of prepared cells are known."""
    return recorded_settings(prepared).get("donor_key") is not None and "donor" in prepared.obs


def recorded_covariates(prepared: AnnData) -> tuple[str, ...]:
    """Return the columns of ``obs`` with the covariates of prepared cells."""
    return tuple(map(writable_name, recorded_settings(prepared).get("covariate_key", ())))


def recorded_min_donors(prepared: AnnData | PreparedCells) -> int:
    """Return the recorded ``min_donors``, see :func:`bdm.data.filters.effective_donors`."""
    return int(recorded_settings(prepared).get("min_donors", PrepareSettings.min_donors))


def recorded_settings(prepared: AnnData | PreparedCells) -> dict[str, Any]:
    """Return the settings that cells were prepared with, or an empty dict."""
    settings: dict[str, Any] = json.loads(prepared.uns.get("bdm", {}).get("settings", "{}"))
    return settings


def summary(prepared: AnnData | PreparedCells) -> str:
    """Format the number of cells by type and split as a table."""
    obs = prepared.obs
    by_type = pd.crosstab(obs["cell_type"], obs["split"])
    table = pd.concat([by_type, by_type.sum().to_frame("all").T]).rename_axis(by_type.index.name)
    table["all"] = table.sum(axis=1)
    return f"{len(obs):,} cells x {features_in_words(prepared.var)}\n{table.to_string()}"
