"""Save dataclasses of tensors and tables as JSON and safetensors; select rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from bdm._core.errors import InputError, error_prefix
from bdm._core.files import atomic_write, read_checksummed_json, reject_existing, sha256, write_checksummed_json
from bdm._core.schema import Kinds
from bdm._core.seeds import to_tensor


def name_effects(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Collect the effects of a model and its extensions by name; each was a field."""
    if "model" not in content:
        return
    fields = {"batches": "batch_effects", "covariates": "covariates", "positions": "space", "donors": "donor_effects"}
    for part in (content["model"]["base"], *content["model"]["extensions"]):
        effects = {name: part.pop(field, None) for name, field in fields.items()}
        part["effects"] = {name: {"kind": name, **value} for name, value in effects.items() if value is not None}


def keep_one_network(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Name the prior with a network ``diffusion``, formerly ``flow``; without a kept network, it is the mixture."""
    if "model" not in content or content["model"]["base"]["prior"]["kind"] not in ("flow", "diffusion"):
        return
    prior = content["model"]["base"]["prior"]
    states = [extension["prior_state"] for extension in content["model"]["extensions"]]
    kept, *_ = [bool(tensors[part.pop("network_branches")].any()) for part in (prior, *states)]
    if kept and prior["kind"] == "diffusion":
        raise InputError("The prior of the model has a network by branch, which bdm no longer reads; fit it again.")
    prior["kind"] = "diffusion" if kept else "mixture"
    if not kept:
        del prior["network"]
        for state in states:
            state.clear()


FORMAT = 35  # of files; increase it when fields of saved dataclasses change
OLDEST = {"model": 31}  # oldest readable format by kind, of bdm 0.1.0; other kinds are read in FORMAT only
# Functions by format, which change JSON content and tensors in place to the next format. New fields need none if their
# default reproduces older files
UPGRADES: dict[int, Callable[[dict[str, Any], dict[str, Tensor]], None]] = {32: name_effects, 33: keep_one_network}
TEXT = pd.Series([""]).dtype  # dtype of text columns: str since pandas 3, object before

Value = TypeVar("Value")


def save(folder: Path, kind: str, value: Any, **facts: Any) -> str:
    """Write a dataclass as ``kind.json`` and ``kind.safetensors``, and return their checksum.

    Fields may be numbers, text, None, JSON content, tensors, arrays, tables, other such dataclasses, and tuples or
    dictionaries (with text keys) of them. A network is rebuilt from its dataclass ``shape``, and a class of
    :class:`bdm._core.schema.Kinds` is found by its name. A function without arguments, which computes a value on
    demand, is saved as this value. The JSON file also has ``facts``, such as the checksum of an input.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = ContentWriter()
    content = {"format": FORMAT, **facts, kind: writer.encode(value, kind)}
    file = folder / f"{kind}.safetensors"
    # save_file would write files that only their owner can read
    file.write_bytes(to_bytes(writer.tensors))
    return write_checksummed_json(folder / f"{kind}.json", {**content, "tensors": sha256(file)})


def load(folder: Path, kind: str, cls: type[Value], **facts: Any) -> Value:
    """Read a dataclass that :func:`save` wrote, and check that it has the same ``facts``."""
    folder = Path(folder)
    content, tensors = read_files(folder, kind)
    for name, fact in facts.items():
        if content.get(name) != fact:
            raise InputError(f"{folder / kind}.json is of another {name} than the folder's; make it again.")
    file = folder / f"{kind}.json"
    with reject_if_damaged(file), error_prefix(file):  # errors name the file, e.g. if its prior is not installed
        for number in range(content["format"], FORMAT):
            if number in UPGRADES:
                UPGRADES[number](content, tensors)
        value: Value = ContentReader(tensors).decode(content[kind], cls)
        return value


class Result(ABC):
    """Results that are saved as a folder, with tables (.csv) to read."""

    kind: ClassVar[str]  # stem of the JSON and safetensors files

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write a folder for :meth:`load`, with tables (.csv) to read.

        Parameters
        ----------
        overwrite
            Replace an existing folder of results of this class.
        """
        if not overwrite:
            reject_existing(Path(folder))
        with atomic_write(Path(folder), folder_of=f"{self.kind}.json") as out:
            save(out, self.kind, self)
            self._write_tables(out)

    @abstractmethod
    def _write_tables(self, folder: Path) -> None:
        """Write the tables (.csv)."""

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read results that :meth:`save` or a command of bdm wrote."""
        return load(Path(folder), cls.kind, cls)


def checksum_of(folder: Path, kind: str) -> str:
    """Return the checksum that :func:`save` returned for a folder."""
    return str(read_content(Path(folder) / f"{kind}.json", kind)["checksum"])


def read_content(file: Path, kind: str) -> dict[str, Any]:
    """Read and verify a JSON file, in any readable format of its kind."""
    return read_checksummed_json(file, kind, formats=range(OLDEST.get(kind, FORMAT), FORMAT + 1))


def read_files(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the files of a folder, and verify their checksums."""
    file, tensors = folder / f"{kind}.json", folder / f"{kind}.safetensors"
    if not file.is_file():
        raise InputError(f"{folder} is not the folder of a bdm {kind}: it has no {file.name}.")
    content = read_content(file, kind)
    if not tensors.is_file() or sha256(tensors) != content.get("tensors"):
        raise InputError(f"{tensors} is missing or damaged (its checksum does not match {file.name}).")
    try:
        # copies, as tensors are not aligned in the file
        return content, {name: value.clone() for name, value in load_file(tensors).items()}
    except SafetensorError as error:
        raise InputError(f"{tensors} is not a safetensors file ({error}); make it again.") from error


@contextmanager
def reject_if_damaged(path: Path) -> Iterator[None]:
    """Turn errors from unexpected content of ``path`` into InputErrors."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise InputError(f"{path} is damaged ({type(error).__name__}: {reason}); make it again.") from error


@dataclass(frozen=True)
class ContentWriter:
    """Encodes values as JSON content, and collects tensors by name."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def encode(self, value: Any, name: str) -> Any:
        """Return a value as JSON; names of its tensors begin with ``name``."""
        if isinstance(value, Tensor):
            # a copy, as tensors in a file must not share memory
            self.tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return name
        if isinstance(value, np.ndarray):
            return self.encode(to_tensor(np.ascontiguousarray(value)), name)
        if isinstance(value, pd.DataFrame):
            return self.encode_table(value, name)
        if isinstance(value, nn.Module):
            state = {key: self.encode(item, f"{name}.{key}") for key, item in value.state_dict().items()}
            return {"shape": self.encode(value.shape, name), "state": state}
        if is_dataclass(value):
            instance: Any = value
            encoded = {
                entry.name: self.encode(getattr(value, entry.name), f"{name}.{entry.name}")
                for entry in fields(value)
                if entry.init
            }
            return {"kind": instance.name, **encoded} if hasattr(instance, "kinds") else encoded
        if isinstance(value, Mapping):
            return {key: self.encode(item, f"{name}.{i}") for i, (key, item) in enumerate(value.items())}
        if isinstance(value, tuple | list):
            return [self.encode(item, f"{name}.{i}") for i, item in enumerate(value)]
        if callable(value):
            return self.encode(value(), name)
        return value.item() if isinstance(value, np.generic) else value

    def encode_table(self, table: pd.DataFrame, name: str) -> dict[str, Any]:
        """Encode a table: numbers as tensors, other columns and indices as text."""
        index = None
        if not (isinstance(table.index, pd.RangeIndex) and table.index.equals(pd.RangeIndex(len(table)))):
            levels = [table.index.get_level_values(i).astype(str).tolist() for i in range(table.index.nlevels)]
            index = {"names": list(table.index.names), "levels": levels}
        columns: dict[str, Any] = {}
        for i, (column, values) in enumerate(table.infer_objects().items()):
            if pd.api.types.is_numeric_dtype(values):
                columns[str(column)] = self.encode(numbers(values), f"{name}.{i}")
            else:
                columns[str(column)] = [None if pd.isna(text) else str(text) for text in values]
        return {"index": index, "n_rows": len(table), "columns": columns}


@dataclass(frozen=True)
class ContentReader:
    """Decodes JSON content by type annotations; see :func:`load`."""

    tensors: dict[str, Tensor]

    def decode(self, content: Any, kind: Any) -> Any:
        """Return a value of type ``kind``."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            alternatives = [each for each in arguments if each is not NoneType]
            return content if content is None or len(alternatives) > 1 else self.decode(content, alternatives[0])
        if origin is tuple:
            return tuple(self.decode(item, arguments[0]) for item in content)
        if origin is dict:
            return {key: self.decode(item, arguments[1]) for key, item in content.items()}
        if origin is Callable:
            value = self.decode(content, arguments[-1])
            return lambda: value
        if kind is Tensor:
            return self.tensors[content]
        if kind is np.ndarray:
            return self.tensors[content].numpy()
        if kind is pd.DataFrame:
            return self.decode_table(content)
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            return self.decode_module(content, kind)
        if is_dataclass(kind):
            cls: Any = kind
            if isinstance(kinds := getattr(kind, "kinds", None), Kinds):
                content = dict(content)
                cls = kinds.find(content.pop("kind"))
            hints = get_type_hints(cls)
            return cls(**{name: self.decode(item, hints[name]) for name, item in content.items()})
        return content

    def decode_table(self, content: dict[str, Any]) -> pd.DataFrame:
        """Return a table; all its text columns have the same dtype."""
        index: Any = pd.RangeIndex(content["n_rows"])
        if content["index"] is not None:
            levels = [pd.Index(level, dtype=str) for level in content["index"]["levels"]]
            names = content["index"]["names"]
            index = levels[0].rename(names[0]) if len(levels) == 1 else pd.MultiIndex.from_arrays(levels, names=names)
        columns = {
            name: pd.Series(values, index, dtype=TEXT)
            if isinstance(values, list)
            else pd.Series(self.tensors[values].numpy(), index)
            for name, values in content["columns"].items()
        }
        return pd.DataFrame(columns, index=index, columns=pd.Index(list(columns), dtype=str))

    def decode_module(self, content: dict[str, Any], kind: type[nn.Module]) -> nn.Module:
        """Return a network, without changing torch's global random state."""
        shape = self.decode(content["shape"], get_type_hints(kind.__init__)["shape"])
        state = {name: self.tensors[tensor] for name, tensor in content["state"].items()}
        with torch.device("meta"):  # which allocates nothing: rejects a shape that the tensors do not have
            kind(shape).load_state_dict(state, assign=True)
        with torch.random.fork_rng(devices=[]):
            network = kind(shape)
        network.load_state_dict(state)
        return network.eval()


def numbers(column: pd.Series) -> np.ndarray:
    """Return a numeric column in a torch dtype, missing values as NaN."""
    if isinstance(column.dtype, pd.api.extensions.ExtensionDtype):
        return np.asarray(column.to_numpy(float, na_value=np.nan))
    values = column.to_numpy()
    wider = {np.dtype(old): new for old, new in (("u2", "i4"), ("u4", "i8"), ("u8", "i8"), ("f2", "f4"))}
    return np.asarray(values.astype(wider.get(values.dtype, values.dtype)))


# ---- rows: tensors, arrays and tuples with a common first axis


def mapped(function: Callable[..., Any], *values: Any) -> Any:
    """Apply a function to the corresponding leaves of nested dataclasses and dictionaries."""
    first = values[0]
    if isinstance(first, dict):
        return {key: mapped(function, *(value[key] for value in values)) for key in first}
    if is_dataclass(first) and not isinstance(first, type):
        names = [entry.name for entry in fields(first)]
        return replace(first, **{name: mapped(function, *(getattr(value, name) for value in values)) for name in names})
    return function(*values)


def concat(parts: Sequence[Value]) -> Value:
    """Concatenate the rows of all leaves."""

    def joined(*leaves: Any) -> Any:
        if isinstance(leaves[0], Tensor):
            return torch.cat(leaves)
        return np.concatenate(leaves) if isinstance(leaves[0], np.ndarray) else tuple(chain.from_iterable(leaves))

    return cast(Value, mapped(joined, *parts))


def take(value: Value, rows: Sequence[int]) -> Value:
    """Select rows of all leaves."""

    def selected(leaf: Any) -> Any:
        return tuple(leaf[row] for row in rows) if isinstance(leaf, tuple) else leaf[list(rows)]

    return cast(Value, mapped(selected, value))


def updated(parts: Sequence[Value], *, by: str) -> Value:
    """Concatenate dataclasses; rows replace earlier ones with the same name in ``by``."""
    together = concat(parts)
    names = getattr(together, by)
    row_of = {name: row for row, name in enumerate(names)}  # the last of equal names
    return together if len(row_of) == len(names) else take(together, list(row_of.values()))
