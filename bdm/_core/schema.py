"""What a setting is: type, default, bounds, help, and place in the configuration; and the base of all settings.

Pydantic checks the values; it is imported when the first value is checked, as the help of commands needs none.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from functools import cache, cached_property, wraps
from numbers import Number
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, ParamSpec, Self, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from bdm._core.errors import InputError, at
from bdm._core.kinds import Kinds
from bdm._core.validation import rejection, unknown_setting

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

BOUNDS = {Ge: ("minimum", "ge"), Gt: ("exclusiveMinimum", "gt"), Le: ("maximum", "le"), Lt: ("exclusiveMaximum", "lt")}


@dataclass(frozen=True)
class Unset:
    """What None stands for, in words."""

    meaning: str


@dataclass(frozen=True)
class Key:
    """Where the configuration has a setting."""

    section: str | None = None  # None for the section of the setting's stage
    # bounds, default: where the workflow allows less than the command, and has another default, as it always evaluates
    bounds: tuple[Ge | Gt | Le | Lt, ...] = ()
    default: float | None = None
    absent: bool = False  # the configuration has no such key


@dataclass(frozen=True)
class Setting:
    """A setting by its name: type with what is annotated with it, and default (the class, for nested settings)."""

    name: str
    annotation: Any
    default: Any = None

    @property
    def notes(self) -> tuple[Any, ...]:
        """What is annotated with the type."""
        return getattr(self.annotation, "__metadata__", ())

    def note(self, kind: type) -> Any:
        """Return the first note of a kind; None if there is none."""
        return next((note for note in self.notes if isinstance(note, kind)), None)

    @property
    def help(self) -> str | None:
        """What the setting means."""
        found: str | None = self.note(str)
        return found

    @property
    def unset(self) -> str | None:
        """What None stands for."""
        unset: Unset | None = self.note(Unset)
        return None if unset is None else unset.meaning

    @property
    def key(self) -> Key:
        """Where the configuration has it."""
        return self.note(Key) or Key()

    @property
    def types(self) -> tuple[Any, ...]:
        """Types of its values."""
        return tuple(get_origin(kind) or kind for kind in alternatives(self.annotation))

    @property
    def nested(self) -> "type[StageSettings] | None":
        """Class of settings that a value is, or that the items of a list are; None where values are plain."""
        inner = (kind for outer in alternatives(self.annotation) for kind in (outer, *get_args(outer)))
        return next((kind for kind in inner if inspect.isclass(kind) and issubclass(kind, StageSettings)), None)

    @property
    def bounds(self) -> dict[str, Any]:
        """Bounds of a number, as JSON schema has them."""
        found = ((*BOUNDS[type(note)], note) for note in self.notes if type(note) in BOUNDS)
        return {keyword: getattr(note, attribute) for keyword, attribute, note in found}

    @cached_property
    def adapter(self) -> "TypeAdapter[Any]":
        """What checks the values."""
        from pydantic import ConfigDict, TypeAdapter

        config = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)
        return TypeAdapter(with_strict_numbers(self.annotation), config=config)

    def checked(self, value: Any) -> Any:
        """Give a value in the type of the setting, such as a tuple in place of a list."""
        from pydantic import ValidationError

        key, value = self.name.rstrip("_"), of_python(value)
        if tuple in self.types and (
            isinstance(value, int | float) or (isinstance(value, str) and str not in self.types)
        ):
            value = (value,)
        if self.nested is None or value is None:
            try:
                checked = self.adapter.validate_python(value)
            except ValidationError as error:
                raise InputError(self.rejection(key, value, error)) from None
            if (kinds := self.note(Kinds)) is not None:
                kinds.check(checked)
            return checked
        if tuple not in self.types:
            return self.nested.of(value, key)
        if not isinstance(value, list | tuple):
            raise InputError(f"{key} is {value!r}, but must be a list.")
        return tuple(self.nested.of(item, place_of(key, number, item)) for number, item in enumerate(value, 1))

    def rejection(self, key: str, value: Any, error: "ValidationError") -> str:
        """Phrase why a value, or an item of it, is invalid."""
        schema, fault = self.adapter.json_schema(), max(error.errors(), key=lambda fault: len(fault["loc"]))
        of_item = next((one[kind] for one in [schema, *schema.get("anyOf", ())] for kind in ITEMS if kind in one), None)
        if of_item is not None and fault["input"] is not value and isinstance(value, dict | list | tuple):
            key, value, schema = (
                f"{key}.{fault['loc'][-1]}" if isinstance(value, dict) else key,
                fault["input"],
                of_item,
            )
        out_of_bounds = not {"ge", "gt", "le", "lt", "min_length"}.isdisjoint(fault.get("ctx", {}))
        return rejection(key, value, schema, out_of_bounds=out_of_bounds)


ITEMS = ("additionalProperties", "items")


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """List the types that a value may be of, without notes."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for one in get_args(annotation) for kind in alternatives(one))
    return (annotation,)


def with_strict_numbers(annotation: Any) -> Any:
    """Take texts, truth values and 3.0 for no whole numbers, wherever these are in a type, which pydantic does."""
    from pydantic import Strict

    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (int, float):
        return Annotated[annotation, Strict()]
    if origin is Annotated:
        return Annotated[(with_strict_numbers(arguments[0]), *annotation.__metadata__)]
    if origin in (Union, UnionType):
        return Union[tuple(map(with_strict_numbers, arguments))]  # noqa: UP007, of types that are not known here
    return origin[tuple(map(with_strict_numbers, arguments))] if origin in (tuple, dict) else annotation


def of_python(value: Any) -> Any:
    """Give the numbers of NumPy in a value as those of Python."""
    if isinstance(value, list | tuple):
        return [of_python(item) for item in value]
    if isinstance(value, dict):
        return {key: of_python(item) for key, item in value.items()}
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def place_of(key: str, number: int, item: Any) -> str:
    """Name a part of a list by its name, or by its number, counted from 1."""
    name = item.get("name") if isinstance(item, dict) else None
    return f"{key}.{name or number}"


def reject_unknown(names: Iterable[str], known: Sequence[str]) -> None:
    """Raise an InputError if there is no setting of a name."""
    for name in names:
        if name not in known:
            raise InputError(unknown_setting(name, known))


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Settings of a stage, which are checked as they are made."""

    section: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """Add to the docstring what each setting means."""
        text = inspect.cleandoc(cls.__doc__ or "")
        helps = {name: Setting(name, kind).help for name, kind in inspect.get_annotations(cls).items()}
        described = [f"{name}\n    {help.replace('`', '``')}" for name, help in helps.items() if help]
        if described and "Attributes\n---" not in text:
            text += "\n\nAttributes\n----------"
        cls.__doc__ = "\n".join([text, *described])

    def __new__(cls, *_: Any, **values: Any) -> Self:
        """Make an object, if all names are names of settings, and none is missing."""
        reject_unknown((name.rstrip("_") for name in values), [each.name.rstrip("_") for each in settings_of(cls)])
        for setting in settings_of(cls):
            if setting.default is MISSING and setting.name not in values:
                raise InputError(f"there is no {setting.name.rstrip('_')}, which is required.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for setting in settings_of(type(self)):
            object.__setattr__(self, setting.name, setting.checked(getattr(self, setting.name)))

    @classmethod
    def check(cls, **values: Any) -> None:
        """Raise an InputError if a setting cannot have a value."""
        for setting in settings_of(cls):
            if setting.name in values:
                setting.checked(values[setting.name])

    @classmethod
    def of(cls, content: Any, place: str = "") -> Self:
        """Read settings from the content of a file, in which an empty key is none."""
        if isinstance(content, cls):
            return content
        if place:
            with at(place):
                return cls.of(content)
        content = {} if content is None else cls.expanded(content)
        if not isinstance(content, dict):
            raise InputError(f"there is {content!r}, but there must be keys with values.")
        fields_of = {setting.name.rstrip("_"): setting.name for setting in settings_of(cls)}
        return cls(**{fields_of.get(str(key), str(key)): value for key, value in content.items() if value is not None})

    @classmethod
    def expanded(cls, content: Any) -> Any:
        """Give the keys and values that a shorter content stands for; a stage may have none."""
        return content

    def files(self) -> list[Path]:
        """List the files that the settings name."""
        return [path for setting in settings_of(type(self)) for path in files_in(setting, getattr(self, setting.name))]


def files_in(setting: Setting, value: Any) -> list[Path]:
    """List the files that the value of a setting names; a text is one where there is such a file."""
    if setting.nested is not None:
        items = value if isinstance(value, tuple) else (value,)
        return [path for item in items if isinstance(item, StageSettings) for path in item.files()]
    is_path = Path in setting.types and isinstance(value, str | Path)
    return [Path(value)] if is_path and Path(value).is_file() else []


def settings_of(model: type[StageSettings]) -> tuple[Setting, ...]:
    """List the settings of a stage."""
    key: Any = model  # mypy takes no class with a __hash__ for hashable
    return _settings_of(key)


@cache
def _settings_of(model: type[StageSettings]) -> tuple[Setting, ...]:
    # The factory of nested settings is their class
    return tuple(
        Setting(entry.name, entry.type, entry.default if entry.default_factory is MISSING else entry.default_factory)
        for entry in fields(model)
    )


def leaves_of(model: type[StageSettings]) -> Iterator[tuple[tuple[str, ...], str, Setting]]:
    """Give the settings that hold no others, after the fields down to them and the section of their stage."""
    for setting in settings_of(model):
        if setting.nested is not None:
            yield from (((setting.name, *path), stage, leaf) for path, stage, leaf in leaves_of(setting.nested))
        else:
            yield (setting.name,), model.section, setting


def described_settings(model: type[StageSettings]) -> Iterator[Setting]:
    """Give the settings of a stage that have a help text: options of its command, and keys of the configuration."""
    return (setting for setting in settings_of(model) if setting.help)


# ---- public functions


def checked(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Check the arguments of a public function by :func:`checking`."""

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
    """Reject settings and results of other classes than a function takes, and name settings as they are passed to it.

    In an InputError, ``counts=`` becomes ``settings.prepare.counts=`` if the argument ``settings`` of ``function`` has
    this setting, or else that of ``model``, the function that made the model.
    """
    for name, value in (*zip(inspect.signature(function).parameters, arguments, strict=False), *options.items()):
        kinds = own_classes(function, name)
        if kinds and not isinstance(value, kinds):
            raise InputError(f"`{name}=` must be of class {kinds[0].__name__}, not {type(value).__name__}.")
    try:
        yield
    except InputError as error:
        places = {name: place for each in (model, function) if each for name, place in places_of_settings(each)}
        error.args = (re.sub(r"`(\w+)=", lambda found: f"`{places.get(found[1], '')}{found[1]}=", error.args[0]),)
        raise


def own_classes(function: Callable[..., Any], parameter: str) -> tuple[type, ...]:
    """Classes that a parameter may be of; none if any of them is not of bdm."""
    found = inspect.signature(function).parameters.get(parameter)
    kind = None if found is None else vars(sys.modules[function.__module__]).get(found.annotation, found.annotation)
    kinds = tuple(NoneType if each is None else each for each in alternatives(kind))
    own = [each for each in kinds if inspect.isclass(each) and each.__module__.startswith("bdm.")]
    return kinds if own and {*kinds} <= {*own, NoneType} else ()


def places_of_settings(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Give the settings that a function takes with where: ``settings.prepare.``, or an empty text for arguments."""
    names = inspect.signature(function).parameters
    for name in names:
        for stage in own_classes(function, name):
            if issubclass(stage, StageSettings):
                yield from ((path[-1], ".".join((name, *path[:-1], ""))) for path, _, _ in leaves_of(stage))
    yield from dict.fromkeys(names, "").items()
