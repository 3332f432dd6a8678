"""``bdm audit``: membership inference attacks."""

from pathlib import Path
from typing import Annotated

from bdm._core.errors import InputError, error_prefix
from bdm.commands.base import Device, Holding, OutFolder, Prepared, Summary, Tree
from bdm.settings import AuditSettings, FitSettings, GenerationSettings, Seed


def audit(
    prepared: Prepared,
    out: Annotated[OutFolder, Holding("audit.json")],
    *,
    folds_only: Annotated[
        bool, "Attack nothing, and write the training cells of each fold (fold-1.h5ad and so on), for any generator."
    ] = False,
    cells: Annotated[
        tuple[Path, ...],
        "Cells that any generator generated from the files of --folds-only with the same settings and seed, in their "
        "order.",
    ] = (),
    models: Annotated[
        Path | None, "Folder of the models of the folds, which are read from it, or fitted and written there."
    ] = None,
    audit: AuditSettings,
    tree: Tree = None,
    settings: FitSettings,
    sampling: GenerationSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Run membership inference attacks on models and generated cells.

    In each fold, donors (or cells, without donors) are divided into members, reference and non-members. A model is
    fitted to the members, and attacks on its cells try to distinguish members from non-members. Attacks on copies of
    members are reported for comparison.

    Example: bdm audit prepared.h5ad audit/ --models audit_models/

    Example: bdm audit prepared.h5ad folds/ --folds-only

    Example: bdm audit prepared.h5ad audit/ --cells fold-1.h5ad --cells fold-2.h5ad --cells fold-3.h5ad
    """
    from bdm.applications.audit.folds import divide, training_cells
    from bdm.applications.audit.run import AuditedModels, audit_folds, audit_models, fold_reader
    from bdm.data.matrix import write_h5ad
    from bdm.data.prepare import read_prepared
    from bdm.hierarchy.files import as_clade
    from bdm.pl import write_result

    own = settings != FitSettings() or sampling != GenerationSettings() or models is not None or tree is not None
    if own + folds_only + bool(cells) > 1:
        raise InputError(
            "`models=`, `tree=` and the settings of a fit and of generation are for models of bdm; leave them out with "
            "--folds-only or --cells, and give only one of these."
        )
    adata = read_prepared(prepared)
    with error_prefix(prepared):  # before the first fit
        division = divide(adata, audit, seed=seed)
    if folds_only:
        out.mkdir()
        for fold in division.folds:
            write_h5ad(out / f"fold-{fold.number}.h5ad", training_cells(division.cells, fold, seed=seed))
        return Summary({"folds": str(len(division.folds))})
    if cells:
        result = audit_folds(division, audit, fold_reader(cells, division, audit), seed=seed, generator="files")
    else:
        clade = None if tree is None else as_clade(tree)
        audited = AuditedModels(fit=settings, sampling=sampling, tree=clade, folder=models, device=device, seed=seed)
        result = audit_models(division, audit, audited)
    write_result(out, result)
    return Summary({"verdict": result.verdict.text})
