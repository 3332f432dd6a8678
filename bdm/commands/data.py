"""``bdm example`` and ``bdm prepare``: cells to fit a model to."""

import json
from pathlib import Path
from typing import Annotated

from bdm._core.errors import at
from bdm.commands.base import OutCells, Summary
from bdm.settings import Labels, PrepareSettings


def example(out: OutCells) -> Summary:
    """Write example cells: 700 real blood cells of 10 types, 765 genes.

    Labels are in obs['bulk_labels'].

    Example: bdm example cells.h5ad
    """
    from bdm.data.matrix import write_h5ad
    from bdm.data.read import pbmc68k_counts

    write_h5ad(out, pbmc68k_counts())
    return Summary(then=("bdm", "fit", out, "model/", "--label-key", "bulk_labels"))


def prepare(
    data: Annotated[Path, "Cells: .h5ad, .h5mu, .zarr, .loom, 10x .h5, or a 10x folder."],
    out: OutCells,
    *,
    labels: Labels = None,
    settings: PrepareSettings,
) -> Summary:
    """Check labelled counts, select cells and genes, and split cells by type.

    Example: bdm prepare cells.h5ad prepared.h5ad --label-key bulk_labels
    """
    from bdm._core.files import sha256
    from bdm.data.genes import gene_lists
    from bdm.data.prepare import prepared_cells, recorded_warnings, summary
    from bdm.data.read import read_cells

    gene_lists(settings)  # rejected before any cells are read
    with recorded_warnings() as warnings:
        cells = read_cells(data, labels=labels, on_disk=True, **settings.reading)
        with at(data):
            prepared = prepared_cells(cells, settings)
            prepared.uns["bdm"] |= {"data": data.name, "data_sha256": sha256(data)}
            if labels is not None:
                prepared.uns["bdm"] |= {"labels": labels.name, "labels_sha256": sha256(labels)}
            if warnings:
                prepared.uns["bdm"]["warnings"] = json.dumps(warnings, ensure_ascii=False)
            written = prepared.write(out)
    return Summary({"cells": summary(written)}, then=("bdm", "autoencoder", out, "autoencoder/"))
