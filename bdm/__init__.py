"""Hierarchically branched diffusion models of single-cell RNA-seq counts."""

import os
import sys
from importlib import import_module
from importlib.metadata import version

from bdm.progress import show_messages

# Threads of OpenMP spin while they wait, and slow down whatever runs beside them. Torch reads this as it is loaded.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}

# The first parallel code that numba runs sets the threads of the whole process, torch's too, to all cores. Once numba
# is imported it is too late: numba rejects another number.
if "OMP_NUM_THREADS" in os.environ and "numba" not in sys.modules:
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

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
