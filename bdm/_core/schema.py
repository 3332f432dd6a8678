"""Settings: types, defaults, bounds, help texts and places in the configuration.

Pydantic checks the values. It is imported on first use, as the help of commands does not need it.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, cached_property, wraps
from importlib import import_module
from importlib.metadata import entry_points
from inspect import cleandoc
from numbers import Number
from textwrap import fill, indent
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, ParamSpec, Self, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from bdm._core.errors import InputError, error_prefix
from bdm._core.validation import rejection, unknown_setting

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

BOUNDS = {Ge: ("minimum", "ge"), Gt: ("exclusiveMinimum", "gt"), Le: ("maximum", "le"), Lt: ("exclusiveMaximum", "lt")}


@dataclass(frozen=True)
class Unset:
    """Meaning of None, in words."""

    meaning: str


@dataclass(frozen=True)
class Key:
    """Key of a setting in the configuration."""

    section: str | None = None  # None: the section of the setting's stage
    # Where the workflow, which always evaluates, has other bounds or another default than the command
    bounds: tuple[Ge | Gt | Le | Lt, ...] = ()
    default: float | None = None
    words: tuple[str, ...] = ()  # values of the key of a file that name no file


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


class Registered:
    """Base of the classes of a family, which register by ``class MyClass(Base, name="mine")``."""

    name: ClassVar[str]
    kinds: ClassVar[Kinds]

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = name
            cls.kinds.registered[name] = cls


@cache
def installed(group: str) -> tuple[str, ...]:
    """Return the names of entry points; cached, as a search takes milliseconds."""
    return tuple(entry.name for entry in entry_points(group=group))


@dataclass(frozen=True)
class Setting:
    """A setting: name, annotated type and default (their class, for nested settings).

    Notes in the annotation, ``Annotated[type, *notes]``, have its help text (a string), bounds, the meaning of None
    (:class:`Unset`), its :class:`Key`, and the :class:`Kinds` that its value names.
    """

    name: str
    annotation: Any
    default: Any = None

    @property
    def public_name(self) -> str:
        """Name in files and messages, such as ``from`` for the attribute ``from_``."""
        return self.name.rstrip("_")

    @property
    def notes(self) -> tuple[Any, ...]:
        """Notes in the annotation."""
        return getattr(self.annotation, "__metadata__", ())

    def note(self, kind: type) -> Any:
        """Return the first note of class ``kind``, or None."""
        return next((note for note in self.notes if isinstance(note, kind)), None)

    @property
    def help(self) -> str | None:
        """Help text."""
        text: str | None = self.note(str)
        return text

    @property
    def unset(self) -> str | None:
        """Meaning of None."""
        unset: Unset | None = self.note(Unset)
        return None if unset is None else unset.meaning

    @property
    def key(self) -> Key:
        """Place in the configuration."""
        return self.note(Key) or Key()

    @property
    def types(self) -> tuple[Any, ...]:
        """Types of the values, without their parameters."""
        return tuple(get_origin(kind) or kind for kind in alternatives(self.annotation))

    @property
    def nested(self) -> "type[StageSettings] | None":
        """Class of nested settings or list items; None for plain values."""
        inner = (kind for outer in alternatives(self.annotation) for kind in (outer, *get_args(outer)))
        return next((kind for kind in inner if inspect.isclass(kind) and issubclass(kind, StageSettings)), None)

    @property
    def bounds(self) -> dict[str, Any]:
        """Bounds of a number, by JSON schema keyword."""
        bounds = ((*BOUNDS[type(note)], note) for note in self.notes if type(note) in BOUNDS)
        return {keyword: getattr(note, attribute) for keyword, attribute, note in bounds}

    @cached_property
    def adapter(self) -> "TypeAdapter[Any]":
        """Pydantic adapter that checks the values."""
        from pydantic import ConfigDict, TypeAdapter

        config = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)
        return TypeAdapter(with_strict_numbers(self.annotation), config=config)

    def checked(self, value: Any) -> Any:
        """Check a value, and convert it to the type of the setting."""
        value = to_python(value)
        # A single value stands for a list of one
        if tuple in self.types and (
            isinstance(value, int | float) or (isinstance(value, str) and str not in self.types)
        ):
            value = (value,)
        if self.nested is None or value is None:
            return self._checked_plain(value)
        if tuple not in self.types:
            return self.nested.from_content(value, self.public_name)
        if not isinstance(value, list | tuple):
            raise InputError(f"{self.public_name} is {value!r}, but must be a list.")
        names = [item.get("name") if isinstance(item, dict) else None for item in value]
        return tuple(
            self.nested.from_content(item, f"{self.public_name}.{name or number}")
            for number, (name, item) in enumerate(zip(names, value, strict=True), 1)
        )

    def _checked_plain(self, value: Any) -> Any:
        from pydantic import ValidationError

        try:
            checked = self.adapter.validate_python(value)
        except ValidationError as error:
            raise InputError(self._rejection(value, error)) from None
        if (kinds := self.note(Kinds)) is not None:
            kinds.check(checked)
        return checked

    def _rejection(self, value: Any, error: "ValidationError") -> str:
        """Message for an invalid value, or an invalid item in it."""
        name, schema = self.public_name, self.adapter.json_schema()
        fault = max(error.errors(), key=lambda fault: len(fault["loc"]))  # the innermost
        keywords = ("additionalProperties", "items")
        item_schema = next(
            (part[word] for part in [schema, *schema.get("anyOf", ())] for word in keywords if word in part), None
        )
        if item_schema is not None and fault["input"] is not value and isinstance(value, dict | list | tuple):
            name = f"{name}.{fault['loc'][-1]}" if isinstance(value, dict) else name
            value, schema = fault["input"], item_schema
        out_of_bounds = not {"ge", "gt", "le", "lt", "min_length"}.isdisjoint(fault.get("ctx", {}))
        return rejection(name, value, schema, out_of_bounds=out_of_bounds)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """List the types in a union, without annotations."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for member in get_args(annotation) for kind in alternatives(member))
    return (annotation,)


def with_strict_numbers(annotation: Any) -> Any:
    """Reject strings, booleans and 3.0 where an integer is expected; pydantic coerces them."""
    from pydantic import Strict

    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (int, float):
        return Annotated[annotation, Strict()]
    if origin is Annotated:
        return Annotated[(with_strict_numbers(arguments[0]), *annotation.__metadata__)]
    if origin in (Union, UnionType):
        return Union[tuple(map(with_strict_numbers, arguments))]  # noqa: UP007, types known at run time only
    return origin[tuple(map(with_strict_numbers, arguments))] if origin in (tuple, dict) else annotation


def to_python(value: Any) -> Any:
    """Convert NumPy scalars to Python numbers, and tuples to lists."""
    if isinstance(value, list | tuple):
        return [to_python(item) for item in value]
    if isinstance(value, dict):
        return {key: to_python(item) for key, item in value.items()}
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def reject_unknown(names: Iterable[str], known: Sequence[str]) -> None:
    """Reject names of unknown settings."""
    for name in names:
        if name not in known:
            raise InputError(unknown_setting(name, known))


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Settings of a stage, checked on construction."""

    def __init_subclass__(cls) -> None:
        """Add the help text of each setting to the docstring."""
        text = cleandoc(cls.__doc__ or "")
        helps = {name: Setting(name, kind).help for name, kind in inspect.get_annotations(cls).items()}
        described = [f"{name}\n    {help.replace('`', '``')}" for name, help in helps.items() if help]
        if described and "Attributes\n---" not in text:
            text += "\n\nAttributes\n----------"
        cls.__doc__ = "\n".join([text, *described])

    def __new__(cls, *_: Any, **values: Any) -> Self:
        """Reject unknown settings, and missing ones without a default."""
        reject_unknown((name.rstrip("_") for name in values), [setting.public_name for setting in settings_of(cls)])
        for setting in settings_of(cls):
            if setting.default is MISSING and setting.name not in values:
                raise InputError(f"there is no {setting.public_name}, which is required.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for setting in settings_of(type(self)):
            object.__setattr__(self, setting.name, setting.checked(getattr(self, setting.name)))

    @classmethod
    def from_content(cls, content: Any, place: str = "") -> Self:
        """Construct settings from file content; empty keys keep their defaults."""
        if isinstance(content, cls):
            return content
        if place:
            with error_prefix(place):
                return cls.from_content(content)
        content = {} if content is None else cls.expanded(content)
        if not isinstance(content, dict):
            raise InputError(f"there is {content!r}, but there must be keys with values.")
        names = {setting.public_name: setting.name for setting in settings_of(cls)}
        return cls(**{names.get(str(key), str(key)): value for key, value in content.items() if value is not None})

    @classmethod
    def expanded(cls, content: Any) -> Any:
        """Expand shorthand content; stages with a shorthand override this."""
        return content


def settings_of(stage: type[StageSettings]) -> tuple[Setting, ...]:
    """List the settings of a stage."""
    hashable: Any = stage  # a class is hashable, but mypy looks at the method __hash__ that it defines
    return _settings_of(hashable)


@cache
def _settings_of(stage: type[StageSettings]) -> tuple[Setting, ...]:
    # The default factory of nested settings is their class
    return tuple(
        Setting(entry.name, entry.type, entry.default if entry.default_factory is MISSING else entry.default_factory)
        for entry in fields(stage)
    )


def leaves_of(stage: type[StageSettings]) -> Iterator[tuple[tuple[str, ...], Setting]]:
    """Yield the path of each setting that is not nested, and the setting."""
    for setting in settings_of(stage):
        if setting.nested is None:
            yield (setting.name,), setting
        else:
            yield from (((setting.name, *path), leaf) for path, leaf in leaves_of(setting.nested))


# ---- public functions

ARGUMENTS = {  # descriptions of arguments that public functions share
    "adata": "Real or simulated cells, with raw counts.",
    "adata_test": "Cells that the model was not fitted on, with raw counts. By default the test cells of the split, a "
    "fraction ``settings.prepare.test`` of the data.",
    "counts": "Slot of the raw counts, see :func:`bdm.data.counts.find_counts`.",
    "device": "``cpu``, ``cuda`` or ``mps``; ``auto`` is ``cuda`` if available, else ``cpu``.",
    "keys": "Columns of ``obs`` and slot of counts in the given cells; by default as in the data of the fit.",
    "n_threads": "Number of threads; all available ones if None. Results do not depend on it.",
    "seed": "Seed of all random numbers.",
    "settings": "Columns of ``obs``, and other settings.",
}


def helps_of(*stages: type[StageSettings]) -> dict[str, str]:
    """Return the help texts of settings, for arguments of the same names."""
    settings = [setting for stage in stages for _, setting in leaves_of(stage)]
    return {setting.name: setting.help.replace("`", "``") for setting in settings if setting.help}


def document(function: Callable[..., Any], shared: Mapping[str, str] = ARGUMENTS, *, returns: str = "") -> None:
    """Complete the docstring of a function: describe all its arguments, by ``shared`` unless the docstring does."""
    text, *sections = re.split(r"\n\n(?=\w+\n---)", cleandoc(str(function.__doc__)))
    own = sections.pop(0) if sections and sections[0].startswith("Parameters\n") else ""
    entries = {entry.partition("\n")[0]: entry for entry in re.split(r"\n(?=\w)", own)[1:]}
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    arguments = [entries.get(name) or f"{name}\n{indent(fill(shared[name], 110), '    ')}" for name in names]
    function.__doc__ = "\n\n".join(
        [
            text,
            *(["\n".join(["Parameters\n----------", *arguments])] if arguments else []),
            *([f"Returns\n-------\n{returns}"] if returns else []),
            *sections,
        ]
    )


def checked(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Decorate a public function with :func:`checking`, and :func:`document` it."""
    if function.__doc__:
        document(function)

    @wraps(function)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Returned:
        with checking(function, arguments, options):
            return function(*arguments, **options)

    return run


@contextmanager
def checking(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    options: Mapping[str, Any],
    *,
    model: Callable[..., Any] | None = None,
) -> Iterator[None]:
    """Reject arguments of the wrong class, and qualify settings in errors.

    In an InputError, ``counts=`` becomes ``settings.prepare.counts=`` if ``function`` accepts this setting in its
    argument ``settings``. Settings that ``function`` lacks are qualified as arguments of ``model``, the function that
    made the model.
    """
    for name, value in (*zip(inspect.signature(function).parameters, arguments, strict=False), *options.items()):
        kinds = own_classes(function, name)
        if kinds and not isinstance(value, kinds):
            raise InputError(f"`{name}=` must be of class {kinds[0].__name__}, not {type(value).__name__}.")
    try:
        yield
    except InputError as error:
        # The places of `function` replace the places of `model`
        places = {name: place for each in (model, function) if each for name, place in places_of_settings(each)}
        error.args = (re.sub(r"`(\w+)=", lambda match: f"`{places.get(match[1], '')}{match[1]}=", error.args[0]),)
        raise


def own_classes(function: Callable[..., Any], parameter: str) -> tuple[type, ...]:
    """Return the classes that a parameter accepts; () unless these are bdm's (or None)."""
    argument = inspect.signature(function).parameters.get(parameter)
    kind = (
        None
        if argument is None
        else vars(sys.modules[function.__module__]).get(argument.annotation, argument.annotation)
    )
    kinds = tuple(NoneType if each is None else each for each in alternatives(kind))
    own = [each for each in kinds if inspect.isclass(each) and each.__module__.startswith("bdm.")]
    return kinds if own and {*kinds} <= {*own, NoneType} else ()


def places_of_settings(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Yield settings with their prefix (``settings.prepare.``); arguments have an empty prefix."""
    names = inspect.signature(function).parameters
    for name in names:
        for stage in own_classes(function, name):
            if issubclass(stage, StageSettings):
                yield from ((path[-1], ".".join((name, *path[:-1], ""))) for path, _ in leaves_of(stage))
    yield from dict.fromkeys(names, "").items()
