"""Shared parts of commands: options from settings, common arguments, messages and summaries."""

import functools
import inspect
import logging
import platform
import resource
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from annotated_types import Ge

from bdm import __version__
from bdm._core.errors import OPTIONS_FOR_NONE, InputError, Interrupted, in_interface
from bdm._core.schema import Setting, StageSettings, Unset, alternatives, leaves_of, settings_of
from bdm._core.validation import bounds_in_words

logger = logging.getLogger("bdm")
KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True)
class Summary:
    """Results of a command, printed as a table."""

    facts: dict[str, str] = field(default_factory=dict)  # rows of the table, by their first word
    then: tuple[Path | str, ...] = ()  # words of a suggested next command

    def table(self, outputs: Mapping[Path | str, Path], *, seconds: float) -> str:
        """Format the table, with ``outputs`` by their scratch paths."""
        from bdm._core.progress import duration

        rows = {"wrote": ", ".join(map(str, outputs.values()))}
        rows |= {name: with_output_paths(text, outputs) for name, text in self.facts.items()}
        rows["took"] = f"{duration(seconds)}, {peak_memory() / 1e9:.1f} GB of memory at most"
        if self.then:
            rows["next"] = shlex.join(str(outputs.get(word, word)) for word in self.then)
        width = max(map(len, rows))
        indent = "\n" + " " * (width + 2)
        return "\n".join(f"{name:<{width}}  {indent.join(value.splitlines())}" for name, value in rows.items())


def reading_alike(labels: Path | None, counts: str) -> tuple[Path | str, ...]:
    """Return options that make the next command read the same cells."""
    return *(() if labels is None else ("--labels", labels)), *(() if counts == "auto" else ("--counts", counts))


def as_command(function: Callable[..., Summary | None], *, computes: bool = False) -> Callable[..., None]:
    """Turn a function into a command.

    The command has an option for each setting of the function, and shared options; ``computes`` adds ``--threads``. The
    function is called with scratch paths as outputs. They replace the outputs when it returns, and are removed if it
    fails. Its summary is printed.
    """
    shared: dict[str, Any] = {"force": Force, "quiet": Quiet, "verbose": Verbose}
    if computes:
        shared = {"threads": Threads, **shared}
    signature = inspect.signature(function)
    added = [inspect.Parameter(name, KEYWORD, default=None, annotation=kind) for name, kind in shared.items()]
    signature = signature.replace(parameters=[*signature.parameters.values(), *added])
    options = options_of(signature)

    @functools.wraps(function)
    def run(**values: Any) -> None:
        start = time.monotonic()
        arguments = arguments_of(signature, options, values)
        quiet, verbose, threads = (arguments.pop(name, None) for name in ("quiet", "verbose", "threads"))
        outputs = [each.setting for each in options if Output in each.setting.notes and arguments[each.setting.name]]
        check_outputs(outputs, arguments, force=arguments.pop("force"))
        models = [each.setting.name for each in options if Model in each.setting.notes and arguments[each.setting.name]]
        with ExitStack() as context:
            context.enter_context(show_messages(quiet=quiet, verbose=verbose))
            if computes:
                from bdm._core.parallel import using_threads

                context.enter_context(using_threads(threads))
            if verbose:
                logger.debug("%s", versions())
            for name, value in values.items():
                logger.debug("%s: %s", name, value)
            if models:
                from bdm.report.hub import local_folder

                arguments |= {name: local_folder(arguments[name]) for name in models}
            try:
                with scratch_paths(outputs, arguments) as scratch:
                    summary = function(**arguments | scratch)
            except KeyboardInterrupt as stop:
                raise Interrupted("Stopped, and wrote nothing; the same command starts again.") from stop
            if summary is not None:
                table = summary.table(by_scratch(scratch, arguments), seconds=time.monotonic() - start)
                logger.info("%s", table)

    vars(run)["__signature__"] = signature.replace(parameters=[option.parameter for option in options])
    run.__annotations__ = {option.parameter.name: option.parameter.annotation for option in options}
    return run


# ---- messages


class InterfaceFormatter(logging.Formatter):
    """Log formatter that names settings as options or keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Rewrite the Python arguments in a message."""
        return in_interface(super().format(record))


@contextmanager
def show_messages(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Print messages to stderr; ``quiet`` and ``verbose`` cancel each other."""
    level = {(True, False): logging.WARNING, (False, True): logging.DEBUG}.get((quiet, verbose), logging.INFO)
    form = "%(asctime)s %(message)s" if level == logging.DEBUG else "%(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(InterfaceFormatter(form))
    logging.basicConfig(handlers=[handler])
    # anndata causes this warning by changing columns of its own views
    warnings.filterwarnings("ignore", message=r"\s*A value is trying to be set on a copy", module="anndata")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def versions() -> str:
    """Describe the versions of bdm, packages and Python, the platform and threads."""
    from bdm._core.files import package_versions
    from bdm._core.parallel import chosen_threads

    packages = " ".join(f"{name} {number}" for name, number in package_versions().items())
    machine = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    return f"bdm {__version__}, {packages}, {machine}, {chosen_threads()} threads"


def peak_memory() -> int:
    """Return the peak memory in bytes of this process or any child."""
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most if sys.platform == "darwin" else most * 1024


# ---- from settings to options


@dataclass(frozen=True)
class Short:
    """One-letter form of an option."""

    flag: str


@dataclass(frozen=True)
class Option:
    """A typer parameter of a command, and the setting that it sets."""

    parameter: inspect.Parameter
    path: tuple[str, ...]  # argument of the command, then the fields down to a nested setting
    setting: Setting
    unsets: bool = False  # whether it is a switch that sets None


def options_of(signature: inspect.Signature) -> list[Option]:
    """Return the typer parameters of a command, one for each setting.

    Arguments are annotated with a type and a help text, like settings. Keyword-only arguments become options. An
    argument of type :class:`bdm._core.schema.StageSettings` becomes one option for each setting with a help text,
    unless the command has an argument of the same name. If two stages have settings of the same name, their options
    begin with the name of the stage.
    """
    options = []
    for name, parameter in signature.parameters.items():
        model = parameter.annotation
        if inspect.isclass(model) and issubclass(model, StageSettings):
            known = signature.parameters
            leaves = [leaf for leaf in leaves_of(model) if leaf[-1].help and leaf[-1].name not in known]
            number = Counter(setting.name for _, setting in leaves)
            for path, setting in leaves:
                argument = setting.name if number[setting.name] == 1 else "_".join(path)
                panel = f"Settings of {path[0]}" if len(path) > 1 else None
                options.append(Option(as_option(argument, setting, panel=panel), (name, *path), setting))
                if setting.default is not None and setting.unset and setting.name in OPTIONS_FOR_NONE:
                    options.append(Option(as_switch_to_none(setting, panel=panel), (name, *path), setting, unsets=True))
            continue
        setting = Setting(name, model, parameter.default)
        options.append(Option(as_option(name, setting, kind=parameter.kind), (name,), setting))
    return options


def as_option(name: str, setting: Setting, *, panel: str | None = None, kind: Any = KEYWORD) -> inspect.Parameter:
    """Return a typer option or argument; the setting validates numbers, not typer."""
    type_, default, text = setting.types[0], setting.default, (setting.help or "").removesuffix(".")
    shown_default = setting.unset if setting.unset and not default else True  # the meaning of None, or the value
    style: dict[str, Any] = {"show_default": shown_default, "rich_help_panel": panel}
    if type_ is bool:
        default, style["show_default"] = default is True, False
    elif type_ is tuple:
        items = {item for type_ in alternatives(setting.annotation) for item in get_args(type_)}
        type_ = list[Path] if Path in items else list[str]
        default, text = (None, f"{text}; may be repeated") if kind == KEYWORD else (default, text)
    elif type_ in (int, float):
        bounds = bounds_in_words(setting.bounds)
        type_, style["metavar"], text = str, f"<{type_.__name__}>", f"{text} ({bounds})" if bounds else text
    elif type_ is not Path:
        type_ = str
    if kind == KEYWORD:
        short = setting.note(Short)
        flags = [f"--{name.strip('_').replace('_', '-')}", *([short.flag] if short else [])]
        option = typer.Option(*flags, help=f"{text}.", **style)
    else:
        option = typer.Argument(help=f"{text}.", show_default=False)
    annotation: Any = Annotated[type_ | None if default is None else type_, option]
    return inspect.Parameter(name, KEYWORD, default=default, annotation=annotation)


def as_switch_to_none(setting: Setting, *, panel: str | None = None) -> inspect.Parameter:
    """Return a switch that sets to None a setting with another default."""
    name, meaning = OPTIONS_FOR_NONE[setting.name], setting.unset or ""
    text = f"{meaning[:1].upper()}{meaning[1:]}."
    annotation: Any = Annotated[bool, typer.Option(f"--{name}", help=text, show_default=False, rich_help_panel=panel)]
    return inspect.Parameter(name.replace("-", "_"), KEYWORD, default=False, annotation=annotation)


# ---- from options to settings


def arguments_of(signature: inspect.Signature, options: list[Option], values: dict[str, Any]) -> dict[str, Any]:
    """Collect the arguments of a command from its options, and check them."""
    by_path: dict[tuple[str, ...], Any] = {}
    for option in options:
        value, setting = values[option.parameter.name], option.setting
        if not {int, float}.isdisjoint(setting.types):
            value = number_in(value)
        if option.unsets:
            if value and by_path[option.path] != setting.default:
                raise InputError(
                    f"`{setting.name}=` and `{setting.name}=None` contradict each other; give one of them."
                )
            value = None if value else by_path[option.path]
        elif tuple in setting.types and value in (None, []):
            value = setting.default
        elif len(option.path) == 1:  # settings of a stage are checked on construction
            value = setting.checked(value)
        by_path[option.path] = value
    return {
        name: argument_at((name,), parameter.annotation, by_path) for name, parameter in signature.parameters.items()
    }


def argument_at(path: tuple[str, ...], kind: Any, by_path: dict[tuple[str, ...], Any]) -> Any:
    """Return the argument of a class ``kind`` at a path; stages are constructed from the values below it."""
    if not (inspect.isclass(kind) and issubclass(kind, StageSettings)):
        return by_path[path]
    settings = [each for each in settings_of(kind) if each.nested or (*path, each.name) in by_path]
    return kind(**{each.name: argument_at((*path, each.name), each.nested, by_path) for each in settings})


def number_in(text: Any) -> Any:
    """Parse a number; return any other value unchanged."""
    for kind in (int, float) if isinstance(text, str) else ():
        with suppress(ValueError):
            return kind(text)
    return text


# ---- outputs


class Output:
    """Marks an argument that names a file or folder to write."""


@dataclass(frozen=True)
class Holding:
    """File that an existing folder must hold to be replaced by an output."""

    file: str


@dataclass(frozen=True)
class Ending:
    """Required ending of an output; files are read by their ending."""

    suffix: str
    alternative: str | None = None


def check_outputs(outputs: list[Setting], arguments: dict[str, Any], *, force: bool) -> None:
    """Reject outputs that exist (unless ``force``), overwrite inputs, or have a wrong ending."""
    from bdm._core.files import reject_existing

    paths = {output.name: arguments[output.name] for output in outputs}
    check_replaced([*paths.values()], paths_in([value for name, value in arguments.items() if name not in paths]))
    for output in outputs:
        path, ending = paths[output.name], output.note(Ending)
        if ending is not None and path.suffix.lower() not in (ending.suffix, ending.alternative):
            endings = " or ".join(filter(None, (ending.suffix, ending.alternative)))
            raise InputError(f"{path} does not end in {endings}; name an output that does.")
        if not force:
            reject_existing(path)


@contextmanager
def scratch_paths(outputs: list[Setting], arguments: dict[str, Any]) -> Iterator[dict[str, Path]]:
    """Yield scratch paths by argument, which replace the outputs on success.

    InputErrors name the outputs.
    """
    from bdm._core.files import atomic_write

    scratch: dict[str, Path] = {}
    try:
        with ExitStack() as files:
            for output in outputs:
                holding = output.note(Holding)
                path = atomic_write(arguments[output.name], folder_of=holding and holding.file)
                scratch[output.name] = files.enter_context(path)
            yield scratch
    except InputError as error:
        error.args = (with_output_paths(error.args[0], by_scratch(scratch, arguments)),)
        raise


def by_scratch(scratch: dict[str, Path], arguments: dict[str, Any]) -> dict[Path | str, Path]:
    """Return the outputs by their scratch paths."""
    return {path: arguments[name] for name, path in scratch.items()}


def with_output_paths(text: str, outputs: Mapping[Path | str, Path]) -> str:
    """Replace scratch paths in a text by the paths of their outputs."""
    for scratch, output in outputs.items():
        text = text.replace(str(scratch), str(output))
    return text


def check_replaced(outputs: list[Path], inputs: list[Path]) -> None:
    """Reject outputs that would overwrite or contain an input or another output."""
    number = Counter(out.resolve() for out in outputs)
    for out in outputs:
        place = out.resolve()
        if number[place] > 1:
            raise InputError(f"Two outputs would be written to {out}; name a file for each.")
        for path in (*inputs, *outputs):
            if path is not out and path.resolve() != place and path.resolve().is_relative_to(place):
                raise InputError(f"{path} is in {out}, which is replaced as a whole; name another output.")
        for path in inputs:
            is_in_input = place.parent == path.resolve() and place.is_file()
            if path.resolve() == place or (is_in_input and place.with_suffix(".safetensors").is_file()):
                raise InputError(f"{out} would be read and overwritten; name another output.")


def paths_in(value: Any) -> list[Path]:
    """List the paths in an argument, including lists, settings and ``NAME=FILE``."""
    if isinstance(value, StageSettings):
        names = [attrgetter(".".join(path))(value) for path, each in leaves_of(type(value)) if Path in each.types]
        return [Path(name) for name in names if isinstance(name, str | Path) and Path(name).is_file()]
    if isinstance(value, list | tuple):
        return [path for item in value for path in paths_in(item)]
    if isinstance(value, str) and "=" in value:
        return [Path(value.split("=", 1)[1])]
    return [value] if isinstance(value, Path) else []


# ---- shared arguments


class Model:
    """Marks an argument that names the folder of a model, or its address on Hugging Face Hub."""


OutFile = Annotated[Path, Output, "File to write."]
OutFolder = Annotated[Path, Output, "Folder to write."]
OutModel = Annotated[OutFolder, Holding("model.json")]
OutCells = Annotated[Path, Output, Ending(".h5ad"), "AnnData file (.h5ad) to write."]
OutGenerated = Annotated[
    Path,
    Output,
    Ending(".h5ad", ".h5mu"),
    "AnnData file (.h5ad) to write, or MuData (.h5mu), if the model was fitted to one.",
]

Prepared = Annotated[Path, "Cells made by bdm prepare (.h5ad)."]
AutoencoderFolder = Annotated[Path, "Folder made by bdm autoencoder."]
ModelFolder = Annotated[
    Path, Model, "Folder made by bdm train or bdm fit, or hf://USER/NAME, or hf://USER/NAME@REVISION."
]
Labels = Annotated[
    Path | None,
    "Table (`.csv`, `.tsv`) of columns to add to `obs`, with cell names in its first column.",
    Unset("no table"),
]
Tree = Annotated[
    Path | None,
    "Your own tree of cell types: nested lists in `.json`, or Newick in `.nwk`.",
    Unset("cell types are clustered"),
]
DesignFile = Annotated[Path, "Design of the experiment (`.yaml`)."]
AtValues = Annotated[
    tuple[str, ...], "Value of a covariate, as NAME=NUMBER, or values spread over a range, as NAME=LOW:HIGH."
]
Extrapolate = Annotated[bool, "Allow values of covariates that training cells do not have."]
Threads = Annotated[
    int | None,
    Ge(1),
    "Number of threads; results do not depend on it.",
    Unset("all that the process may use"),
]
Device = Annotated[str, "Device to compute on: auto, cpu, cuda or mps."]
Force = Annotated[bool, "Replace outputs that exist."]
Quiet = Annotated[bool, "Print only warnings and errors.", Short("-q")]
Verbose = Annotated[bool, "Print versions, options, the number of threads, and the time of each message.", Short("-v")]
