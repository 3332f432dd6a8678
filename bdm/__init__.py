"""Hierarchically branched diffusion models of single-cell RNA-seq counts."""

from importlib import import_module
from importlib.metadata import version

from bdm.progress import show_messages

MODULES = {
    "AutoencoderSettings": "bdm.settings",
    "BranchedDiffusion": "bdm.api",
    "DenoiserSettings": "bdm.settings",
    "Evaluation": "bdm.evaluation.results",
    "ExtensionReport": "bdm.extension.results",
    "HierarchySettings": "bdm.settings",
    "InputError": "bdm.errors",
    "Interpretation": "bdm.interpretation.results",
    "PrepareSettings": "bdm.settings",
    "Settings": "bdm.settings",
    "TransmutationEvaluation": "bdm.transmutation.results",
    "read_tree": "bdm.hierarchy.files",
}
__all__ = [*MODULES, "pl"]
__version__ = version("bdm")

show_messages()


def __getattr__(name: str) -> object:
    """Import the model's classes and figures when they are first used, so that the command line starts at once."""
    if name == "pl":
        return import_module("bdm.pl")
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name)
    raise AttributeError(f"module 'bdm' has no attribute {name!r}")
