"""Decorator of methods that compute: arguments that they have, a valid seed, and the model's number of threads."""

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from bdm._core.parallel import using_threads
from bdm.schema import reject_unknown
from bdm.settings import PrepareSettings


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
    parameters = inspect.signature(method).parameters
    known = [name for name in parameters if name != "self"]
    may_be_none = "seed" in parameters and parameters["seed"].default is None

    def run(self: Model, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        reject_unknown(options, known)
        if "seed" in options and not (options["seed"] is None and may_be_none):
            PrepareSettings.check(seed=options["seed"])
        with using_threads(self.n_threads):
            return method(self, *arguments, **options)

    functools.update_wrapper(run, method)
    return run
