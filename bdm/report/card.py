"""Write model cards from recorded provenance, with metadata for Hugging Face."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from bdm import __version__
from bdm._core.errors import InputError, abbreviated, counted, listed, markdown, printable
from bdm._core.store import checksum_of
from bdm.data.cells import GENERATED
from bdm.data.modalities import NOUNS, modalities_of
from bdm.generation.generate import GeneratedFile
from bdm.model.model import BranchedModel, save_model
from bdm.settings import PrepareSettings

if TYPE_CHECKING:
    from bdm.applications.audit.audit import Audit
    from bdm.applications.relations.responses import Responses
    from bdm.evaluation.evaluate import Evaluation

CARD = "README.md"  # name of model cards on Hugging Face
TAGS = (
    "single-cell",
    "rna-seq",
    "transcriptomics",
    "biology",
    "diffusion",
    "generative",
    "synthetic-data",
    "safetensors",
)


def save_with_card(folder: Path, model: BranchedModel, card: str | None = None) -> None:
    """Write a model and its card to a folder; without ``card``, the card has no scores."""
    save_model(folder, model)
    card = model_card(model, checksum=checksum_of(folder, "model")) if card is None else card
    (Path(folder) / CARD).write_text(card, encoding="utf-8")


def model_card(
    model: BranchedModel,
    *,
    checksum: str | None = None,
    evaluation: Evaluation | None = None,
    audit: Audit | None = None,
    responses: Responses | None = None,
    cells: GeneratedFile | None = None,
    license: str | None = None,
    source: str | None = None,
    contact: str | None = None,
) -> str:
    """Return a model card: YAML metadata of Hugging Face, then Markdown.

    The license is by default the preparation's.
    """
    sections: dict[str, Any] = {"audit": None, "responses": None}
    if audit is not None:
        from bdm.applications.audit.audit import audit_section  # this import takes seconds

        sections |= audit_section(audit, model, cells)
    if responses is not None:
        from bdm.applications.relations.responses import responses_section

        sections["responses"] = responses_section(responses, model.cell_types)
    license = license or model.preparation.get("license")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string(packaged("card.md"), {"table": table, "counted": counted, "quoted": quoted})
    return template.render(
        metadata=metadata(license),
        version=model.provenance["version"],
        license=license,
        data=data_rows(model, {"license": license or "not given", "source": source, "contact": contact}),
        extended=bool(model.extensions),
        n_batches=len(model.autoencoder.batches),
        one_donor=model.autoencoder.one_donor,
        unnamed_types=markdown(abbreviated(model.autoencoder.unnamed_types, n_shown=5)),
        donors="" if model.donor_effects is None else model.donor_effects.summary,
        bin_width="" if model.space is None else f"{model.space.tissue.width * model.space.unit:.3g}",
        types=list(type_rows(model, cells)),
        cells=cells,
        file=[] if cells is None else list(file_rows(cells)),
        evaluation=evaluation,
        evaluated_here=evaluation is not None and is_evaluation_of(evaluation, checksum),
        scores=[] if evaluation is None else list(score_rows(evaluation)),
        **sections,
        record=record_rows(model, checksum),
        settings=[(f"`{name}`", markdown(value)) for name, value in setting_rows(model)],
    )


def metadata(license: str | None) -> dict[str, Any]:
    """Return metadata; licenses missing from Hugging Face's list become ``other``."""
    entries: dict[str, Any] = {"library_name": "bdm"}
    if license:
        name, identifiers = license.strip().lower(), packaged("licenses.txt").split()
        entries["license"] = name if name in identifiers else "other"
        if name not in identifiers:
            entries["license_name"] = re.sub(r"[^a-z0-9.]+", "-", name).strip("-.") or "other"
            entries["license_link"] = license.strip() if re.match(r"https?://\S+$", license.strip()) else "LICENSE"
    return {**entries, "tags": list(TAGS)}


def packaged(name: str) -> str:
    """Read a file from the folder of this module."""
    return (files("bdm.report") / name).read_text(encoding="utf-8")


def data_rows(model: BranchedModel, stated: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """Return table rows on the data, with rows stated by the author."""
    keys, batches = model.preparation, model.autoencoder.batches
    batch_key, checksum = keys.get("batch_key"), model.autoencoder.provenance.get("data_sha256")
    added = [extension.cell_type for extension in model.extensions]
    tree = "given by the user" if model.hierarchy.from_user else "clustered"
    minimum, donors = keys.get("min_donors", PrepareSettings.min_donors), ""
    if model.donor_effects is not None:
        condition = f"; {minimum:,} effective donors or more in each population of the fit" if minimum > 1 else ""
        donors = f"{model.donor_effects.n_donors:,}, in the column {code(keys['donor_key'])}{condition}"
    rows = {
        "cells": f"{int(model.composition.to_numpy().sum()):,}",
        **dict(feature_rows(model.autoencoder.genes)),
        "column of cell types": code(model.label_key) if model.label_key else "none: cells without labels",
        "batches": f"{len(batches)}, in the column {code(batch_key)}" if batches else "none",
        "donors": donors,
        **{f"effects of {name}": markdown(text) for name, text in model.learned.items()},
        "tree of cell types": tree,
        "added by extensions": markdown(listed(added)),
        **{name: markdown(text) for name, text in stated.items() if text},
        "SHA-256 of the file": f"`{checksum}`" if checksum else "",
    }
    return [(name, value) for name, value in rows.items() if value]


def feature_rows(var: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the number of features of each modality."""
    for modality in modalities_of(var):
        yield f"{NOUNS[modality.kind]}s", f"{modality.n_features:,}"


def type_rows(model: BranchedModel, cells: GeneratedFile | None) -> Iterator[tuple[Any, ...]]:
    """Yield cell types with numbers of cells, populations and generated cells."""
    n_cells = model.composition_of_types.sum(axis=1)
    for name in model.cell_types:
        generated = () if cells is None else (f"{cells.n_by_type.get(name, 0):,}",)
        yield markdown(name), f"{int(n_cells[name]):,}", len(model.autoencoder.populations_of(name)), *generated


def file_rows(cells: GeneratedFile) -> Iterator[tuple[str, str]]:
    """Yield table rows that describe a file of generated cells."""
    yield "file", code(cells.name)
    yield "SHA-256", f"`{cells.sha256}`"
    yield "cells", f'{int(cells.n_by_type.sum()):,}, each marked as synthetic: `obs["synthetic"]` is `True`'
    yield from feature_rows(cells.var)
    yield "seed", str(cells.seed)
    yield "sampling", ", ".join(f"{name} {in_words(value)}" for name, value in cells.sampling.items())
    yield "columns of `obs`", ", ".join(map(code, cells.columns))
    yield "columns of `var`", ", ".join(map(code, cells.var.columns)) or "none"


def record_rows(model: BranchedModel, checksum: str | None) -> list[tuple[str, str]]:
    """Return table rows of a model's versions, seed and checksum."""
    record = model.provenance
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    rows = {
        "bdm": record["version"],
        "packages": packages,
        "seed": str(record["seed"]),
        "card written by": f"bdm {__version__}",
        "SHA-256 of the model": f"`{checksum}`" if checksum else "",
    }
    return [(name, value) for name, value in rows.items() if value]


def setting_rows(model: BranchedModel) -> Iterator[tuple[str, str]]:
    """Yield the settings of the fit as ``stage.name`` and formatted value."""
    hierarchy = {"threshold": model.hierarchy.threshold, **model.hierarchy.provenance}
    stages = {
        "prepare": model.preparation,
        "autoencoder": model.autoencoder.provenance["settings"],
        "hierarchy": {name: value for name, value in hierarchy.items() if name in ("threshold", "n_bootstrap", "tree")},
        "train": model.provenance["settings"],
    }
    for stage, settings in stages.items():
        for name, value in settings.items():
            yield f"{stage}.{name}", in_words(value)


def in_words(value: Any) -> str:
    """Format a setting."""
    if isinstance(value, list | tuple):
        return listed(list(map(str, value)), n_shown=5) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def score_rows(evaluation: Evaluation) -> Iterator[tuple[str, str, str, str]]:
    """Yield the scores of the verdict: name, generated cells, floor and ideal."""
    from bdm.evaluation.table import SCORES  # this import takes seconds

    for each in evaluation.verdict().findings:
        yield each.name, f"{each.value:.3f}", f"{each.floor:.3f}", f"{SCORES[each.score].ideal:g}"


def is_evaluation_of(evaluation: Evaluation, checksum: str | None) -> bool:
    """Return whether an evaluation records this checksum of the model; reject other models."""
    if GENERATED not in evaluation.sets:
        raise InputError("The evaluation has no generated cells; give an evaluation of cells of this model.")
    recorded = evaluation.provenance.get("sha256", {}).get("model")
    if None not in (recorded, checksum) and recorded != checksum:
        raise InputError(
            f"The evaluation is of cells of another model (its checksum begins with {recorded[:8]}, this model's with "
            f"{str(checksum)[:8]}); evaluate cells of this model."
        )
    return recorded is not None and checksum is not None


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def quoted(name: str) -> str:
    """Quote the name of a file for a shell command."""
    return shlex.quote(printable(name))


def code(text: object) -> str:
    """Format text as code in a table."""
    return "`" + printable(str(text)).replace("`", "'").replace("|", r"\|") + "`"
