"""``bdm fates``: compute the fates of cells in a lineage."""

from pathlib import Path
from typing import Annotated

from bdm._core.errors import error_prefix
from bdm._core.schema import Unset
from bdm.commands.base import Ending, Output, Summary
from bdm.settings import Counts, Labels


def fates(
    lineage: Annotated[Path, "Folder made by bdm lineage from other cells, with times."],
    data: Annotated[Path, "Cells with raw counts and times."],
    out: Annotated[Path, Output, Ending(".csv"), "Table of the shares of nodes by cell to write (.csv)."],
    *,
    among: Annotated[tuple[str, ...], "Node between which cells are divided.", Unset("the leaves with samples")] = (),
    counts: Counts = "auto",
    labels: Labels = None,
) -> Summary:
    """Compute the fates of cells, as shares of nodes of a lineage.

    The counts of a cell are compared with the expression of each node, reconstructed backwards to the time of the cell.

    Example: bdm fates lineage/ progenitors.h5ad fates.csv --among ADL --among AWB
    """
    from bdm._core.files import write_table
    from bdm.applications.relations.fates import fates
    from bdm.applications.relations.lineage import Lineage
    from bdm.data.read import read_cells

    fitted, cells = Lineage.load(lineage), read_cells(data, labels=labels, counts=counts)
    with error_prefix(data):
        shares = fates(fitted, cells, among, counts=counts)
    write_table(shares, out, index="cell", digits=4)
    means = ", ".join(f"{node} {share:.2f}" for node, share in shares.mean().sort_values(ascending=False).items())
    return Summary({"cells": f"{len(shares):,}", "shares": f"{means} (means)"})
