from pathlib import Path

from bdm.errors import InputError
from bdm.hierarchy.tree import FORMAT, Hierarchy
from bdm.seal import read_sealed_json, write_sealed_json


def save_hierarchy(path: Path, hierarchy: Hierarchy) -> None:
    """Write a hierarchy into a JSON file."""
    write_sealed_json(path, hierarchy.to_json())


def load_hierarchy(path: Path) -> Hierarchy:
    """Read a hierarchy from its JSON file.

    Raises
    ------
    InputError
        If there is no such file, or it holds no hierarchy as :func:`save_hierarchy` wrote it.
    """
    content = read_sealed_json(path, "hierarchy", version=FORMAT)
    try:
        return Hierarchy.from_json(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
