"""``bdm audit``, ``bdm audit-folds`` and ``bdm card``: privacy and documentation of shared models."""

import sys
from pathlib import Path
from typing import Annotated

from bdm._core.errors import InputError, at
from bdm.commands.base import Device, Holding, ModelFolder, OutFolder, Output, Prepared, Summary
from bdm.settings import AuditSettings, Contact, FitSettings, GenerationSettings, License, Seed, Source, Tree


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
    from bdm.applications.audit.run import AuditedModels, audit_folds, audit_models, from_files
    from bdm.data.prepare import read_prepared
    from bdm.hierarchy.build import user_tree
    from bdm.pl import write_result

    adata = read_prepared(prepared)
    with at(prepared):  # before the first fit
        division = divide(adata, audit, seed=seed)
    if cells:
        if settings != FitSettings() or sampling != GenerationSettings() or models is not None or tree is not None:
            raise InputError(
                "`models=`, `tree=` and the settings of a fit and of generation are for models of bdm; leave them out "
                "where `cells=` gives the generated cells."
            )
        result = audit_folds(division, audit, from_files(cells, division, audit), seed=seed, generator="files")
    else:
        clade = user_tree(tree, settings.hierarchy)
        audited = AuditedModels(fit=settings, sampling=sampling, tree=clade, folder=models, device=device, seed=seed)
        result = audit_models(division, audit, audited)
    write_result(out, result)
    return Summary({"verdict": result.verdict.text})


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
    with at(prepared):
        division = divide(adata, audit, seed=seed)
    out.mkdir()
    for fold in division.folds:
        write_h5ad(out / f"fold-{fold.number}.h5ad", training_cells(division.cells, fold, seed=seed))
    return Summary({"folds": str(len(division.folds))})


def card(
    model: ModelFolder,
    *,
    evaluation: Annotated[Path | None, "Folder made by bdm evaluate --model, whose scores are added."] = None,
    audit: Annotated[Path | None, "Folder made by bdm audit, whose verdict is added."] = None,
    responses: Annotated[Path | None, "Folder made by bdm respond, whose expected errors are added."] = None,
    cells: Annotated[Path | None, "Cells that the model generated, which the card describes."] = None,
    license: License = None,
    source: Source = None,
    contact: Contact = None,
    out: Annotated[Path | None, Output, "File to write in place of printing."] = None,
) -> Summary | None:
    """Print the card of a model, with scores, responses and an audit.

    The card is Markdown with metadata for Hugging Face. The folder of a model has its card, without scores, as
    README.md; --out model/README.md --force replaces it.

    Example: bdm card model/ --evaluation evaluation/ --out model/README.md --force

    Example: bdm card model/ --evaluation evaluation/ --audit audit/ --cells generated.h5ad --contact a@b.org
    """
    from bdm._core.store import checksum_of
    from bdm.applications.audit.audit import Audit, audit_section
    from bdm.applications.relations.responses import Responses, responses_section
    from bdm.evaluation.evaluate import Evaluation
    from bdm.generation.generated_file import GeneratedFile
    from bdm.model.model import load_model
    from bdm.report.card import model_card

    audited = None if audit is None else Audit.load(audit)
    measured = None if responses is None else Responses.load(responses)
    scores = None if evaluation is None else Evaluation.load(evaluation)
    loaded, checksum = load_model(model), checksum_of(model, "model")
    file = None if cells is None else GeneratedFile.read(cells, loaded, checksum=checksum)
    with at(model):
        text = model_card(
            loaded,
            checksum=checksum,
            evaluation=scores,
            audit=None if audited is None else audit_section(audited, loaded, file),
            responses=None if measured is None else responses_section(measured, loaded.cell_types),
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
