"""Modules and functions are of a size that a person reads at once, and modules open with what lives in them."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bdm"
MAX_LINES, MAX_LINES_OF_FUNCTION = 400, 60


def faults(source: str) -> list[str]:
    """What is too long in a module, or missing."""
    tree = ast.parse(source)
    docstring = ast.get_docstring(tree)
    found = []
    if len(source.splitlines()) > MAX_LINES:
        found.append(f"has {len(source.splitlines())} lines")
    if not docstring:
        found.append("has no docstring")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            n_lines = node.end_lineno - node.lineno + 1
            if n_lines > MAX_LINES_OF_FUNCTION:
                found.append(f"{node.name} has {n_lines} lines")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_is_short_and_described(path):
    assert not faults(path.read_text(encoding="utf-8"))


def test_faults_are_found():
    long = "\n".join(["def long():", *["    pass"] * MAX_LINES])
    assert faults(long) == ["has 401 lines", "has no docstring", "long has 401 lines"]
    assert not faults('"""One."""\n\n\ndef short():\n    pass\n')
