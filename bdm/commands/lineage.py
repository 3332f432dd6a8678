"""``bdm lineage``: measure and predict expression along a lineage."""

from pathlib import Path
from typing import Annotated

from bdm._core.errors import counted, error_prefix
from bdm._core.schema import Unset
from bdm.commands.base import Holding, Labels, OutFolder, Summary, reading_alike
from bdm.settings import LineageSettings


def lineage(
    data: Annotated[Path, "Cells of a lineage, with raw counts."],
    out: Annotated[OutFolder, Holding("lineage.json")],
    *,
    labels: Labels = None,
    tree: Annotated[
        Path | None, "Lineage tree in Newick, with a name for each node.", Unset("derived from lineage names")
    ] = None,
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
    with error_prefix(data):
        fitted = lineage(cells, settings, tree=lineage_tree)
    write_result(out, fitted)
    n_sampled, n_nodes = int(fitted.sampled.sum()), len(fitted.tree.nodes)
    facts = {
        "lineage": f"{counted(len(fitted.genes), 'gene')} in {len(fitted.points)} samples of {n_sampled} of "
        f"{counted(n_nodes, 'node')}",
        "error": "\n".join(fitted.sentences()),
    }
    then = ("bdm", "reconstruct", out, data, "reconstructed.h5ad", "--node", fitted.next_node())
    return Summary(facts, then=(*then, *reading_alike(labels, settings.counts)))
