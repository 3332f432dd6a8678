"""Reading of designs: a file or a dictionary, checked and brought to settings before anything runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bdm.design.settings import Design
from bdm.errors import InputError, at


def read_design(design: Design | dict[str, Any] | Path | str) -> Design:
    """Read a design file, or a dictionary with the same content."""
    if isinstance(design, Design):
        return design
    if isinstance(design, dict):
        return Design.of(design, "design")
    path = Path(design)
    with at(path):
        return Design.of(read_yaml(path))


def with_seed(design: Design, seed: int | None) -> Design:
    """Replace the seed of a design, if another is given."""
    return design if seed is None else replace(design, seed=seed)


def read_yaml(path: Path) -> Any:
    """Read a YAML file."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("there is no such file.") from error
    except OSError as error:
        raise InputError(f"it cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where else ""
        raise InputError(f"{line}it is not YAML ({getattr(error, 'problem', None) or error}).") from error
