"""Sections of the workflow's configuration, and its JSON schema.

``make config`` writes ``workflow/schemas/config.schema.json`` and the tables of ``config/README.md`` from it.
"""

from collections.abc import Callable
from dataclasses import MISSING
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from bdm._core.schema import Setting, StageSettings, Unset, settings_of
from bdm.commands.card import card
from bdm.commands.extend import extend
from bdm.commands.hierarchy import hierarchy
from bdm.commands.lineage import lineage
from bdm.commands.predict import predict
from bdm.commands.prepare import prepare
from bdm.commands.reconstruct import reconstruct
from bdm.commands.respond import respond
from bdm.commands.simulate import simulate
from bdm.commands.transmute import transmute
from bdm.settings import (
    AuditSettings,
    AutoencoderSettings,
    EvaluationSettings,
    GenerationSettings,
    HierarchySettings,
    InputKeys,
    InterpretationSettings,
    LineageSettings,
    PrepareSettings,
    ResponseSettings,
    Seed,
    TrainSettings,
)

Schema = dict[str, Any]


def key(name: str, annotation: Any, default: Any = MISSING) -> Setting:
    """Describe a key outside the settings of a stage; required without a default."""
    return Setting(name, annotation, default)


def option(command: Callable[..., Any], argument: str, name: str | None = None) -> Setting:
    """Describe the key of a command's option, called ``name`` if not as the argument."""
    parameter = signature(command).parameters[argument]
    default = MISSING if parameter.default is Parameter.empty else parameter.default
    return Setting(name or argument, parameter.annotation, default)


def stage_settings(model: type[StageSettings]) -> list[Setting]:
    """List the settings in the section of a stage, without those of the data set and the seed."""
    others = {setting.name for setting in [*DATASET, SEED]}
    return [each for each in settings_of(model) if each.help and each.name not in others]


Cells = Annotated[Path, "Cells: `.h5ad`, `.h5mu`, `.zarr`, `.loom`, 10x `.h5`, or a 10x folder."]
NewCells = Annotated[Path, "Cells of the new types, in any format of a data set."]
NCells = Annotated[int | None, Ge(1), "Number of cells of each type.", Unset("as in the data")]
Condition = Annotated[str, MinLen(1), option(predict, "condition").help]  # one, as each prediction has a name
RunResponses = Annotated[bool, "Measure how cell types respond to conditions."]
RunLineage = Annotated[bool, "Measure expression along a lineage."]
RunAudit = Annotated[bool, "Run membership inference attacks, which fit models again."]

SEED = key("seed", Seed, 0)
DATASET = [
    key("path", Cells),
    *(setting for setting in settings_of(PrepareSettings) if setting.key.section == "dataset"),
    option(prepare, "labels"),
]
# Description and keys of each section
SECTIONS: dict[str, tuple[str, list[Setting]]] = {
    "prepare": (
        "Choice of cells and genes, and the split into training, validation and test cells.",
        stage_settings(PrepareSettings),
    ),
    "autoencoder": ("The autoencoder between counts and latent space.", stage_settings(AutoencoderSettings)),
    "hierarchy": ("The hierarchy of cell types.", [*stage_settings(HierarchySettings), option(hierarchy, "tree")]),
    "train": (
        "The prior over latents, and the training of its network, if it has one.",
        stage_settings(TrainSettings),
    ),
    "extend": ("Cell types to add to a model later.", []),
    "generate": ("The cells to generate.", [*stage_settings(GenerationSettings), key("n_cells", NCells, None)]),
    "transmute": ("Cells to transmute to another type.", []),
    "respond": (
        "Responses of cell types to conditions, and cells in conditions that were not measured.",
        [
            *stage_settings(ResponseSettings),
            option(respond, "condition_features"),
            key("run", RunResponses, False),
        ],
    ),
    "lineage": (
        "Expression along a lineage and time, and cells of unsampled ancestors and times.",
        [*stage_settings(LineageSettings), option(lineage, "tree"), key("run", RunLineage, False)],
    ),
    "simulate": ("Designed experiments to simulate.", []),
    "evaluate": (
        "The comparison of generated cells with test cells.",
        stage_settings(EvaluationSettings),
    ),
    "interpret": (
        "The marker genes of each branch.",
        stage_settings(InterpretationSettings),
    ),
    "audit": (
        "Membership inference attacks on generated cells.",
        [*stage_settings(AuditSettings), key("run", RunAudit, False)],
    ),
    "card": (
        "Statements about the data on the card of the model.",
        [option(card, "source"), option(card, "contact")],
    ),
}
# Named objects in a section: the section, their key, their description, and their own keys
NAMED: dict[str, tuple[str, str, str, list[Setting]]] = {
    "addition": (
        "extend",
        "additions",
        "Additions by name, in the order in which they extend the model.",
        [
            key("path", NewCells),
            option(extend, "cell_type", "cell_types"),
            *(setting for setting in settings_of(InputKeys) if setting.name != "batch_key"),
            option(extend, "missing_as_zero"),
        ],
    ),
    "transmutation": (
        "transmute",
        "transmutations",
        "Transmutations by name.",
        [option(transmute, "to"), option(transmute, "from_", "from")],
    ),
    "prediction": (
        "respond",
        "predictions",
        "Predictions by name.",
        [
            key("condition", Condition),
            option(predict, "dose"),
            option(predict, "cell_type", "cell_types"),
            option(predict, "extrapolate"),
        ],
    ),
    "reconstruction": (
        "lineage",
        "reconstructions",
        "Reconstructions by name.",
        [
            option(reconstruct, "node"),
            option(reconstruct, "at"),
            option(reconstruct, "cells", "n_cells"),
            option(reconstruct, "extrapolate"),
        ],
    ),
    "design": ("simulate", "designs", "Designs by name.", [option(simulate, "design", "path")]),
}


def schema() -> Schema:
    """Return the JSON schema of the configuration."""
    sections = {name: reference(name, meaning) for name, (meaning, _) in SECTIONS.items()}
    parts = {"dataset": keys(DATASET, sections)}
    for name, (_, settings) in SECTIONS.items():
        objects = {part: entry for part, entry in NAMED.items() if entry[0] == name}
        mappings = {
            plural: named_objects(part, text) | {"default": {}} for part, (_, plural, text, _) in objects.items()
        }
        parts |= {name: keys(settings, mappings), **{part: keys(entry[-1]) for part, entry in objects.items()}}
    text = (
        "Data sets by name (letters, digits, `_` and `-`, as in all names below); "
        "the results of NAME are in `results/NAME`."
    )
    datasets = named_objects("dataset", text) | {"minProperties": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration",
        **keys([SEED], {"datasets": datasets, **sections}),
        "required": ["datasets"],
        "$defs": parts,
    }


def keys(settings: list[Setting], properties: Schema | None = None) -> Schema:
    """Return the JSON schema of an object with settings and further properties."""
    required = [setting.name for setting in settings if setting.default is MISSING]
    return {
        "type": "object",
        "additionalProperties": False,
        **({"required": required} if required else {}),
        "properties": {setting.name: property_of(setting) for setting in settings} | (properties or {}),
    }


def property_of(setting: Setting) -> Schema:
    """Return the JSON schema of a setting.

    Its description explains null or an empty list. A file has the format ``path``, and ``words`` that name no file.
    """
    if setting.key.bounds:
        values = Setting("", Annotated[(setting.types[0], *setting.key.bounds)]).adapter.json_schema()
    else:
        values = setting.adapter.json_schema()
    kinds = values.get("anyOf", [values])
    if any(kind.get("format") == "path" for kind in kinds):  # only Python also accepts lists for files
        file = {"type": "string", "minLength": 1, "format": "path"}
        words = {"words": list(setting.key.words)} if setting.key.words else {}
        kinds = [file | words, *(kind for kind in kinds if kind["type"] == "null")]
    text = (setting.help or "").removesuffix(".")
    if setting.unset:
        text += f" ({'empty' if tuple in setting.types[:1] else 'null'}: {setting.unset})"
    values = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if setting.default is not MISSING:
        default = setting.default if setting.key.default is None else setting.key.default
        values |= {"default": list(default) if isinstance(default, tuple) else default}
    return values | {"description": f"{text}."}


def named_objects(part: str, text: str) -> Schema:
    """Return the JSON schema of named objects."""
    return {
        "type": "object",
        "description": text,
        "propertyNames": {"pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*$"},
        "additionalProperties": {"$ref": f"#/$defs/{part}"},
    }


def reference(section: str, text: str) -> Schema:
    """Return the JSON schema of a key with its own section."""
    return {"$ref": f"#/$defs/{section}", "type": "object", "default": {}, "description": text}
