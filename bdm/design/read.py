"""Reading of designs: a file or a dictionary, checked and brought to settings before anything runs."""

import os
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from bdm.design.settings import Design
from bdm.errors import InputError, at
from bdm.schema import Setting, StageSettings, reject_unknown, settings_of

Section = TypeVar("Section", bound=StageSettings)


def read_design(design: Design | dict[str, Any] | Path | str) -> Design:
    """Read a design file, or a dictionary with the same content.

    Raises
    ------
    InputError
        If the file cannot be read as YAML, or the design is invalid in itself, whatever the model.
    """
    if isinstance(design, Design):
        return design
    if isinstance(design, dict):
        return as_section(Design, design, "design")
    path = Path(design)
    with at(path):
        return as_section(Design, read_yaml(path), "")


def with_seed(design: Design, seed: int | None) -> Design:
    """Replace the seed of a design, if another is given."""
    return design if seed is None else replace(design, seed=seed)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises
    ------
    InputError
        If there is no such file, or it is not YAML.
    """
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


def as_section(of: type[Section], content: Any, place: str) -> Section:
    """Bring the content of a file, or of a part of it, to settings.

    Parameters
    ----------
    place
        Where the content is in the file, for messages; empty at its top.

    Raises
    ------
    InputError
        If a key is unknown or missing, or a value is not allowed.
    """
    if place:
        with at(place):
            return as_section(of, content, "")
    expand = getattr(of, "expanded", None)
    content = {} if content is None else content if expand is None else expand(content)
    if not isinstance(content, dict):
        raise InputError(f"there is {content!r}, but there must be keys with values.")
    content = {str(key): value for key, value in content.items() if value is not None}  # an empty key is none
    settings = {setting.name.rstrip("_"): setting for setting in settings_of(of)}
    reject_unknown(content, list(settings))
    for key, setting in settings.items():
        if setting.default is MISSING and key not in content:
            raise InputError(f"there is no {key}, which is required.")
    return of(**{settings[key].name: as_value(settings[key], value, key) for key, value in content.items()})


def as_value(setting: Setting, value: Any, key: str) -> Any:
    """Bring the value of a key to the type of its setting, as far as it has the form of one."""
    if setting.nested is not None and value is not None:
        if tuple not in setting.types:
            return as_section(setting.nested, value, key)
        if not isinstance(value, list | tuple):
            raise InputError(f"{key} is {value!r}, but must be a list.")
        return tuple(as_section(setting.nested, item, place_of(key, i, item)) for i, item in enumerate(value, 1))
    kind = setting.types[0]
    if kind is tuple and not isinstance(value, dict | None):
        items = value if isinstance(value, list | tuple) else (value,)
        return tuple(items) if float in get_args(setting.kinds[0]) else tuple(map(as_name, items))
    if dict in setting.types and isinstance(value, dict):
        return {str(name): item for name, item in value.items()}
    if kind is str and not {int, float} & set(setting.types):
        return as_name(value)
    return Path(value) if kind is Path and isinstance(value, str | os.PathLike) else value


def as_name(value: Any) -> Any:
    """Write a number as a name: identifiers of genes, or names of conditions and batches, may be numbers in YAML."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def place_of(key: str, number: int, item: Any) -> str:
    """Name a part of a list by its name, or by its number, counted from 1."""
    name = item.get("name") if isinstance(item, dict) else None
    return f"{key}.{name or number}"
