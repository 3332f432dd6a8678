"""Model card: the README.md of a model's folder, made of what its files record, with the metadata of Hugging Face."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from bdm import __version__
from bdm.audit.results import CHANCE, COPIES, Audit
from bdm.audit.results import GENERATED as AUDITED
from bdm.audit.verdict import ATTACKS, ON_MODEL
from bdm.donors.effects import summary_of
from bdm.errors import InputError
from bdm.evaluation.cells import GENERATED
from bdm.evaluation.results import Evaluation
from bdm.evaluation.scores import SCORE_NAMES
from bdm.evaluation.verdict import LIMITS
from bdm.hierarchy.tree import Hierarchy
from bdm.model.generated_file import GeneratedFile
from bdm.model.model import BranchedModel, save_model
from bdm.settings import PrepareSettings
from bdm.store import checksum_of
from bdm.text import abbreviated, counted, listed, printable

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
# Of the preparation; an audit divides all cells, so their split may differ
AUDITED_SETTINGS = (
    *("genes", "n_genes", "keep_genes", "min_cells_per_gene", "clip_outliers"),
    *("counts", "label_key", "batch_key", "donor_key", "min_donors"),
)
GIVEN = ("not given", "given")
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
    audit: Audit | None = None,
    cells: GeneratedFile | None = None,
    license: str | None = None,
    source: str | None = None,
    contact: str | None = None,
) -> str:
    """Write the card of a model: metadata in YAML, as Hugging Face defines them, and text in Markdown.

    Parameters
    ----------
    checksum
        Checksum of the saved model, as :func:`bdm.store.checksum_of` returns it; None for a model in memory.
    evaluation
        Evaluation of its generated cells, whose scores are shown with the floor's.
    audit
        Audit of models with its settings, whose verdict is shown.
    cells
        File of its generated cells, which the card describes.
    license
        License of the data, in place of the one that was given for the fit.
    source, contact
        Where the data are from, and who answers questions on them.

    Raises
    ------
    InputError
        If the evaluation is of another model, or has no generated cells, or the audit is of other data, or of models
        with other settings.
    """
    if audit is not None:
        check_audit(audit, model, cells)
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
        donors="" if model.donor_effects is None else summary_of(model.donor_effects),
        types=list(type_rows(model, cells)),
        cells=cells,
        file=[] if cells is None else list(file_rows(cells)),
        evaluation=evaluation,
        evaluated_here=evaluation is not None and is_of(evaluation, checksum),
        scores=[] if evaluation is None else list(score_rows(evaluation)),
        **of_audit(audit, model, cells),
        record=record_rows(model, checksum),
        settings=[(f"`{name}`", markdown(value)) for name, value in setting_rows(model)],
    )


def metadata(license: str | None) -> dict[str, Any]:
    """Metadata of a card; a license that Hugging Face does not list is ``other``, with its name and link.

    ``licenses.txt`` has the identifiers in https://huggingface.co/docs/hub/repositories-licenses.
    """
    found: dict[str, Any] = {"library_name": "bdm"}
    if license:
        known, listed_names = license.strip().lower(), packaged("licenses.txt").split()
        found["license"] = known if known in listed_names else "other"
        if known not in listed_names:
            found["license_name"] = re.sub(r"[^a-z0-9.]+", "-", known).strip("-.") or "other"
            found["license_link"] = license.strip() if re.match(r"https?://\S+$", license.strip()) else "LICENSE"
    return {**found, "tags": list(TAGS)}


def packaged(name: str) -> str:
    """Read a file beside this module."""
    return (files("bdm.model") / name).read_text(encoding="utf-8")


def data_rows(model: BranchedModel, given: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """Describe the data of the fit; ``given`` has what the person who writes the card knows of them."""
    keys, batches = model.preparation, model.autoencoder.batches
    batch_key, checksum = keys.get("batch_key"), model.autoencoder.provenance.get("data_sha256")
    added = [extension.name for extension in model.extensions]
    given_tree = model.hierarchy.provenance.get("ontology", "given by the user")
    tree = given_tree if model.hierarchy.given else "flat" if model.hierarchy.flat else "clustered"
    least, donors = keys.get("min_donors", PrepareSettings.min_donors), ""
    if model.donor_effects is not None:
        of_each = f"; in effect {least:,} or more in each population of the fit" if least > 1 else ""
        donors = f"{model.donor_effects.n_donors:,}, in the column {code(keys['donor_key'])}{of_each}"
    rows = {
        "cells": f"{int(model.composition.to_numpy().sum()):,}",
        "genes": f"{len(model.autoencoder.genes):,}",
        "column of cell types": code(model.label_key) if model.label_key else "none: cells without labels",
        "batches": f"{len(batches)}, in the column {code(batch_key)}" if batches else "none",
        "donors": donors,
        "tree of cell types": tree,
        "added by extensions": markdown(listed(added)),
        **{name: markdown(text) for name, text in given.items() if text},
        "SHA-256 of the file": f"`{checksum}`" if checksum else "",
    }
    return [(name, value) for name, value in rows.items() if value]


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
    yield "genes", f"{cells.n_genes:,}"
    yield "seed", str(cells.seed)
    yield "sampling", ", ".join(f"{name} {in_words(name, value)}" for name, value in cells.sampling.items())
    yield "columns of `obs`", ", ".join(map(code, cells.columns))
    yield "columns of `var`", ", ".join(map(code, cells.columns_of_genes)) or "none"


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
    for finding in evaluation.verdict().findings:
        ideal = LIMITS.by_score[finding.score].ideal
        yield SCORE_NAMES[finding.score], f"{finding.value:.3f}", f"{finding.floor:.3f}", f"{ideal:g}"


def is_of(evaluation: Evaluation, checksum: str | None) -> bool:
    """Whether an evaluation records the model with this checksum; False if it records none.

    Raises
    ------
    InputError
        If it records another model, or has no generated cells.
    """
    if GENERATED not in evaluation.sets:
        raise InputError("The evaluation has no generated cells; give an evaluation of cells of this model.")
    recorded = evaluation.provenance.get("sha256", {}).get("model")
    if None not in (recorded, checksum) and recorded != checksum:
        raise InputError(
            f"The evaluation is of cells of another model (its checksum begins with {recorded[:8]}, this model's with "
            f"{str(checksum)[:8]}); evaluate cells of this model."
        )
    return recorded is not None and checksum is not None


def of_audit(audit: Audit | None, model: BranchedModel, cells: GeneratedFile | None) -> dict[str, Any]:
    """Give the card what it shows of an audit, if there is one."""
    if audit is None:
        return {"audit": None}
    left_out = markdown(abbreviated(list(audit.record.get("left_out", ())), n_shown=10))
    rows = {"attacks": list(attack_rows(audit)), "audited_types": list(audited_type_rows(audit))}
    n_fitted = int(model.composition.to_numpy().sum())
    return {"audit": audit, "left_out": left_out, "divided": divided_in_words(audit, cells, n_fitted), **rows}


def divided_in_words(audit: Audit, cells: GeneratedFile | None, n_fitted: int) -> str:
    """Say how many units were a member in any fold, and how many generated cells were attacked, as far as is known.

    ``n_fitted`` is the number of cells that the model was fitted to.
    """
    text, n_generated = "", list(audit.record.get("n_generated", {}).values())
    if audit.n_tested == audit.record["n_units"]:
        text += f" Each {audit.unit} was a member in at least one division."
    elif audit.n_tested is not None:
        text += f" {counted(audit.n_tested, audit.unit)} were members in at least one division, and the others in none."
    if n_generated:
        least, most = min(n_generated), max(n_generated)
        number = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        share = rounded(sum(n_generated) / int(audit.scores["member"].sum()))
        text += f" The attacks had {number} generated cells in a division, {share} for each training cell"
        if cells is not None:
            released = int(cells.n_by_type.sum())
            text += f"; the file described above has {released:,}, {rounded(released / n_fitted)} for each"
        text += ". More cells disclose more."
    return text


def rounded(ratio: float) -> str:
    """Write a ratio with two digits, and without an exponent."""
    return np.format_float_positional(ratio, precision=2, fractional=False, trim="-")


def attack_rows(audit: Audit) -> Iterator[tuple[str, ...]]:
    """Yield the attacks of an audit: areas by generated cells, copies and chance, and which members were found."""
    known = audit.attacks_on_units["auc"]
    at_one_percent = audit.attacks_on_units["true_positives"]
    for finding in audit.verdict.findings:
        ends = [known.get((name, finding.attack)) for name in (COPIES, CHANCE)]
        copies, chance = ("" if of is None or np.isnan(of) else f"{of:.2f}" for of in ends)
        share = f"{at_one_percent[AUDITED, finding.attack]:.0%}"
        on = "model" if finding.attack in ON_MODEL else "cells"
        found = "inconclusive" if audit.verdict.inconclusive else "yes" if finding.found else "no"
        yield ATTACKS[finding.attack], on, f"{finding.auc:.2f}", copies, chance, share, found


def audited_type_rows(audit: Audit) -> Iterator[tuple[str, ...]]:
    """Yield each audited cell type: attacked units in a fold, best attack on cells, its area, and limit of chance."""
    area = "auc_of_donors" if audit.unit == "donor" else "auc"
    on_cells = (audit.by_label["set"] == AUDITED) & ~audit.by_label["attack"].isin(ON_MODEL)
    found = audit.by_label[on_cells].dropna(subset=area)
    n_units = audit.scores.groupby(["cell_type", "fold"])["unit"].nunique().groupby("cell_type").min()
    for name, of_type in found.groupby("cell_type", sort=True):
        best = of_type.loc[of_type[area].idxmax()]
        attack = ATTACKS[best["attack"]]
        yield markdown(name), f"{n_units[name]:,}", attack, f"{best[area]:.2f}", f"{best['limit']:.2f}"


def check_audit(audit: Audit, model: BranchedModel, cells: GeneratedFile | None = None) -> None:
    """Raise an InputError if an audit is not whole, or not of models and cells like these, fitted to the same data."""
    if audit.record.get("generator") != "bdm":
        raise InputError("The audit is of cells of another generator (--cells); audit models of bdm.")
    if audit.n_folds < audit.record["n_folds"]:
        raise InputError(
            f"The audit has {audit.n_folds} of {counted(audit.record['n_folds'], 'fold')}; run the others, and join "
            "them by bdm merge-audit."
        )
    column, donor_key = audit.record["audit"].get("donor_key"), model.preparation.get("donor_key")
    if donor_key is not None and column not in (None, donor_key, "donor"):  # as bdm prepare names the column of donors
        raise InputError(
            f"The audit takes the donors from the column {column!r}, and the model from {donor_key!r}; audit with the "
            "column of the model."
        )
    audited, fitted = audit.record.get("data_sha256"), model.autoencoder.provenance.get("data_sha256")
    if audited and fitted and audited != fitted:
        raise InputError(
            f"The audit is of other data (the checksum of its file begins with {audited[:8]}, and of the model's file "
            f"with {fitted[:8]}); audit the model's data."
        )
    prepared = audit.record["prepare"]
    of_cells = {name: prepared[name] for name in AUDITED_SETTINGS if name in {*prepared} & {*model.preparation}}
    of_model = settings_of_tree(model.hierarchy)
    of_tree = {name: value for name, value in audit.record["fit"]["hierarchy"].items() if name in of_model}
    if "tree_given" in audit.record:
        of_tree["tree"] = GIVEN[audit.record["tree_given"]]
    compared = (
        (of_cells, model.preparation),
        (of_tree, of_model),
        (audit.record["fit"]["autoencoder"], model.autoencoder.provenance["settings"]),
        (audit.record["fit"]["denoiser"], model.provenance["settings"]),
    )
    for settings, here in compared:
        check_settings(settings, here, "models", "in this model")
    if cells is not None:
        check_settings(audit.record["sampling"], cells.sampling, "cells", f"in {cells.name}")
    if other := sorted({*audit.scores["cell_type"], *audit.record.get("left_out", ())} ^ set(model.cell_types)):
        raise InputError(f"The audit and the model have different cell types ({other[0]}); audit the model's data.")


def check_settings(audited: Mapping[str, Any], here: Mapping[str, Any], what: str, where: str) -> None:
    """Raise an InputError if settings differ from those of an audit."""
    for name, value in audited.items():
        if here.get(name) != value:
            raise InputError(
                f"The audit is of {what} with other settings ({name} is {value}, and {here.get(name)} {where}); audit "
                f"{what} with these settings."
            )


def settings_of_tree(hierarchy: Hierarchy) -> dict[str, Any]:
    """Give the settings of a hierarchy, as an audit records them, and whether its tree was given."""
    return {
        "threshold": hierarchy.threshold,
        "flat": hierarchy.flat,
        "ontology_key": hierarchy.provenance.get("ontology_key"),
        "tree": GIVEN[hierarchy.given],
    }


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


def markdown(text: object) -> str:
    """Escape what Markdown would read as markup; names in data may have any characters."""
    return re.sub(r"([\\|<>\[\]*`])", r"\\\1", printable(str(text)))
