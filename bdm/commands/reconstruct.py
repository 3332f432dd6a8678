"""``bdm reconstruct``: generate cells of an ancestor, or of an unsampled time."""

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, MinLen

from bdm._core.errors import InputError, error_prefix
from bdm._core.schema import Unset
from bdm._core.validation import parse_range
from bdm.commands.base import Labels, OutCells, Output, Summary
from bdm.settings import Counts, Seed


def reconstruct(
    lineage: Annotated[Path, "Folder made by bdm lineage."],
    data: Annotated[Path, "Cells that the lineage was fitted on, with raw counts."],
    out: OutCells,
    *,
    node: Annotated[str, MinLen(1), "Node of the lineage to reconstruct."],
    at: Annotated[
        str | None,
        MinLen(1),
        "Time, such as 350, or range of times, such as 300:400, in a lineage with times.",
        Unset("when the node exists, between samples"),
    ] = None,
    cells: Annotated[int, Ge(1), "Number of cells."] = 100,
    extrapolate: Annotated[
        bool, "Also reconstruct cells without samples of their lineage both before and after."
    ] = False,
    genes: Annotated[Path | None, Output, "Table of the expected expression of genes to write as well (.csv)."] = None,
    counts: Counts = "auto",
    labels: Labels = None,
    seed: Seed = 0,
) -> Summary:
    """Generate cells of a lineage's node at any time, as raw counts.

    The node may have no samples.

    Example: bdm reconstruct lineage/ cells.h5ad ancestors.h5ad --node ASG_AWA --at 350:400
    """
    from bdm._core.files import write_table
    from bdm.applications.relations.lineage import Lineage
    from bdm.applications.relations.reconstruct import reconstruct
    from bdm.data.matrix import write_h5ad
    from bdm.data.read import read_cells

    time = parsed_time(at)
    fitted, adata = Lineage.load(lineage), read_cells(data, labels=labels, counts=counts)
    with error_prefix(data):
        reconstructed = reconstruct(
            fitted, adata, node, at=time, n_cells=cells, extrapolate=extrapolate, counts=counts, seed=seed
        )
    write_h5ad(out, reconstructed)
    if genes is not None:
        middle = sum(time) / 2 if isinstance(time, tuple) else time
        expression = fitted.names.with_symbols(fitted.expression(node, middle))
        write_table(expression, genes, digits=4)
    return Summary({"cells": f"{reconstructed.n_obs:,} of {node}", "error": reconstructed.uns["bdm"]["expected_error"]})


def parsed_time(text: str | None) -> float | tuple[float, float] | None:
    """Parse a time, or a range such as ``300:400``."""
    if text is None:
        return None
    if not (ends := parse_range(text)):
        raise InputError(f"at is {text!r}, but must be a time, such as 350, or a range of times, such as 300:400.")
    return ends if len(ends) == 2 else ends[0]
