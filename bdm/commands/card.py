"""``bdm card``: print the card of a model."""

import sys
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from bdm._core.errors import error_prefix
from bdm._core.schema import Unset
from bdm.commands.base import ModelFolder, Output, Summary
from bdm.settings import License


def card(
    model: ModelFolder,
    *,
    evaluation: Annotated[Path | None, "Folder made by bdm evaluate --model, whose scores are added."] = None,
    audit: Annotated[Path | None, "Folder made by bdm audit, whose verdict is added."] = None,
    responses: Annotated[Path | None, "Folder made by bdm respond, whose expected errors are added."] = None,
    cells: Annotated[Path | None, "Cells that the model generated, which the card describes."] = None,
    license: License = None,
    source: Annotated[
        str | None, MinLen(1), "Origin of the data: study, accession, consent.", Unset("not stated")
    ] = None,
    contact: Annotated[
        str | None, MinLen(1), "Contact for questions on the data, with an address.", Unset("not stated")
    ] = None,
    out: Annotated[Path | None, Output, "File to write in place of printing."] = None,
) -> Summary | None:
    """Print the card of a model, with scores, responses and an audit.

    The card is Markdown with metadata for Hugging Face. The folder of a model has its card, without scores, as
    README.md; --out model/README.md --force replaces it.

    Example: bdm card model/ --evaluation evaluation/ --out model/README.md --force

    Example: bdm card model/ --evaluation evaluation/ --audit audit/ --cells generated.h5ad --contact a@b.org
    """
    from bdm._core.store import checksum_of
    from bdm.applications.audit.audit import Audit
    from bdm.applications.relations.responses import Responses
    from bdm.evaluation.evaluate import Evaluation
    from bdm.generation.generate import GeneratedFile
    from bdm.model.model import load_model
    from bdm.report.card import model_card

    audited = None if audit is None else Audit.load(audit)
    measured = None if responses is None else Responses.load(responses)
    scores = None if evaluation is None else Evaluation.load(evaluation)
    loaded, checksum = load_model(model), checksum_of(model, "model")
    file = None if cells is None else GeneratedFile.read(cells, loaded, checksum=checksum)
    with error_prefix(model):
        text = model_card(
            loaded,
            checksum=checksum,
            evaluation=scores,
            audit=audited,
            responses=measured,
            cells=file,
            license=license,
            source=source,
            contact=contact,
        )
    if out is None:
        sys.stdout.write(text)
        return None
    out.write_text(text, encoding="utf-8")
    return Summary()
