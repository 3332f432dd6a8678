"""No module imports one of a higher layer."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [  # from the lowest; a module may import modules of its own layer and of lower ones
    {"text", "errors", "validation", "seeds", "arrays", "progress", "files", "checksums", "store", "provenance"},
    {"threads", "checkpoint", "training", "processes", "embedding"},
    {"data", "schema", "settings"},
    {"evaluation"},  # compares cells, whatever they come from
    {"audit"},  # attacks cells, whatever they come from
    {"configuration"},  # of all stages
    {"autoencoder"},
    {"latent"},
    {"donors"},
    {"hierarchy"},
    {"diffusion"},
    {"model"},
    {"generation"},
    {"interpretation", "extension", "transmutation", "design"},
    {"power"},  # above design, whose experiments it tests
    {"plotting"},
    {"report", "api", "computing", "fitted_model"},
    {"pl"},
    {"commands", "cli"},
]
LAYER = {name: number for number, layer in enumerate(LAYERS) for name in layer}


def part(module: str) -> str:
    """First name below the package: a folder, or a module on its own."""
    return module.split(".")[1]


def imports(source: str) -> set[str]:
    """Modules of bdm that a source imports anywhere, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("bdm.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "bdm":
            found |= {f"bdm.{alias.name}" for alias in node.names if not alias.name.startswith("_")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bdm."):
            found.add(node.module)
    return found


def upward(module: str, source: str) -> set[str]:
    """Imports of a module that run up the layers."""
    return {name for name in imports(source) if LAYER[part(name)] > LAYER[part(module)]}


def modules() -> dict[str, Path]:
    paths = sorted((ROOT / "bdm").rglob("*.py"))
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    return {name: path for name, path in named.items() if name != "bdm"}


def test_every_module_has_a_layer():
    assert {part(module) for module in modules()} == set(LAYER)
    assert sum(map(len, LAYERS)) == len(LAYER)


@pytest.mark.parametrize("module", modules())
def test_no_import_runs_up_the_layers(module):
    assert not upward(module, modules()[module].read_text())


def test_upward_imports_are_found():
    source = "def draw():\n    from bdm.plotting.tree import plot_hierarchy\n\nimport bdm.cli\nfrom bdm import pl\n"
    assert upward("bdm.evaluation.scores", source) == {"bdm.plotting.tree", "bdm.cli", "bdm.pl"}
    assert not upward("bdm.cli", source)
