"""Decorator of methods that compute: arguments that they have, a valid seed, and the model's number of threads."""

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from bdm.schema import reject_unknown
from bdm.settings import PrepareSettings
from bdm.threads import using_threads


class WithThreads(Protocol):
    """What has a number of threads to compute with; all that the process may use, if None."""

    n_threads: int | None


Model = TypeVar("Model", bound=WithThreads)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def computing(
    method: Callable[Concatenate[Model, Arguments], Result],
) -> Callable[Concatenate[Model, Arguments], Result]:
    """Let a method compute with the model's number of threads, and reject arguments that it does not have."""
    known = [name for name in inspect.signature(method).parameters if name != "self"]

    def run(self: Model, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        reject_unknown(options, known)
        if (seed := options.get("seed")) is not None:
            PrepareSettings.check(seed=seed)
        with using_threads(self.n_threads):
            return method(self, *arguments, **options)

    functools.update_wrapper(run, method)
    return run
