"""``bdm merge-audit``: merge the folds of an audit."""

from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.base import Summary
from bdm.commands.options import OutFolder


def merge_audit(
    out: OutFolder,
    folds: Annotated[list[Path], typer.Argument(help="Folders made by bdm audit --fold.", show_default=False)],
) -> Summary:
    """Merge the folds of an audit, in any order, to the results that one job would have written.

    Example: bdm merge-audit audit/ fold-1/ fold-2/ fold-3/
    """
    from bdm.audit.results import SUMMARY, Audit, merged
    from bdm.files import atomic_write
    from bdm.plotting.audit import save_audit

    with atomic_write(out, folder_of=SUMMARY) as folder:
        audit = merged(Audit.load(fold) for fold in folds)
        save_audit(folder, audit)
    return Summary((out,), {"verdict": audit.verdict.text})
