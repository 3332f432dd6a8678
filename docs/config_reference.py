"""Write config/README.md, the reference of every key of the configuration, from its schema."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
README = ROOT / "config" / "README.md"

Schema = dict[str, Any]
HEADINGS = {"dataset": "## `datasets`", "addition": "### `additions`", "move": "### `moves`"}
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
        f"<!-- Written from {SCHEMA.relative_to(ROOT)}: change that, and run `make config`. -->",
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
            default = f"`{in_yaml(value['default'])}`" if "default" in value else "none: it is needed"
            yield f"`{key}` | {kind(value)} | {default} | {value['description']}"


def kind(value: Schema) -> str:
    """Tell which values a property may have."""
    names = value["type"] if isinstance(value["type"], list) else [value["type"]]
    limits = [told.format(value[limit]) for limit, told in LIMITS.items() if limit in value]
    of_first = " ".join([KINDS[names[0]], " and ".join(limits)]).strip()
    return ", or ".join([of_first, *(KINDS[name] for name in names[1:])])


def in_yaml(value: Any) -> str:
    """Write a value as it stands in a file, an empty or a single one within the line."""
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=not isinstance(value, dict) or not value)
    return text.removesuffix("...\n").strip()


if __name__ == "__main__":
    README.write_text(reference(yaml.safe_load(SCHEMA.read_text())))
