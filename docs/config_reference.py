"""Write the schema of the configuration from the settings of bdm, and config/README.md, which describes each key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from config_schema import schema

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.json"
README = ROOT / "config" / "README.md"

Schema = dict[str, Any]
HEADINGS = {"dataset": "## `datasets`", "addition": "### `additions`", "transmutation": "### `transmutations`"}
HEADINGS |= {"design": "### `designs`"}
KINDS = {
    "array": "list of texts",
    "boolean": "true or false",
    "integer": "whole number",
    "null": "null",
    "number": "number",
    "object": "keys",
    "string": "text",
}
LIMITS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "exclusiveMaximum": "below {}"}


def reference(schema: Schema) -> str:
    """Describe a schema in Markdown: its top level, and each of its definitions in their order."""
    parts = [
        f"# {schema['title']}",
        "<!-- Written from the settings of bdm: change bdm/settings.py, and run `make config`. -->",
        schema["description"].strip(),
        "## Top level",
        table(schema),
    ]
    for name, part in schema["$defs"].items():
        parts += [f"{HEADINGS.get(name, f'## `{name}`')}: {part['title']}", table(part)]
        parts += [part["description"].strip()] if "description" in part else []
        parts += [f"```yaml\n{in_yaml(example)}\n```" for example in part.get("examples", [])]
    return "\n\n".join(parts) + "\n"


def table(part: Schema) -> str:
    """List the properties of an object, but for those that have a section of their own."""
    rows = ["key | value | default | meaning", "--- | --- | --- | ---", *rows_of(part)]
    return "\n".join(f"| {row} |" for row in rows)


def rows_of(part: Schema) -> Iterator[str]:
    """Give key, kind of value, default and meaning of each property."""
    for key, value in part["properties"].items():
        if "$ref" not in value:
            default = f"`{in_yaml(value['default'])}`" if "default" in value else "none (required)"
            yield f"`{key}` | {kind(value)} | {default} | {value['description']}"


def kind(value: Schema) -> str:
    """Describe which values a property may have."""
    if "anyOf" in value:
        texts, *numbers = value["anyOf"]
        return ", or ".join([", ".join(f"`{text}`" for text in texts["enum"]), *map(kind, numbers)])
    names = value["type"] if isinstance(value["type"], list) else [value["type"]]
    limits = [words.format(value[limit]) for limit, words in LIMITS.items() if limit in value]
    of_first = " ".join([KINDS[names[0]], " and ".join(limits)]).strip()
    return ", or ".join([of_first, *(KINDS[name] for name in names[1:])])


def schema_file(content: Schema) -> str:
    """Write the schema as it stands in its file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def in_yaml(value: Any) -> str:
    """Write a value as it stands in a file, an empty or a single one within the line."""
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=not isinstance(value, dict) or not value)
    return text.removesuffix("...\n").strip()


if __name__ == "__main__":
    SCHEMA.write_text(schema_file(schema()))
    README.write_text(reference(schema()))
