"""Hierarchically branched diffusion models of single-cell RNA-seq counts."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from bdm._core.progress import show_messages

if TYPE_CHECKING:  # for type checkers, which cannot see MODULES
    from bdm import pl as pl
    from bdm import tl as tl
    from bdm._core.errors import InputError as InputError
    from bdm.api import BranchedDiffusion as BranchedDiffusion
    from bdm.applications.extension.extend import ExtensionReport as ExtensionReport
    from bdm.applications.transmutation.evaluate_transmuted import TransmutationEvaluation as TransmutationEvaluation
    from bdm.evaluation.evaluate import Evaluation as Evaluation
    from bdm.hierarchy.files import read_tree as read_tree
    from bdm.interpretation.interpretation import Interpretation as Interpretation
    from bdm.settings import AuditSettings as AuditSettings
    from bdm.settings import AutoencoderSettings as AutoencoderSettings
    from bdm.settings import HierarchySettings as HierarchySettings
    from bdm.settings import InputKeys as InputKeys
    from bdm.settings import PrepareSettings as PrepareSettings
    from bdm.settings import Settings as Settings
    from bdm.settings import TrainSettings as TrainSettings

MODULES = {  # module of each public class and function
    "AuditSettings": "bdm.settings",
    "AutoencoderSettings": "bdm.settings",
    "BranchedDiffusion": "bdm.api",
    "TrainSettings": "bdm.settings",
    "Evaluation": "bdm.evaluation.evaluate",
    "ExtensionReport": "bdm.applications.extension.extend",
    "HierarchySettings": "bdm.settings",
    "InputError": "bdm._core.errors",
    "InputKeys": "bdm.settings",
    "Interpretation": "bdm.interpretation.interpretation",
    "PrepareSettings": "bdm.settings",
    "Settings": "bdm.settings",
    "TransmutationEvaluation": "bdm.applications.transmutation.evaluate_transmuted",
    "read_tree": "bdm.hierarchy.files",
}
__all__ = [*MODULES, "pl", "tl"]
__version__ = version("bdm")

show_messages()


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Import public names on first use, so that the command line starts fast."""
        if name in ("pl", "tl"):
            return import_module(f"bdm.{name}")
        if name in MODULES:
            return getattr(import_module(MODULES[name]), name)
        raise AttributeError(f"module 'bdm' has no attribute {name!r}")
