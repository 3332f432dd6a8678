"""``bdm report``: write the report of a data set's results."""

from pathlib import Path
from typing import Annotated

from bdm.commands.base import OutFile, Summary


def report(
    results: Annotated[Path, "Folder of a data set's results, as the workflow makes it."], out: OutFile
) -> Summary:
    """Write a report as one page for the browser (.html).

    It shows how realistic the cells are, and how they were made.

    Example: bdm report results/blood report.html
    """
    from bdm._core.store import reject_if_damaged
    from bdm.report.page import report_page
    from bdm.report.summaries import read_results

    with reject_if_damaged(results):
        summaries = read_results(results)
        out.write_text(report_page(summaries), encoding="utf-8")
    return Summary({"verdict": summaries.verdict.text})
