import json
import logging
from dataclasses import asdict, dataclass

import pandas as pd
from anndata import AnnData

from bdm import __version__
from bdm.data.columns import canonical_columns, writable
from bdm.data.counts import raw_counts
from bdm.data.filters import (
    check_trained_batches,
    check_unique_names,
    without_empty_cells,
    without_small_types,
    without_types,
    without_uncounted_cells,
)
from bdm.data.genes import check_listed, choose_genes, read_gene_list
from bdm.data.split import split_by_type
from bdm.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """How cells and genes are chosen and split.

    Attributes
    ----------
    label_key, batch_key
        Columns of ``obs`` with the cell type and, if any, the batch.
    counts
        Where raw counts are, see :func:`bdm.data.counts.raw_counts`.
    leave_out
        Cell types to leave out.
    genes
        ``seurat_v3`` for the ``n_genes`` most variable ones, ``all``, or a text file with one name a line.
    min_genes_per_cell
        Cells with counts of fewer genes are left out; at 0, cells without any counts are an error.
    min_cells_per_gene
        Genes seen in fewer training cells are left out.
    min_cells_per_type
        Types of fewer cells are left out.
    validation, test
        Fractions of cells, by type.
    """

    label_key: str = "cell_type"
    batch_key: str | None = None
    counts: str = "auto"
    leave_out: tuple[str, ...] = ()
    genes: str = "seurat_v3"
    n_genes: int = 2000
    min_genes_per_cell: int = 0
    min_cells_per_gene: int = 3
    min_cells_per_type: int = 10
    validation: float = 0.1
    test: float = 0.2
    seed: int = 0

    def __post_init__(self):
        n_splits = 1 + (self.validation > 0) + (self.test > 0)
        at_least = {"n_genes": 1, "min_genes_per_cell": 0, "min_cells_per_gene": 0, "seed": 0}
        for name, least in {**at_least, "min_cells_per_type": n_splits}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, but must be {least} or more.")
        for name in ("validation", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, but must be a fraction from 0 to below 1.")
        if self.validation + self.test >= 1:
            raise InputError("validation and test sum to 1 or more, which leaves no cells to train on.")
        self.gene_list()

    def gene_list(self) -> pd.Index | None:
        """Names in the file of genes, if it is a file."""
        return None if self.genes in ("seurat_v3", "all") else read_gene_list(self.genes)


def prepare(adata: AnnData, settings: PrepareSettings) -> AnnData:
    """Check labelled counts, choose cells and genes, and split the cells by type.

    Returns
    -------
    Cells x chosen genes: integer counts in ``X`` (CSR, float32); categories of text in ``obs['cell_type']``,
    ``obs['split']`` (``train``, ``validation``, ``test``) and, with a batch key, ``obs['batch']``; all other
    columns of ``obs`` and ``var``; version, seed and settings in ``uns['bdm']``.

    Raises
    ------
    InputError
        If the data hold no raw counts, labels are absent or incomplete, names are repeated, cells have no
        counts, or too little is left to learn from.
    """
    listed = settings.gene_list()
    check_unique_names(adata)
    cells = raw_counts(adata, source=settings.counts)
    check_unique_names(cells)  # raw has genes of its own
    if listed is not None:
        check_listed(listed, cells.var_names)
    cells.obs = canonical_columns(cells.obs, label_key=settings.label_key, batch_key=settings.batch_key)

    cells = without_types(cells, settings.leave_out)
    cells = without_empty_cells(cells, min_genes=settings.min_genes_per_cell)
    cells = without_small_types(cells, min_cells=settings.min_cells_per_type)
    cells.obs["split"] = split_by_type(
        cells.obs["cell_type"], validation=settings.validation, test=settings.test, seed=settings.seed
    )
    chosen = choose_genes(
        cells[cells.obs["split"] == "train"].copy(),
        listed=listed,
        n_most_variable=settings.n_genes if settings.genes == "seurat_v3" else None,
        min_cells=settings.min_cells_per_gene,
    )
    cells = without_uncounted_cells(cells[:, chosen].copy())
    check_trained_batches(cells.obs)

    provenance = {
        "version": __version__,
        "seed": settings.seed,
        "settings": json.dumps(asdict(settings), default=str),
    }
    return AnnData(cells.X, obs=writable(cells.obs), var=writable(cells.var), uns={"bdm": provenance})


def summary(prepared: AnnData) -> str:
    """Tell the numbers of cells by type and split, as a table for the eye."""
    obs = prepared.obs
    table = pd.crosstab(obs["cell_type"], obs["split"], margins=True, margins_name="all")
    return f"{prepared.n_obs} cells x {prepared.n_vars} genes\n{table.to_string()}"
