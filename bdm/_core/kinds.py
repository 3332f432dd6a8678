"""Registries of priors and decoders: built in, installed, or defined by users."""

from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from bdm._core.errors import InputError


@dataclass(frozen=True)
class Kinds:
    """Classes of one family, chosen by name and imported on demand.

    The base class of the family adds each subclass to ``registered`` when its module is imported.
    """

    family: str  # for messages
    group: str  # entry point group of installed packages
    built_in: dict[str, str]  # module of each class in bdm, by name
    registered: dict[str, type[Any]] = field(default_factory=dict)  # imported classes, by name

    @property
    def names(self) -> tuple[str, ...]:
        """All names, built-in ones first."""
        return tuple(dict.fromkeys((*self.built_in, *installed(self.group), *self.registered)))

    def find(self, name: str) -> type[Any]:
        """Import and return the class called ``name``."""
        self.check(name)
        if name not in self.registered and name in self.built_in:
            import_module(self.built_in[name])
        elif name not in self.registered:
            for entry in entry_points(group=self.group, name=name):
                entry.load()
        return self.registered[name]

    def check(self, name: str) -> None:
        """Reject an unknown name, without importing any class."""
        if name not in self.names:
            raise InputError(
                f"There is no {self.family} {name!r} in this installation, which has {', '.join(self.names)}; "
                "name one of these, or install or import the package that defines it."
            )


@cache
def installed(group: str) -> tuple[str, ...]:
    """Return the names of entry points; cached, as a search takes milliseconds."""
    return tuple(entry.name for entry in entry_points(group=group))


PRIORS = Kinds(
    "prior",
    "bdm.priors",
    {
        "mixture": "bdm.prior.mixture",
        "diffusion": "bdm.prior.diffusion",
        "flow": "bdm.prior.flow",
    },
)

DECODERS = Kinds("decoder", "bdm.decoders", {"negative_binomial": "bdm.autoencoder.decoder"})
