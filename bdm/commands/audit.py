"""``bdm audit``: membership inference attacks."""

from pathlib import Path
from typing import Annotated

from bdm._core.errors import InputError, at
from bdm.commands.base import Device, OutFolder, Prepared, Summary
from bdm.settings import AuditSettings, FitSettings, GenerationSettings, Seed, Tree


def audit(
    prepared: Prepared,
    out: OutFolder,
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
    from bdm._core.files import atomic_write
    from bdm.applications.audit.folds import divide
    from bdm.applications.audit.run import AuditedModels, audit_folds, audit_models, from_files
    from bdm.data.prepare import read_prepared
    from bdm.hierarchy.build import user_tree
    from bdm.pl import write_result

    with atomic_write(out, folder_of="audit.json") as folder:
        read = read_prepared(prepared)
        with at(prepared):  # before the first fit
            division = divide(read, audit, seed=seed)
        if cells:
            check_unused(settings, sampling, models, tree)
            given = from_files(cells, division, audit)
            found = audit_folds(division, audit, given, seed=seed, generator="files")
        else:
            shape = user_tree(tree, settings.hierarchy)
            made = AuditedModels(fit=settings, sampling=sampling, tree=shape, folder=models, device=device, seed=seed)
            found = audit_models(division, audit, made)
        write_result(folder, found)
    return Summary((out,), {"verdict": found.verdict.text})


def check_unused(settings: FitSettings, sampling: GenerationSettings, models: Path | None, tree: Path | None) -> None:
    """Reject options for fitting models if generated cells are given."""
    if settings != FitSettings() or sampling != GenerationSettings() or models is not None or tree is not None:
        raise InputError(
            "`models=`, `tree=` and the settings of a fit and of generation are for models of bdm; leave them out "
            "where `cells=` gives the generated cells."
        )
