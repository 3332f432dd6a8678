"""``bdm audit-folds``: training cells of an audit's folds, for any generator."""

from typing import Annotated

from bdm._core.errors import error_prefix
from bdm.commands.base import Holding, OutFolder, Prepared, Summary
from bdm.settings import AuditSettings, Seed


def audit_folds(
    prepared: Prepared,
    out: Annotated[OutFolder, Holding("fold-1.h5ad")],
    *,
    audit: AuditSettings,
    seed: Seed = 0,
) -> Summary:
    """Write the training cells of each fold of an audit for other generators.

    Fit a generator to each file (fold-1.h5ad and so on), and generate as many cells of each type. Pass the generated
    files to bdm audit by --cells, in the order of the folds, with the same settings and seed.

    Example: bdm audit-folds prepared.h5ad folds/
    """
    from bdm.applications.audit.folds import divide, training_cells
    from bdm.data.matrix import write_h5ad
    from bdm.data.prepare import read_prepared

    adata = read_prepared(prepared)
    with error_prefix(prepared):
        division = divide(adata, audit, seed=seed)
    out.mkdir()
    for fold in division.folds:
        write_h5ad(out / f"fold-{fold.number}.h5ad", training_cells(division.cells, fold, seed=seed))
    return Summary({"folds": str(len(division.folds))})
