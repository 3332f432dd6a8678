"""``bdm lineage``: measure and predict expression along a lineage."""

import logging
from pathlib import Path
from typing import Annotated

from bdm.commands.base import OutFolder, Summary, reading_alike
from bdm.settings import Labels, LineageSettings, LineageTreeFile

logger = logging.getLogger(__name__)


def lineage(
    data: Annotated[Path, "Cells of a lineage, with raw counts."],
    out: OutFolder,
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
    from bdm._core.errors import at, counted
    from bdm._core.files import atomic_write
    from bdm.applications.lineages.lineage import lineage
    from bdm.applications.lineages.tree import read_lineage_tree
    from bdm.data.read import read_cells
    from bdm.pl import write_result

    with atomic_write(out, folder_of="lineage.json") as folder:
        cells = read_cells(data, labels=labels, counts=settings.counts)
        given = None if tree is None else read_lineage_tree(tree)
        with at(data):
            fitted = lineage(cells, settings, tree=given)
        write_result(folder, fitted)
    for warning in fitted.warnings():
        logger.warning("%s", warning)
    n_sampled, n_nodes = int(fitted.sampled.sum()), len(fitted.tree.nodes)
    facts = {
        "lineage": f"{counted(len(fitted.genes), 'gene')} in {len(fitted.points)} samples of {n_sampled} of "
        f"{counted(n_nodes, 'node')}",
        "error": "\n".join(fitted.sentences()),
    }
    then = ("bdm", "reconstruct", out, data, "reconstructed.h5ad", "--node", fitted.next_node())
    return Summary((out,), facts, then=(*then, *reading_alike(labels, settings.counts)))
