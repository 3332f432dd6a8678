"""Kinds of priors and of decoders by name: those of bdm, of installed packages, and of the running program."""

from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from bdm._core.errors import InputError


@dataclass(frozen=True)
class Kinds:
    """Classes of one family, which are chosen by name and imported when they are needed."""

    what: str  # what the family is called in messages
    group: str  # entry points of installed packages that have further ones
    built_in: dict[str, str]  # modules of those of bdm
    # Classes that have been defined, which add themselves
    registered: dict[str, type[Any]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all kinds, those of bdm first."""
        return tuple(dict.fromkeys((*self.built_in, *installed(self.group), *self.registered)))

    def find(self, name: str) -> type[Any]:
        """Class of a name."""
        self.check(name)
        if name not in self.registered and name in self.built_in:
            import_module(self.built_in[name])
        elif name not in self.registered:
            for entry in entry_points(group=self.group, name=name):
                entry.load()
        return self.registered[name]

    def check(self, name: str) -> None:
        """Raise an InputError if there is none of a name, without an import of any."""
        if name not in self.names:
            raise InputError(
                f"There is no {self.what} {name!r} in this installation, which has {', '.join(self.names)}; "
                "name one of these, or install or import the package that defines it."
            )


@cache
def installed(group: str) -> tuple[str, ...]:
    """Names of the entry points of a group; found once, as a search takes some milliseconds."""
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
