"""``bdm reconstruct``: generate cells of an ancestor, or of an unsampled time."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from bdm.commands.base import OutCells, Output, Summary
from bdm.settings import Counts, ExtrapolateLineage, Labels, LineageNode, LineageTime, Seed


def reconstruct(
    lineage: Annotated[Path, "Folder made by bdm lineage."],
    data: Annotated[Path, "Cells that the lineage was fitted on, with raw counts."],
    out: OutCells,
    *,
    node: LineageNode,
    at: LineageTime = None,
    cells: Annotated[int, Ge(1), "Number of cells."] = 100,
    extrapolate: ExtrapolateLineage = False,
    genes: Annotated[Path | None, Output, "Table of the expected expression of genes to write as well (.csv)."] = None,
    counts: Counts = "auto",
    labels: Labels = None,
    seed: Seed = 0,
) -> Summary:
    """Generate cells of a lineage's node at any time, as raw counts.

    The node may have no samples.

    Example: bdm reconstruct lineage/ cells.h5ad ancestors.h5ad --node ASG_AWA --at 350:400
    """
    from bdm._core.errors import at as at_file
    from bdm._core.files import atomic_write
    from bdm.applications.lineages.lineage import Lineage
    from bdm.applications.lineages.reconstruct import parsed_time, reconstruct
    from bdm.data.read import read_cells

    time = parsed_time(at)
    with atomic_write(out) as path, nullcontext() if genes is None else atomic_write(genes) as table:
        loaded, given = Lineage.load(lineage), read_cells(data, labels=labels, counts=counts)
        with at_file(data):
            found = reconstruct(
                loaded, given, node, at=time, n_cells=cells, extrapolate=extrapolate, counts=counts, seed=seed
            )
        found.write_h5ad(path, compression="gzip")
        if table is not None:
            when = sum(time) / 2 if isinstance(time, tuple) else time
            loaded.names.with_symbols(loaded.expression(node, when)).to_csv(table, index=False, float_format="%.4g")
    facts = {"cells": f"{found.n_obs:,} of {node}", "error": found.uns["bdm"]["expected_error"]}
    return Summary((out, genes), facts)
