from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bdm.checksums import read_checksummed_json, write_checksummed_json
from bdm.errors import InputError
from bdm.files import sha256

FORMAT = 6


@dataclass(frozen=True)
class Bundle:
    """What a folder of one JSON file and some safetensors files holds; reading one runs no code.

    Attributes
    ----------
    content
        The JSON file's content.
    tensors
        Named tensors by file.
    """

    content: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


@contextmanager
def reject_if_damaged(path: Path) -> Iterator[None]:
    """Turn what fails on unexpected content of ``path`` into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise InputError(f"{path} is damaged ({type(error).__name__}: {reason}); make it anew.") from error


def write_bundle(folder: Path, kind: str, bundle: Bundle) -> str:
    """Write ``kind.json`` and a safetensors file for each group of tensors, whose checksums the JSON records.

    Returns
    -------
    The checksum of the JSON's content, and so of all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checksums = {}
    for name, tensors in bundle.tensors.items():
        file = folder / f"{name}.safetensors"
        # not by save_file, whose files nobody but their owner may read
        file.write_bytes(save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))
        checksums[file.name] = sha256(file)
    return write_checksummed_json(folder / f"{kind}.json", {"format": FORMAT, "checksums": checksums, **bundle.content})


def read_bundle(folder: Path, kind: str) -> Bundle:
    """Read what :func:`write_bundle` wrote.

    Raises
    ------
    InputError
        If the folder holds no such thing, has another format, or a file is damaged.
    """
    folder = Path(folder)
    file = folder / f"{kind}.json"
    if not file.is_file():
        raise InputError(f"{folder} is not the folder of a bdm {kind}: it has no {file.name}.")
    content = read_checksummed_json(file, kind, version=FORMAT)
    tensors = {}
    with reject_if_damaged(file):
        checksums = dict(content["checksums"])
    for name, checksum in checksums.items():
        part = folder / name
        if not part.is_file() or sha256(part) != checksum:
            raise InputError(f"{part} is missing or damaged (its checksum is not the one in {file.name}).")
        try:
            # copies, as the file's own places in memory are not aligned
            tensors[part.stem] = {key: value.clone() for key, value in load_file(part).items()}
        except SafetensorError as error:
            raise InputError(f"{part} is not a safetensors file ({error}); make it anew.") from error
    return Bundle(content, tensors)
