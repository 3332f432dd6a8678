from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.options import DropUnlabelled, GeneSymbols, KeepGenes, LeaveOut
from bdm.commands.told import DryRun, Summary


def prepare(
    data: Annotated[
        Path,
        typer.Argument(help="Cells: .h5ad, .zarr, .loom, 10x .h5, or a 10x folder.", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(help="AnnData file (.h5ad) to write.", dir_okay=False, show_default=False)],
    *,
    label_key: Annotated[str, typer.Option(help="Column of obs with the cell type.")] = "cell_type",
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with the batch.")] = None,
    counts: Annotated[
        str,
        typer.Option(help="Where raw counts are: X, raw, a layer, or auto: layer counts, raw or X."),
    ] = "auto",
    labels: Annotated[
        Path | None,
        typer.Option(help="Table (.csv, .tsv) with cell names first, whose other columns are added to obs."),
    ] = None,
    leave_out: LeaveOut = None,
    drop_unlabelled: DropUnlabelled = False,
    genes: Annotated[
        str, typer.Option(help="seurat_v3 (most variable), all, or a text file with one gene a line.")
    ] = "seurat_v3",
    n_genes: Annotated[int, typer.Option(help="Number of most variable genes.")] = 2000,
    keep_genes: KeepGenes = None,
    gene_symbols: GeneSymbols = None,
    min_genes_per_cell: Annotated[int, typer.Option(help="Leave out cells with counts of fewer genes.")] = 0,
    min_cells_per_gene: Annotated[int, typer.Option(help="Leave out genes in fewer training cells.")] = 3,
    min_cells_per_type: Annotated[int, typer.Option(help="Leave out types of fewer cells.")] = 10,
    validation: Annotated[float, typer.Option(help="Fraction of cells to choose training steps by.")] = 0.1,
    test: Annotated[float, typer.Option(help="Fraction of cells to judge generated cells by.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    dry_run: DryRun = False,
) -> Summary | None:
    """Check labelled counts, choose cells and genes, and split the cells by type.

    Example: bdm prepare cells.h5ad prepared.h5ad --label-key bulk_labels
    """
    from contextlib import ExitStack

    from bdm.data.matrix import UnreadableError
    from bdm.data.prepare import prepared_cells, summary
    from bdm.data.read import read_cells
    from bdm.errors import InputError
    from bdm.files import atomic_write, sha256
    from bdm.settings import PrepareSettings

    settings = PrepareSettings(
        label_key=label_key,
        batch_key=batch_key,
        counts=counts,
        leave_out=tuple(leave_out or ()),
        drop_unlabelled=drop_unlabelled,
        genes=genes,
        n_genes=n_genes,
        keep_genes=keep_genes,
        gene_symbols=gene_symbols,
        min_genes_per_cell=min_genes_per_cell,
        min_cells_per_gene=min_cells_per_gene,
        min_cells_per_type=min_cells_per_type,
        validation=validation,
        test=test,
        seed=seed,
    )
    if out.resolve() == data.resolve():
        raise InputError(f"{out} would overwrite the data; name another file to write.")
    with ExitStack() as files:
        path = None if dry_run else files.enter_context(atomic_write(out))
        cells = read_cells(data, labels=labels, on_disk=True)
        try:
            prepared = prepared_cells(cells, settings)
            if path is None:
                print(f"would write {out}:\n{summary(prepared)}")
                return None
            prepared.uns["bdm"] |= {"data": data.name, "data_sha256": sha256(data)}
            if labels is not None:
                prepared.uns["bdm"] |= {"labels": labels.name, "labels_sha256": sha256(labels)}
            written = prepared.write(path)
        except UnreadableError:
            raise
        except InputError as error:
            raise InputError(f"{data}: {error}") from error
    return Summary((out,), {"cells": summary(written)}, then=("bdm", "autoencoder", out, "autoencoder/"))
