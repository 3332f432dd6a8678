from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.options import (
    CheckpointEvery,
    Device,
    DropUnlabelled,
    GeneSymbols,
    KeepGenes,
    LeaveOut,
    OutFolder,
    Seed,
)
from bdm.commands.told import DryRun, Summary, generating


def fit(
    data: Annotated[Path, typer.Argument(help="Cells, in any format that prepare reads.", show_default=False)],
    out: OutFolder,
    *,
    label_key: Annotated[str, typer.Option(help="Column of obs with the cell type.")] = "cell_type",
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with the batch.", show_default=False)] = None,
    counts: Annotated[str, typer.Option(help="Where raw counts are: X, raw, a layer, or auto.")] = "auto",
    labels: Annotated[Path | None, typer.Option(help="Table of labels by cell name.", show_default=False)] = None,
    leave_out: LeaveOut = None,
    drop_unlabelled: DropUnlabelled = False,
    genes: Annotated[str, typer.Option(help="seurat_v3, all, or a text file with one gene a line.")] = "seurat_v3",
    n_genes: Annotated[int, typer.Option(help="Number of most variable genes.")] = 2000,
    keep_genes: KeepGenes = None,
    gene_symbols: GeneSymbols = None,
    min_genes_per_cell: Annotated[int, typer.Option(help="Leave out cells with counts of fewer genes.")] = 0,
    min_cells_per_type: Annotated[int, typer.Option(help="Leave out types of fewer cells.")] = 10,
    test: Annotated[
        float, typer.Option(help="Fraction of cells to hold out, by which bdm evaluate --model evaluates.", min=0)
    ] = 0.0,
    threshold: Annotated[float, typer.Option(help="AUC between the children of a branch where they part.")] = 0.9,
    tree: Annotated[Path | None, typer.Option(help="Tree to use: Newick, or nested lists in .json.")] = None,
    n_latent: Annotated[int, typer.Option(help="Latent dimensions.", min=1)] = 30,
    autoencoder_steps: Annotated[int, typer.Option(help="Most steps of the autoencoder.", min=1)] = 400,
    denoiser_steps: Annotated[int, typer.Option(help="Steps of the denoiser.", min=1)] = 3000,
    device: Device = "auto",
    checkpoint_every: CheckpointEvery = 30,
    seed: Seed = 0,
    dry_run: DryRun = False,
) -> Summary | None:
    """Learn a model from all cells given: prepare, autoencoder, hierarchy and train in one go.

    Example: bdm fit cells.h5ad model/ --label-key cell_type
    """
    from contextlib import ExitStack
    from dataclasses import asdict

    from bdm.api import BranchedDiffusion
    from bdm.checkpoint import checkpoint_beside
    from bdm.commands.foretell import foretold_fit, print_foretold
    from bdm.data.matrix import UnreadableError
    from bdm.data.read import read_cells
    from bdm.errors import InputError
    from bdm.files import atomic_write, sha256
    from bdm.hierarchy.files import read_tree
    from bdm.model.fit import Checkpoints
    from bdm.model.model import save_model
    from bdm.settings import AutoencoderSettings, DenoiserSettings, HierarchySettings, PrepareSettings, Settings

    settings = Settings(
        prepare=PrepareSettings(
            counts=counts,
            leave_out=tuple(leave_out or ()),
            drop_unlabelled=drop_unlabelled,
            genes=genes,
            n_genes=n_genes,
            keep_genes=keep_genes,
            gene_symbols=gene_symbols,
            min_genes_per_cell=min_genes_per_cell,
            min_cells_per_type=min_cells_per_type,
            test=test,
        ),
        autoencoder=AutoencoderSettings(n_latent=n_latent, n_steps=autoencoder_steps),
        hierarchy=HierarchySettings(threshold=threshold),
        denoiser=DenoiserSettings(n_steps=denoiser_steps),
    )
    keys = {"label_key": label_key, "batch_key": batch_key}
    given = None if tree is None else read_tree(tree)

    def model_of_cells() -> BranchedDiffusion:
        cells = read_cells(data, labels=labels, on_disk=True)
        try:
            return BranchedDiffusion(cells, **keys, tree=given, settings=settings, seed=seed, device=device)
        except UnreadableError:
            raise
        except InputError as error:
            raise InputError(f"{data}: {error}") from error

    if dry_run:
        model = model_of_cells()
        print_foretold(out, model.prepared.obs, model.prepared.n_vars, foretold_fit(model))
        return None
    with ExitStack() as files:
        hashes = {str(path): sha256(path) for path in (data, labels, tree) if path is not None}
        facts = {"settings": asdict(settings), **keys, "files": hashes, "seed": seed}
        checkpoints = Checkpoints(
            **{
                part: files.enter_context(checkpoint_beside(out, part=part, seconds=checkpoint_every, **facts))
                for part in ("autoencoder", "denoiser")
            }
        )
        folder = files.enter_context(atomic_write(out, folder_of="model.json"))
        model = model_of_cells()
        model.prepared.uns["bdm"]["data_sha256"] = hashes[str(data)]
        save_model(folder, model.fit(checkpoints=checkpoints).model)
    cells = f"{model.prepared.n_obs:,} x {model.prepared.n_vars:,} genes, of {len(model.hierarchy.cell_types)} types"
    return Summary((out,), {"cells": cells}, then=generating(out))
