"""The configuration of the workflow: its sections with their settings, and its JSON schema.

``make config`` writes ``workflow/schemas/config.schema.json`` and the tables of ``config/README.md`` from it.
"""

from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from bdm._core.schema import Setting, StageSettings, Unset, described_settings
from bdm.settings import (
    AuditSettings,
    AutoencoderSettings,
    Contact,
    DesignFile,
    EvaluationSettings,
    ExtrapolateLineage,
    GenerationSettings,
    HierarchySettings,
    InputKeys,
    InterpretationSettings,
    Labels,
    LineageNode,
    LineageSettings,
    LineageTime,
    LineageTreeFile,
    MissingAsZero,
    NewTypes,
    PredictedCondition,
    PredictedTypes,
    PrepareSettings,
    ResponseSettings,
    Seed,
    Source,
    SourceTypes,
    TargetType,
    TrainSettings,
    TransmutationSettings,
    Tree,
)

NAMES = "by name (letters, digits, `_` and `-`)"
Schema = dict[str, Any]


def key(name: str, annotation: Any, default: Any = MISSING) -> Setting:
    """Describe a key of the configuration that is no setting of a stage, and required if it has no default."""
    return Setting(name, annotation, default)


def of_stage(model: type[StageSettings]) -> list[Setting]:
    """List the settings of a stage that are in its section."""
    return [setting for setting in described_settings(model) if setting.key.section is None and not setting.key.absent]


Cells = Annotated[Path, "Cells: `.h5ad`, `.h5mu`, `.zarr`, `.loom`, 10x `.h5`, or a 10x folder."]
NewCells = Annotated[Path, "Cells of the new types, in any format of a data set."]
NCells = Annotated[int | None, Ge(1), "Number of cells of each type.", Unset("as in the data")]
NReconstructed = Annotated[int, Ge(1), "Number of cells."]
FitFlat = Annotated[bool, "Also fit a model without a hierarchy and compare its cells; for priors with a network."]
RunResponses = Annotated[bool, "Measure how cell types respond to conditions."]
RunLineage = Annotated[bool, "Measure expression along a lineage."]
RunAudit = Annotated[bool, "Run membership inference attacks, which fit models again."]

# What each section is for, and its keys; a text stands for objects of another section, by names
SECTIONS: dict[str, tuple[str, list[Setting]]] = {
    "prepare": (
        "Choice of cells and genes, and the split into training, validation and test cells.",
        of_stage(PrepareSettings),
    ),
    "autoencoder": ("The autoencoder between counts and latent space.", of_stage(AutoencoderSettings)),
    "hierarchy": ("The hierarchy of cell types.", [*of_stage(HierarchySettings), key("tree", Tree, None)]),
    "train": (
        "The prior over latents, and the training of its network, if it has one.",
        of_stage(TrainSettings),
    ),
    "extend": ("Cell types to add to a model later.", []),
    "generate": ("The cells to generate.", [*of_stage(GenerationSettings), key("n_cells", NCells, None)]),
    "transmute": ("Cells to transmute to another type.", of_stage(TransmutationSettings)),
    "respond": (
        "Responses of cell types to conditions, and cells in conditions that were not measured.",
        [*of_stage(ResponseSettings), key("run", RunResponses, False)],
    ),
    "lineage": (
        "Expression along a lineage and time, and cells of unsampled ancestors and times.",
        [*of_stage(LineageSettings), key("tree", LineageTreeFile, None), key("run", RunLineage, False)],
    ),
    "simulate": ("Designed experiments to simulate.", []),
    "evaluate": (
        "The comparison of generated cells with test cells.",
        [*of_stage(EvaluationSettings), key("flat", FitFlat, False)],
    ),
    "interpret": (
        "The marker genes of each branch.",
        of_stage(InterpretationSettings),
    ),
    "audit": (
        "Membership inference attacks on generated cells.",
        [*of_stage(AuditSettings), key("run", RunAudit, False)],
    ),
    "card": (
        "Statements about the data on the card of the model.",
        [key("source", Source, None), key("contact", Contact, None)],
    ),
}
DATASET = [
    key("path", Cells),
    *(setting for setting in described_settings(PrepareSettings) if setting.key.section == "dataset"),
    key("labels", Labels, None),
]
# Objects of a section, which have names: the section, their key in it, their description, and the keys of each
NAMED: dict[str, tuple[str, str, str, list[Setting]]] = {
    "addition": (
        "extend",
        "additions",
        f"Additions {NAMES}, in the order in which they extend the model.",
        [
            key("path", NewCells),
            key("cell_types", NewTypes, ()),
            *(setting for setting in described_settings(InputKeys) if setting.name != "batch_key"),
            key("missing_as_zero", MissingAsZero, False),
        ],
    ),
    "transmutation": (
        "transmute",
        "transmutations",
        f"Transmutations {NAMES}.",
        [key("to", TargetType), key("from", SourceTypes, ())],
    ),
    "prediction": (
        "respond",
        "predictions",
        f"Predictions {NAMES}.",
        [key("condition", PredictedCondition), key("cell_types", PredictedTypes, ())],
    ),
    "reconstruction": (
        "lineage",
        "reconstructions",
        f"Reconstructions {NAMES}.",
        [
            key("node", LineageNode),
            key("at", LineageTime, None),
            key("n_cells", NReconstructed, 100),
            key("extrapolate", ExtrapolateLineage, False),
        ],
    ),
    "design": ("simulate", "designs", f"Designs {NAMES}.", [key("path", DesignFile)]),
}


def schema() -> Schema:
    """JSON schema of the whole configuration."""
    sections = {name: reference(name, meaning) for name, (meaning, _) in SECTIONS.items()}
    parts = {"dataset": keys(DATASET, sections)}
    for name, (_, settings) in SECTIONS.items():
        of = {part: found for part, found in NAMED.items() if found[0] == name}
        named = {plural: named_objects(part, text) | {"default": {}} for part, (_, plural, text, _) in of.items()}
        parts |= {name: keys(settings, named), **{part: keys(found[-1]) for part, found in of.items()}}
    text = f"Data sets {NAMES}; the results of NAME are in `results/NAME`."
    datasets = named_objects("dataset", text) | {"minProperties": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration",
        **keys([key("seed", Seed, 0)], {"datasets": datasets, **sections}),
        "required": ["datasets"],
        "$defs": parts,
    }


def keys(settings: list[Setting], others: Schema | None = None) -> Schema:
    """JSON schema of an object with settings, and other properties."""
    required = [setting.name for setting in settings if setting.default is MISSING]
    return {
        "type": "object",
        "additionalProperties": False,
        **({"required": required} if required else {}),
        "properties": {setting.name: property_of(setting) for setting in settings} | (others or {}),
    }


def property_of(setting: Setting) -> Schema:
    """JSON schema of a setting; its description explains null or an empty list."""
    of, default = setting.key, setting.default
    found = setting.adapter.json_schema()
    if of.bounds:
        found = Setting("", Annotated[(setting.types[0], *of.bounds)]).adapter.json_schema()
    kinds = found.get("anyOf", [found])
    if any(one.get("format") == "path" for one in kinds):  # lists in place of files are for Python
        kinds = [{"type": "string", "minLength": 1}, *(one for one in kinds if one["type"] == "null")]
    text = (setting.help or "").removesuffix(".")
    if setting.unset:
        text += f" ({'empty' if tuple in setting.types[:1] else 'null'}: {setting.unset})"
    found = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if default is not MISSING:
        default = default if of.default is None else of.default
        found |= {"default": list(default) if isinstance(default, tuple) else default}
    return found | {"description": f"{text}."}


def named_objects(part: str, text: str) -> Schema:
    """JSON schema of objects of one part, by names."""
    return {
        "type": "object",
        "description": text,
        "propertyNames": {"pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*$"},
        "additionalProperties": {"$ref": f"#/$defs/{part}"},
    }


def reference(section: str, text: str) -> Schema:
    """JSON schema of a key that has a section."""
    return {"$ref": f"#/$defs/{section}", "type": "object", "default": {}, "description": text}
