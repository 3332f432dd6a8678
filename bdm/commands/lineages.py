"""``bdm lineage``, ``bdm reconstruct`` and ``bdm fates``: expression along a lineage tree."""

import logging
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from bdm._core import errors
from bdm._core.errors import counted
from bdm._core.schema import Unset
from bdm.commands.base import Ending, Holding, OutCells, OutFolder, Output, Summary, reading_alike
from bdm.settings import (
    Counts,
    ExtrapolateLineage,
    Labels,
    LineageNode,
    LineageSettings,
    LineageTime,
    LineageTreeFile,
    Seed,
)

logger = logging.getLogger(__name__)


def lineage(
    data: Annotated[Path, "Cells of a lineage, with raw counts."],
    out: Annotated[OutFolder, Holding("lineage.json")],
    *,
    labels: Labels = None,
    tree: LineageTreeFile = None,
    settings: LineageSettings,
) -> Summary:
    """Measure expression along a lineage, and test predictions of unsampled nodes.

    The test leaves out each node in turn, and each time, if times are given. Writes tables (.csv), figures (.png), and
    the fitted lineage for bdm reconstruct.

    Example: bdm lineage cells.h5ad lineage/ --tree lineage.nwk --time-key minutes
    """
    from bdm.applications.relations.fit_lineage import lineage
    from bdm.applications.relations.lineage_tree import read_lineage_tree
    from bdm.data.read import read_cells
    from bdm.pl import write_result

    cells = read_cells(data, labels=labels, counts=settings.counts)
    lineage_tree = None if tree is None else read_lineage_tree(tree)
    with errors.at(data):
        fitted = lineage(cells, settings, tree=lineage_tree)
    write_result(out, fitted)
    for warning in fitted.warnings():
        logger.warning("%s", warning)
    n_sampled, n_nodes = int(fitted.sampled.sum()), len(fitted.tree.nodes)
    facts = {
        "lineage": f"{counted(len(fitted.genes), 'gene')} in {len(fitted.points)} samples of {n_sampled} of "
        f"{counted(n_nodes, 'node')}",
        "error": "\n".join(fitted.sentences()),
    }
    then = ("bdm", "reconstruct", out, data, "reconstructed.h5ad", "--node", fitted.next_node())
    return Summary(facts, then=(*then, *reading_alike(labels, settings.counts)))


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
    from bdm.applications.relations.lineage import Lineage
    from bdm.applications.relations.reconstruct import parsed_time, reconstruct
    from bdm.data.read import read_cells

    time = parsed_time(at)
    fitted, adata = Lineage.load(lineage), read_cells(data, labels=labels, counts=counts)
    with errors.at(data):
        reconstructed = reconstruct(
            fitted, adata, node, at=time, n_cells=cells, extrapolate=extrapolate, counts=counts, seed=seed
        )
    reconstructed.write_h5ad(out, compression="gzip")
    if genes is not None:
        middle = sum(time) / 2 if isinstance(time, tuple) else time
        expression = fitted.names.with_symbols(fitted.expression(node, middle))
        expression.to_csv(genes, index=False, float_format="%.4g")
    return Summary({"cells": f"{reconstructed.n_obs:,} of {node}", "error": reconstructed.uns["bdm"]["expected_error"]})


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
    from bdm.applications.relations.fates import fates
    from bdm.applications.relations.lineage import Lineage
    from bdm.data.read import read_cells

    fitted, cells = Lineage.load(lineage), read_cells(data, labels=labels, counts=counts)
    with errors.at(data):
        shares = fates(fitted, cells, among, counts=counts)
    shares.to_csv(out, index_label="cell", float_format="%.4g")
    means = ", ".join(f"{node} {share:.2f}" for node, share in shares.mean().sort_values(ascending=False).items())
    return Summary({"cells": f"{len(shares):,}", "shares": f"{means} (means)"})
