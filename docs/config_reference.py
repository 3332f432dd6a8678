"""Write the schema of the configuration, and the tables of its keys in config/README.md, from the settings of bdm."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from config_schema import schema

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.json"
README = ROOT / "config" / "README.md"
TABLE = re.compile(r"(<!-- keys of (\w+), written by `make config` -->\n)\n(?:\|.*\n)*")

Schema = dict[str, Any]
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


def with_tables(page: str, schema: Schema) -> str:
    """Write the tables of a page anew: of the top level, and of each definition of the schema."""
    parts = {"configuration": schema, **schema["$defs"]}
    return TABLE.sub(lambda found: f"{found[1]}\n{table(parts[found[2]])}\n", page)


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
        return ", or ".join(map(kind, value["anyOf"]))
    if "enum" in value:
        return ", ".join(f"`{text}`" for text in value["enum"])
    limits = [words.format(value[limit]) for limit, words in LIMITS.items() if limit in value]
    return " ".join([KINDS[value["type"]], " and ".join(limits)]).strip()


def schema_file(content: Schema) -> str:
    """Write the schema as it stands in its file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def in_yaml(value: Any) -> str:
    """Write a value as it stands in a file, an empty or a single one within the line."""
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=not isinstance(value, dict) or not value)
    return text.removesuffix("...\n").strip()


if __name__ == "__main__":
    SCHEMA.write_text(schema_file(schema()))
    README.write_text(with_tables(README.read_text(), schema()))
