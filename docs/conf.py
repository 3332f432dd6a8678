"""Configuration of Sphinx for these pages; ``make docs`` builds them."""

import os
import re
import sys
import tomllib
from importlib.metadata import version as version_of
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from bdm.cli import app as commands

sys.path.insert(0, str(Path(__file__).parent))
from score_tables import text_of_properties, text_of_scores, text_of_self_fit, texts_of_space

del os.environ["MPLBACKEND"]  # of the command line; the tutorial would not show figures

project = "bdm"
author = "The bdm developers"
copyright = "The bdm developers"
version = release = version_of("bdm")
urls = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]["urls"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_generated", "jupyter_execute"]

# ---- pages

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

# Repository files that are also pages; on GitHub, links lead to the files.
PAGES_OF_FILES = {
    "../benchmarks/README.md": "benchmarks.md",
    "../config/README.md": "configuration.md",
    "../CHANGELOG.md": "changes.md",
    "../CONTRIBUTING.md": "contributing.md",
}

# ---- reference

autodoc_default_options = {"exclude-members": "__new__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
napoleon_google_docstring = False
napoleon_use_rtype = False
nitpicky = True
# Without a network, objects of other packages and of inner modules are not linked.
nitpick_ignore_regex = [
    (r"py:.*", r"(anndata|collections|matplotlib|numpy|pandas|pathlib|scipy|torch|typing)\..*"),
    (r"py:.*", r"bdm\.(?!api|pl).*"),
    # Annotations with deferred imports
    (r"py:class", "AnnData|Audit|Design|DonorModel|Evaluation|FittedExtension|Interpretation|Path|PowerAnalysis"),
    (r"py:class", "TransmutationEvaluation"),
]

# ---- look

html_theme = "sphinx_book_theme"
html_title = "bdm"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "navbar_persistent": [],
    "repository_url": urls["Source"],
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_issues_button": True,
    "use_repository_button": True,
}
html_copy_source = html_show_sourcelink = False
copybutton_prompt_text = "$ "


def setup(app):
    """Write the generated pages, and redirect links to repository files."""
    generated = Path(app.srcdir) / "_generated"
    generated.mkdir(exist_ok=True)
    (generated / "commands.md").write_text(text_of_commands())
    for name in ("benchmark", "benchmark_coarse", "benchmark_priors", "benchmark_self_fit"):
        (generated / f"{name}.md").write_text(text_of_scores(name))
    (generated / "benchmark_properties.md").write_text(text_of_properties())
    (generated / "self_fit.md").write_text(text_of_self_fit())
    for name, text in texts_of_space().items():
        (generated / f"{name}.md").write_text(text)
    app.connect("source-read", link_to_pages)


def text_of_commands():
    """Return the help of each command in Markdown, a section for each command."""
    group = typer.main.get_command(commands)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="bdm", title="bdm")
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text)  # repeats the sections


def link_to_pages(app, docname, source):
    """Replace links to repository files by links to their pages."""
    for file, page in PAGES_OF_FILES.items():
        source[0] = source[0].replace(f"]({file}", f"]({page}")
