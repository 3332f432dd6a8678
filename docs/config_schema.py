"""The configuration of the workflow: its sections with their settings, and its JSON schema.

``make config`` writes ``workflow/schemas/config.schema.json`` and ``config/README.md`` from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from bdm.audit.settings import AuditSettings
from bdm.schema import Setting, StageSettings, Unset, bounds, options_of
from bdm.settings import (
    AutoencoderSettings,
    Contact,
    DesignFile,
    EvaluationSettings,
    GenerationSettings,
    GeneSets,
    HierarchySettings,
    InputKeys,
    InterpretationSettings,
    Labels,
    Markers,
    MissingAsZero,
    NewTypes,
    PrepareSettings,
    PriorSettings,
    Seed,
    Source,
    SourceTypes,
    TargetType,
    TransmutationSettings,
    Tree,
    UpdatedTypes,
)

REQUIRED = object()
NAME = {"pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*$"}
Schema = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """Settings that stand together in the configuration.

    Attributes
    ----------
    meaning
        What the section is for, where it is listed among the others.
    title, description, examples
        Of its part of ``config/README.md``.
    named
        Objects of another section, which have names of their own: ``additions`` of the section ``addition``.
    """

    meaning: str
    title: str
    settings: tuple[Setting, ...]
    description: str = ""
    examples: tuple[Schema, ...] = ()
    named: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def schema(self) -> Schema:
        """JSON schema of the section, without the sections within it."""
        required = [setting.name for setting in self.settings if setting.default is REQUIRED]
        named = {key: named_objects(section, text) | {"default": {}} for key, (section, text) in self.named.items()}
        found: Schema = {
            "title": self.title,
            "description": self.description,
            "examples": list(self.examples),
            "type": "object",
            "additionalProperties": False,
            "required": required,
            "properties": named | {setting.name: property_of(setting) for setting in self.settings},
        }
        return {keyword: value for keyword, value in found.items() if value not in ("", [])}


def property_of(setting: Setting) -> Schema:
    """JSON schema of a setting; its description explains null or an empty list."""
    types = setting.schema["type"]
    if isinstance(types, list) and "string" in types:  # lists in place of files are for Python
        types = [name for name in types if name != "array"]
    found: Schema = {"type": types[0] if isinstance(types, list) and len(types) == 1 else types}
    if types == "array":
        found["items"] = {"type": "string"}
    found |= bounds(*(setting.key.bounds or setting.annotations))
    text = (setting.help or "").removesuffix(".")
    if setting.unset:
        text += f" ({'empty' if types == 'array' else 'null'}: {setting.unset})"
    if setting.default is not REQUIRED:
        default = setting.default if setting.key.default is None else setting.key.default
        found["default"] = list(default) if isinstance(default, tuple) else default
    return found | {"description": f"{text}."}


def named_objects(section: str, text: str) -> Schema:
    """JSON schema of objects of a section, by names."""
    return {
        "type": "object",
        "description": text,
        "propertyNames": NAME,
        "additionalProperties": {"$ref": f"#/$defs/{section}"},
    }


def of_stage(model: type[StageSettings], *others: Setting) -> tuple[Setting, ...]:
    """Give the settings of a stage that are in its section, and others that belong there."""
    own = [setting for setting in options_of(model) if setting.key.section is None and not setting.key.absent]
    return *own, *others


def optional(name: str, annotation: Any) -> Setting:
    """Give a setting that is None, or empty or false, by default."""
    setting = Setting.of(name, annotation, None)
    default = {tuple: (), bool: False}.get(setting.types[0])
    return Setting.of(name, annotation, default)


def of_keys(*names: str) -> Iterator[Setting]:
    """Give the keys of cells that a model is applied to, by name."""
    return (setting for setting in options_of(InputKeys) if setting.name in names)


FIT_FLAT = Annotated[bool, "Fit a model without a hierarchy as well, and compare its cells."]
RUN_AUDIT = Annotated[bool, "Run membership inference attacks, which fits models again."]
IN_DATASET = tuple(setting for setting in options_of(PrepareSettings) if setting.key.section == "dataset")
CELLS = Annotated[Path, MinLen(1), "The cells: `.h5ad`, `.zarr`, `.loom`, 10x `.h5`, or a 10x folder."]
NEW_CELLS = Annotated[Path, MinLen(1), "Cells of the new types, in any format that a data set may have."]
N_CELLS = Annotated[int | None, Ge(1), "Number of cells of each type.", Unset("as many of each type as the data have")]

DATASET = Section(
    meaning="",
    title="each data set",
    description="""\
A batch shifts every cell type alike. A condition to which cell types respond differently, such as a stimulus, is not a
batch: join it with the cell type to one label instead, or leave it out.

A data set may also have any of the sections below, with settings for this data set alone.
""",
    examples=(
        {
            "datasets": {
                "cortex": {"path": "data/cortex.h5ad", "label_key": "subclass", "prepare": {"n_genes": 3000}},
            }
        },
    ),
    settings=(Setting.of("path", CELLS, REQUIRED), *IN_DATASET, optional("labels", Labels)),
)
ADDITION = Section(
    meaning="",
    title="each addition",
    settings=(
        Setting.of("path", NEW_CELLS, REQUIRED),
        optional("cell_types", NewTypes),
        optional("update", UpdatedTypes),
        *of_keys("label_key", "counts"),
        optional("missing_as_zero", MissingAsZero),
    ),
)
TRANSMUTATION = Section(
    meaning="",
    title="each transmutation",
    settings=(Setting.of("to", TargetType, REQUIRED), optional("from", SourceTypes)),
)
DESIGN = Section(meaning="", title="each design", settings=(Setting.of("path", DesignFile, REQUIRED),))
NAMED = {"addition": ADDITION, "transmutation": TRANSMUTATION, "design": DESIGN}
SECTIONS = {
    "prepare": Section(
        "Choice of cells and genes, and the split into training, validation and test cells.",
        "cells, genes and the split",
        of_stage(PrepareSettings),
    ),
    "autoencoder": Section(
        "The autoencoder between counts and latent space.",
        "between counts and latent space",
        of_stage(AutoencoderSettings),
    ),
    "hierarchy": Section(
        "The hierarchy of cell types.", "the tree of cell types", of_stage(HierarchySettings, optional("tree", Tree))
    ),
    "train": Section(
        "The prior: which distribution of latents generates the cells, and how its network is trained, if it has one.",
        "the branched model, and the flat one that it is compared with",
        of_stage(PriorSettings),
    ),
    "extend": Section(
        "Cell types to add to a model later.",
        "cell types that are added later",
        (),
        description="""\
The model of NAME, extended by ADDITION and all additions before it, is a separate data set with the settings of NAME:
its results are in `results/NAME+ADDITION`. Additions belong to a data set, so give them there.
""",
        examples=(
            {
                "datasets": {
                    "blood": {
                        "path": "data/blood.h5ad",
                        "extend": {
                            "additions": {
                                "patient_7": {"path": "data/patient_7.h5ad"},
                                "more_b": {"path": "data/patient_8.h5ad", "update": ["B"]},
                            }
                        },
                    }
                }
            },
        ),
        named={
            "additions": (
                "addition",
                "The additions by name (letters, digits, `_` and `-`), in the order in which they extend the model; "
                "each is as below.",
            )
        },
    ),
    "generate": Section(
        "The cells to generate.", "new cells", of_stage(GenerationSettings, optional("n_cells", N_CELLS))
    ),
    "transmute": Section(
        "Cells to transmute to another type.",
        "cells transmuted to another type",
        of_stage(TransmutationSettings),
        description="Transmutations belong to the cell types of a data set, so give them there.\n",
        examples=(
            {
                "datasets": {
                    "blood": {
                        "path": "data/blood.h5ad",
                        "transmute": {"transmutations": {"b_to_nk": {"to": "NK", "from": ["B"]}}},
                    }
                }
            },
        ),
        named={
            "transmutations": (
                "transmutation",
                "The transmutations by name (letters, digits, `_` and `-`); each is as below.",
            )
        },
    ),
    "simulate": Section(
        "Experiments to simulate by designs.",
        "designed experiments",
        (),
        description="""\
[docs/designed_experiments.md](../docs/designed_experiments.md) explains the design files. The cells of the design NAME
are `results/DATASET/simulated/NAME.h5ad`, and its changed genes `results/DATASET/simulated/NAME_truth.csv`. Designs
belong to the cell types of a data set, so give them there.
""",
        examples=(
            {
                "datasets": {
                    "blood": {
                        "path": "data/blood.h5ad",
                        "simulate": {"designs": {"response": {"path": "config/response.yaml"}}},
                    }
                }
            },
        ),
        named={"designs": ("design", "The designs by name (letters, digits, `_` and `-`); each is as below.")},
    ),
    "evaluate": Section(
        "The comparison of generated cells with test cells.",
        "generated cells and test cells",
        of_stage(EvaluationSettings, Setting.of("flat", FIT_FLAT, False)),
    ),
    "interpret": Section(
        "The marker genes of each branch.",
        "the marker genes of each branch",
        of_stage(InterpretationSettings, optional("markers", Markers), optional("gene_sets", GeneSets)),
        description="""\
A list of markers names one gene a row; its types may differ from the types of the cells:

    type,gene
    T cell,CD3D
    T cell,CD3E
    B cell,CD79A
""",
    ),
    "audit": Section(
        "Membership inference attacks on generated cells.",
        "what generated cells disclose",
        of_stage(AuditSettings, optional("run", RUN_AUDIT)),
        description="""\
[docs/audit.md](../docs/audit.md) explains the audit. It is of donors, if the data set has a `donor_key`, and fits two
models in each fold with the settings of the other sections.
""",
    ),
    "card": Section(
        "What the card of the model states of the data.",
        "what the card of the model states",
        (optional("source", Source), optional("contact", Contact)),
        description="""\
The card, `results/NAME/card.md`, is for those who receive the cells: [docs/sharing.md](../docs/sharing.md).
""",
        examples=(
            {
                "datasets": {
                    "blood": {
                        "path": "data/blood.h5ad",
                        "license": "cc-by-4.0",
                        "card": {"source": "Study of blood, GSE000000", "contact": "A. Miller, miller@example.org"},
                    }
                }
            },
        ),
    ),
}
DESCRIPTION = """\
The workflow reads `config/config.yaml`. Only `datasets` is required; everything else has the default given below. A key
that is not in these tables is rejected before anything runs, as is the name of a column that `obs` of an `.h5ad` file
does not have. Threads are not here but in `profiles/default/config.yaml`, and memory on a cluster in
`profiles/slurm/config.yaml`.

For your own cells, edit `config/config.yaml`, or write a file like `config/example-own-data.yaml` and run it alone with

    snakemake --cores all --configfile mine.yaml --replace-workflow-config
"""
DATASETS = "The data sets by name (letters, digits, `_` and `-`); the results of NAME are in `results/NAME`."


def schema() -> Schema:
    """JSON schema of the whole configuration."""
    general = {name: reference(name, section.meaning) for name, section in SECTIONS.items()}
    for_one = {name: reference(name, f"Settings of {name} for this data set alone.") for name in SECTIONS}
    dataset = DATASET.schema
    dataset["properties"] |= for_one
    sections = {"dataset": dataset}
    for name, section in SECTIONS.items():
        sections[name] = section.schema
        sections |= {part: NAMED[part].schema for part, _ in section.named.values()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration",
        "description": DESCRIPTION,
        "type": "object",
        "additionalProperties": False,
        "required": ["datasets"],
        "properties": {
            "seed": property_of(Setting.of("seed", Seed, 0)),
            "datasets": {**named_objects("dataset", DATASETS), "minProperties": 1},
            **general,
        },
        "$defs": sections,
    }


def reference(section: str, text: str) -> Schema:
    """JSON schema of a key that has a section."""
    return {"$ref": f"#/$defs/{section}", "type": "object", "default": {}, "description": text}
