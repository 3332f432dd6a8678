"""``bdm audit``: membership inference attacks."""

from pathlib import Path
from typing import Annotated

from bdm._core.errors import InputError, error_prefix
from bdm.commands.base import Device, Holding, OutFolder, Prepared, Summary
from bdm.settings import AuditSettings, FitSettings, GenerationSettings, Seed, Tree


def audit(
    prepared: Prepared,
    out: Annotated[OutFolder, Holding("audit.json")],
    *,
    cells: Annotated[
        tuple[Path, ...], "Generated cells of any method, in the order of the folds of bdm audit-folds."
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
    members, and on unrelated cells (chance), are reported for comparison.

    Example: bdm audit prepared.h5ad audit/ --models audit_models/

    Example: bdm audit prepared.h5ad audit/ --cells fold-1.h5ad --cells fold-2.h5ad --cells fold-3.h5ad
    """
    from bdm.applications.audit.folds import divide
    from bdm.applications.audit.run import AuditedModels, audit_folds, audit_models, fold_reader
    from bdm.data.prepare import read_prepared
    from bdm.hierarchy.build import user_tree
    from bdm.pl import write_result

    adata = read_prepared(prepared)
    with error_prefix(prepared):  # before the first fit
        division = divide(adata, audit, seed=seed)
    if cells:
        if settings != FitSettings() or sampling != GenerationSettings() or models is not None or tree is not None:
            raise InputError(
                "`models=`, `tree=` and the settings of a fit and of generation are for models of bdm; leave them out "
                "where `cells=` gives the generated cells."
            )
        result = audit_folds(division, audit, fold_reader(cells, division, audit), seed=seed, generator="files")
    else:
        clade = user_tree(tree, settings.hierarchy)
        audited = AuditedModels(fit=settings, sampling=sampling, tree=clade, folder=models, device=device, seed=seed)
        result = audit_models(division, audit, audited)
    write_result(out, result)
    return Summary({"verdict": result.verdict.text})
