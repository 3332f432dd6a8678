"""Hierarchically branched diffusion models of single-cell RNA-seq counts."""

from importlib.metadata import version

__all__ = ["BranchedDiffusion", "InputError", "Settings"]
__version__ = version("bdm")


def __getattr__(name: str):
    """Import the model's classes when they are first asked for, so that the command line starts at once."""
    if name in __all__:
        import bdm.api

        return getattr(bdm.api, name)
    raise AttributeError(f"module 'bdm' has no attribute {name!r}")
