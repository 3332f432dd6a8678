"""Model card: the README.md of a model's folder, made of what its files record, with the metadata of Hugging Face."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
from jinja2 import Environment, StrictUndefined

from bdm import __version__
from bdm._core.errors import InputError, counted, listed, markdown, printable
from bdm._core.files import sha256
from bdm._core.store import checksum_of
from bdm.data.modalities import NOUNS, modalities_of
from bdm.data.read import read_cells
from bdm.evaluation.cells import GENERATED
from bdm.model.match import labels_of
from bdm.model.model import BranchedModel, save_model
from bdm.settings import PrepareSettings

if TYPE_CHECKING:
    from bdm.evaluation.evaluate import Evaluation

CARD = "README.md"  # the name that Hugging Face gives to model cards
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
Rows = Iterable[Sequence[Any]]


def save_with_card(folder: Path, model: BranchedModel) -> None:
    """Write a model into its folder, with its card."""
    save_model(folder, model)
    card = model_card(model, checksum=checksum_of(folder, "model"))
    (Path(folder) / CARD).write_text(card, encoding="utf-8")


def model_card(
    model: BranchedModel,
    *,
    checksum: str | None = None,
    evaluation: Evaluation | None = None,
    audit: Mapping[str, Any] | None = None,
    responses: Mapping[str, Any] | None = None,
    cells: GeneratedFile | None = None,
    license: str | None = None,
    source: str | None = None,
    contact: str | None = None,
) -> str:
    """Write the card of a model: metadata in YAML, as Hugging Face defines them, and text in Markdown."""
    given = license or model.preparation.get("license")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string(packaged("card.md"), {"table": table, "counted": counted, "quoted": quoted})
    return template.render(
        metadata=metadata(given),
        version=model.provenance["version"],
        license=given,
        data=data_rows(model, {"license": given or "not given", "source": source, "contact": contact}),
        extended=bool(model.extensions),
        n_batches=len(model.autoencoder.batches),
        donors="" if model.donor_effects is None else model.donor_effects.summary,
        types=list(type_rows(model, cells)),
        cells=cells,
        file=[] if cells is None else list(file_rows(cells)),
        evaluation=evaluation,
        evaluated_here=evaluation is not None and is_of(evaluation, checksum),
        responses=responses,
        scores=[] if evaluation is None else list(score_rows(evaluation)),
        **({"audit": None} if audit is None else audit),
        record=record_rows(model, checksum),
        settings=[(f"`{name}`", markdown(value)) for name, value in setting_rows(model)],
    )


def metadata(license: str | None) -> dict[str, Any]:
    """Metadata of a card; licenses that Hugging Face does not list (in ``licenses.txt``) are ``other``."""
    found: dict[str, Any] = {"library_name": "bdm"}
    if license:
        known, listed_names = license.strip().lower(), packaged("licenses.txt").split()
        found["license"] = known if known in listed_names else "other"
        if known not in listed_names:
            found["license_name"] = re.sub(r"[^a-z0-9.]+", "-", known).strip("-.") or "other"
            found["license_link"] = license.strip() if re.match(r"https?://\S+$", license.strip()) else "LICENSE"
    return {**found, "tags": list(TAGS)}


def packaged(name: str) -> str:
    """Read a file next to this module."""
    return (files("bdm.model") / name).read_text(encoding="utf-8")


def data_rows(model: BranchedModel, given: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """Describe the data of the fit; ``given`` has what the person who writes the card knows of them."""
    keys, batches = model.preparation, model.autoencoder.batches
    batch_key, checksum = keys.get("batch_key"), model.autoencoder.provenance.get("data_sha256")
    added = [extension.cell_type for extension in model.extensions]
    tree = "given by the user" if model.hierarchy.given else "flat" if model.hierarchy.flat else "clustered"
    least, donors = keys.get("min_donors", PrepareSettings.min_donors), ""
    if model.donor_effects is not None:
        of_each = f"; {least:,} effective donors or more in each population of the fit" if least > 1 else ""
        donors = f"{model.donor_effects.n_donors:,}, in the column {code(keys['donor_key'])}{of_each}"
    rows = {
        "cells": f"{int(model.composition.to_numpy().sum()):,}",
        **dict(feature_rows(model.autoencoder.genes)),
        "column of cell types": code(model.label_key) if model.label_key else "none: cells without labels",
        "batches": f"{len(batches)}, in the column {code(batch_key)}" if batches else "none",
        "donors": donors,
        "covariates": "" if model.covariates is None else markdown(model.covariates.summary),
        "tree of cell types": tree,
        "added by extensions": markdown(listed(added)),
        **{name: markdown(text) for name, text in given.items() if text},
        "SHA-256 of the file": f"`{checksum}`" if checksum else "",
    }
    return [(name, value) for name, value in rows.items() if value]


def feature_rows(var: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the number of genes and, if there are any, of proteins and peaks."""
    for modality in modalities_of(var):
        yield f"{NOUNS[modality.kind]}s", f"{modality.n_features:,}"


def type_rows(model: BranchedModel, cells: GeneratedFile | None) -> Iterator[tuple[Any, ...]]:
    """Yield each cell type, with the numbers of its cells, of its populations and, if there are any, of new cells."""
    n_cells = model.composition_of_types.sum(axis=1)
    for name in model.cell_types:
        new = () if cells is None else (f"{cells.n_by_type.get(name, 0):,}",)
        yield markdown(name), f"{int(n_cells[name]):,}", len(model.autoencoder.populations_of(name)), *new


def file_rows(cells: GeneratedFile) -> Iterator[tuple[str, str]]:
    """Describe a file of generated cells."""
    yield "file", code(cells.name)
    yield "SHA-256", f"`{cells.sha256}`"
    yield "cells", f'{int(cells.n_by_type.sum()):,}, each marked as synthetic: `obs["synthetic"]` is `True`'
    yield from feature_rows(cells.var)
    yield "seed", str(cells.seed)
    yield "sampling", ", ".join(f"{name} {in_words(name, value)}" for name, value in cells.sampling.items())
    yield "columns of `obs`", ", ".join(map(code, cells.columns))
    yield "columns of `var`", ", ".join(map(code, cells.var.columns)) or "none"


def record_rows(model: BranchedModel, checksum: str | None) -> list[tuple[str, str]]:
    """Describe how the model was made: versions, seed and checksum."""
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
    """Yield each setting of the fit, ``stage.name``, and its value in words."""
    hierarchy = {"threshold": model.hierarchy.threshold, **model.hierarchy.provenance}
    stages = {
        "prepare": model.preparation,
        "autoencoder": model.autoencoder.provenance["settings"],
        "hierarchy": {name: value for name, value in hierarchy.items() if name in ("threshold", "n_bootstrap", "tree")},
        "train": model.provenance["settings"],
    }
    for stage, settings in stages.items():
        for name, value in settings.items():
            yield f"{stage}.{name}", in_words(name, value)


def in_words(name: str, value: Any) -> str:
    """Write the value of a setting; of a file only its name, as its folder may name a person."""
    if isinstance(value, list | tuple):
        return listed(list(map(str, value)), n_shown=5) or "none"
    if name in ("genes", "keep_genes") and isinstance(value, str):
        return Path(value).name
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def score_rows(evaluation: Evaluation) -> Iterator[tuple[str, str, str, str]]:
    """Yield the scores that the verdict is made of: name, generated cells, floor, and the score of a perfect model."""
    from bdm.evaluation.scores import SCORE_NAMES  # late, as it takes seconds to import
    from bdm.evaluation.verdict import LIMITS

    for finding in evaluation.verdict().findings:
        ideal = LIMITS.by_score[finding.score].ideal
        yield SCORE_NAMES[finding.score], f"{finding.value:.3f}", f"{finding.floor:.3f}", f"{ideal:g}"


def is_of(evaluation: Evaluation, checksum: str | None) -> bool:
    """Whether an evaluation records the model with this checksum; False if it records none."""
    if GENERATED not in evaluation.sets:
        raise InputError("The evaluation has no generated cells; give an evaluation of cells of this model.")
    recorded = evaluation.provenance.get("sha256", {}).get("model")
    if None not in (recorded, checksum) and recorded != checksum:
        raise InputError(
            f"The evaluation is of cells of another model (its checksum begins with {recorded[:8]}, this model's with "
            f"{str(checksum)[:8]}); evaluate cells of this model."
        )
    return recorded is not None and checksum is not None


def table(header: Sequence[str], rows: Rows) -> str:
    """Write a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def quoted(name: str) -> str:
    """Write the name of a file as a word of a command."""
    return shlex.quote(printable(name))


def code(text: object) -> str:
    """Write text as code in a table."""
    return "`" + printable(str(text)).replace("`", "'").replace("|", r"\|") + "`"


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratedFile:
    """A file of cells that a model generated."""

    name: str  # name of the file, without its folder
    sha256: str
    n_by_type: pd.Series  # number of cells by cell type
    var: pd.DataFrame
    seed: int
    columns: tuple[str, ...]  # columns of ``obs``
    sampling: dict[str, Any]  # how the cells were sampled: the settings of ``bdm generate``, by name

    @classmethod
    def read(cls, path: Path, model: BranchedModel, *, checksum: str) -> Self:
        """Describe a file that ``bdm generate`` wrote, without reading its counts."""
        adata = read_cells(path, on_disk=True)
        record = dict(adata.uns.get("bdm", {}))
        recorded = record.get("model_sha256")
        is_generated = "request" in record and "synthetic" in adata.obs and bool(adata.obs["synthetic"].all())
        if recorded is None or not is_generated:
            raise InputError(f"{path} has other cells than those of bdm generate; give a file that it wrote.")
        if recorded != checksum:
            raise InputError(
                f"{path} has cells of another model (its checksum begins with {recorded[:8]}, this model's with "
                f"{checksum[:8]}); generate cells of this model."
            )
        return cls(
            Path(path).name,
            sha256(path),
            labels_of(adata.obs, model).value_counts(),
            adata.var,
            int(record["seed"]),
            tuple(map(str, adata.obs.columns)),
            json.loads(record["settings"]),
        )
