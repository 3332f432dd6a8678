"""``bdm example``: write example cells."""

from bdm.commands.base import OutCells, Summary


def example(out: OutCells) -> Summary:
    """Write example cells: 700 real blood cells of 10 types, 765 genes.

    Labels are in obs['bulk_labels'].

    Example: bdm example cells.h5ad
    """
    from bdm.data.matrix import write_h5ad
    from bdm.data.read import pbmc68k_counts

    write_h5ad(out, pbmc68k_counts())
    return Summary(then=("bdm", "fit", out, "model/", "--label-key", "bulk_labels"))
