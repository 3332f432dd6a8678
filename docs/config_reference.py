"""Write the schema of the configuration, and the tables of its keys."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from config_schema import schema

from bdm.applications.design.design import described_keys

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.json"
README = ROOT / "config" / "README.md"
DESIGNS = ROOT / "docs" / "designed_experiments.md"
TABLE = re.compile(r"(<!-- keys of (\w+), written by `make config` -->\n)\n(?:\|.*\n)*")

Schema = dict[str, Any]
KINDS = {
    "array": "list of texts",
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "object": "keys",
    "string": "text",
}
LIMITS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "exclusiveMaximum": "below {}"}


def with_tables(page: str, schema: Schema) -> str:
    """Replace the tables of keys on a page."""
    parts = {"configuration": schema, **schema["$defs"]}
    tables = {"designs": table_of_designs(), **{name: table(part) for name, part in parts.items()}}
    return TABLE.sub(lambda match: f"{match[1]}\n{tables[match[2]]}\n", page)


def table_of_designs() -> str:
    """List the keys of a design."""
    rows = ["key | meaning | default", "--- | --- | ---"]
    rows += [f"`{key}` | {meaning} | {default}" for key, meaning, default in described_keys()]
    return "\n".join(f"| {row} |" for row in rows)


def table(part: Schema) -> str:
    """List the properties of an object, except sections."""
    rows = ["key | value | default | meaning", "--- | --- | --- | ---"]
    for key, value in part["properties"].items():
        if "$ref" not in value:
            default = f"`{in_yaml(value['default'])}`" if "default" in value else "required"
            rows.append(f"`{key}` | {kind(value)} | {default} | {value['description']}")
    return "\n".join(f"| {row} |" for row in rows)


def kind(value: Schema) -> str:
    """Describe the values of a property."""
    if "anyOf" in value:
        kinds = [kind(option) for option in value["anyOf"] if option.get("type") != "null"]  # the description has null
        return ", or ".join(kinds)
    if "enum" in value:
        return ", ".join(f"`{text}`" for text in value["enum"])
    limits = [words.format(value[limit]) for limit, words in LIMITS.items() if limit in value]
    return " ".join([KINDS[value["type"]], " and ".join(limits)]).strip()


def schema_file(content: Schema) -> str:
    """Format the schema as in its file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def in_yaml(value: Any) -> str:
    """Format a value in YAML, on one line unless it is a non-empty mapping."""
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=not isinstance(value, dict) or not value)
    return text.removesuffix("...\n").strip()


if __name__ == "__main__":
    SCHEMA.write_text(schema_file(schema()))
    for page in (README, DESIGNS):
        page.write_text(with_tables(page.read_text(), schema()))
