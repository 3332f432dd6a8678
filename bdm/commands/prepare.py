"""``bdm prepare``: check labelled counts, select cells and genes, and split cells."""

import json
from pathlib import Path
from typing import Annotated

from bdm._core.errors import error_prefix
from bdm.commands.base import Labels, OutCells, Summary
from bdm.settings import PrepareSettings


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
        with error_prefix(data):
            prepared = prepared_cells(cells, settings)
            prepared.uns["bdm"] |= {"data": data.name, "data_sha256": sha256(data)}
            if labels is not None:
                prepared.uns["bdm"] |= {"labels": labels.name, "labels_sha256": sha256(labels)}
            if warnings:
                prepared.uns["bdm"]["warnings"] = json.dumps(warnings, ensure_ascii=False)
            written = prepared.write(out)
    return Summary({"cells": summary(written)}, then=("bdm", "autoencoder", out, "autoencoder/"))
