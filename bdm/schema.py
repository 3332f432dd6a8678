"""What a setting is: type, default, bounds, help, and place in the configuration; and the base of all settings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from inspect import isclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen

from bdm.errors import InputError
from bdm.validation import rejection, unknown_setting


@dataclass(frozen=True)
class Unset:
    """What None stands for, in words."""

    meaning: str


@dataclass(frozen=True)
class Key:
    """Where the configuration has a setting.

    Attributes
    ----------
    section
        None for the section of the setting's stage.
    bounds, default
        Where the workflow allows less than the command, and has another default, as it always evaluates.
    absent
        The configuration has no such key.
    """

    section: str | None = None
    bounds: tuple[Ge | Gt | Le | Lt, ...] = ()
    default: float | None = None
    absent: bool = False


@dataclass(frozen=True)
class Words:
    """Texts that a setting may have as its value, and the other types that it may be of."""

    texts: tuple[str, ...]
    others: tuple[type, ...] = (int,)


KINDS = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    Path: "string",
    tuple: "array",
    tuple[float, ...]: "numbers",
    dict: "object",
    NoneType: "null",
}
BOUNDS = {Ge: ("minimum", "ge"), Gt: ("exclusiveMinimum", "gt"), Le: ("maximum", "le"), Lt: ("exclusiveMaximum", "lt")}
BOUNDS |= {MinLen: ("minLength", "min_length")}


@dataclass(frozen=True)
class Setting:
    """A setting by its name: type, default, and what is annotated with them."""

    name: str
    type: Any
    default: Any
    annotations: tuple[Any, ...] = ()

    @classmethod
    def of(cls, name: str, annotation: Any, default: Any) -> Self:
        """Read a setting from the annotation of a field or an argument."""
        if get_origin(annotation) is not Annotated:
            return cls(name, annotation, default)
        type_, *annotations = get_args(annotation)
        return cls(name, type_, default, tuple(annotations))

    @property
    def help(self) -> str | None:
        """What the setting means."""
        return next((text for text in self.annotations if isinstance(text, str)), None)

    @property
    def unset(self) -> str | None:
        """What None stands for."""
        return next((unset.meaning for unset in self.annotations if isinstance(unset, Unset)), None)

    @property
    def key(self) -> Key:
        """Where the configuration has it."""
        return next((key for key in self.annotations if isinstance(key, Key)), Key())

    @property
    def kinds(self) -> tuple[Any, ...]:
        """Types of its values, with the types of their items."""
        return get_args(self.type) if isinstance(self.type, UnionType) else (self.type,)

    @property
    def types(self) -> tuple[Any, ...]:
        """Types of its values."""
        return tuple(get_origin(kind) or kind for kind in self.kinds)

    @property
    def nested(self) -> "type[StageSettings] | None":
        """Class of settings that a value is, or that the items of a list are; None where values are plain."""
        inner = (kind for outer in self.kinds for kind in (outer, *get_args(outer)))
        return next((kind for kind in inner if isclass(kind) and issubclass(kind, StageSettings)), None)

    @property
    def schema(self) -> dict[str, Any]:
        """Type and bounds, as JSON schema has them; of numbers by name, the bounds are those of each."""
        names = list(dict.fromkeys(KINDS.get(kind) or KINDS[get_origin(kind)] for kind in self.kinds))
        found = {"type": names[0] if len(names) == 1 else names, **bounds(*self.annotations)}
        for number in (get_args(kind)[1] for kind in self.kinds if get_origin(kind) is dict):
            found["additionalProperties"] = {"type": KINDS[number], **bounds_of_number(*self.annotations)}
        return found

    def check(self, value: Any) -> None:
        """Raise an InputError if it cannot have a value."""
        if sentence := rejection(self.name.rstrip("_"), value, self.schema):
            raise InputError(sentence)


def bounds(*annotations: Any) -> dict[str, Any]:
    """Give the bounds among annotations, as JSON schema has them; those of a number where it may be a text, too."""
    of_number = bounds_of_number(*annotations)
    words = next((words for words in annotations if isinstance(words, Words)), None)
    if words is None:
        return of_number
    others = [{"type": KINDS[kind], **of_number} for kind in words.others]
    return {"anyOf": [{"enum": list(words.texts)}, *others]}


def bounds_of_number(*annotations: Any) -> dict[str, Any]:
    """Give the bounds among annotations by keyword, whatever else the value may be."""
    found = ((*BOUNDS[type(bound)], bound) for bound in annotations if type(bound) in BOUNDS)
    return {keyword: getattr(bound, attribute) for keyword, attribute, bound in found}


def reject_unknown(names: Iterable[str], known: Sequence[str]) -> None:
    """Raise an InputError if there is no setting of a name."""
    for name in names:
        if name not in known:
            raise InputError(unknown_setting(name, known))


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Settings of a stage, which are checked as they are made.

    Raises
    ------
    InputError
        If a setting is unknown, of another type, or out of its bounds.
    """

    section: ClassVar[str] = ""

    def __new__(cls, *_: Any, **values: Any) -> Self:
        """Make an object, if all names are names of settings."""
        reject_unknown(values, [setting.name for setting in settings_of(cls)])
        return super().__new__(cls)

    @classmethod
    def check(cls, **values: Any) -> None:
        """Raise an InputError if a setting cannot have a value."""
        for setting in settings_of(cls):
            if setting.name in values:
                setting.check(values[setting.name])

    def __post_init__(self) -> None:
        for setting in settings_of(type(self)):
            if setting.nested is None and not is_dataclass(setting.type):
                value = getattr(self, setting.name)
                setting.check(value)
                object.__setattr__(self, setting.name, plain(value))

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


def plain(value: Any) -> Any:
    """Give a value with the numbers of Python in place of those of NumPy, which JSON does not have."""
    match value:
        case bool():
            return value
        case Integral():
            return int(value)
        case Real():
            return float(value)
        case tuple() | list():
            return type(value)(map(plain, value))
        case dict():
            return {key: plain(item) for key, item in value.items()}
    return value


def settings_of(model: type[StageSettings]) -> tuple[Setting, ...]:
    """List the settings of a stage."""
    key: Any = model  # mypy takes no class with a __hash__ for hashable
    return _settings_of(key)


@cache
def _settings_of(model: type[StageSettings]) -> tuple[Setting, ...]:
    defaults = ((of, of.default_factory() if callable(of.default_factory) else of.default) for of in fields(model))
    return tuple(Setting.of(of.name, of.type, default) for of, default in defaults)


def options_of(model: type[StageSettings]) -> Iterator[Setting]:
    """Give the settings of a stage that have a help text: options of its command, and keys of the configuration."""
    return (setting for setting in settings_of(model) if setting.help)
