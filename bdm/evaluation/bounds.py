from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Most cells that the steps of judging take, so that memory and time hardly grow with the data.

    The defaults let a set of any size be judged in two minutes or so by one core.

    Attributes
    ----------
    compared
        Cells of a set that are compared at a time.
    gene_auc
        Cells of a set that are told from test cells by all genes, which takes most memory.
    by_tree
        Cells that each tree of a random forest learns from; other trees learn from others.
    pairs
        Pairs of a judged and a training cell among which copies are sought: where there are more, the nearest training
        cell is found for fewer judged cells, but still among all training cells.
    marking
        Training cells by which marker genes and variable genes are chosen.
    mapped
        Cells in the UMAP, of all sets together.
    """

    compared: int = 20_000
    gene_auc: int = 10_000
    by_tree: int = 5_000
    pairs: int = 2_000_000_000
    marking: int = 50_000
    mapped: int = 20_000


BOUNDS = Bounds()
