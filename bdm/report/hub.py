"""Upload models with their cards to Hugging Face Hub, and download them."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import yaml

from bdm import __version__
from bdm._core.errors import InputError, missing_package
from bdm._core.store import read_files
from bdm.report.card import CARD

ADDRESS = re.compile(r"hf://([^/@\s]+/[^/@\s]+)(?:@(\S+))?")
FILES = (CARD, "LICENSE", "model.json", "model.safetensors")  # all that is uploaded and downloaded, without code


def parse_address(address: str) -> tuple[str, str | None]:
    """Return the repository and the revision of ``hf://USER/NAME@REVISION``."""
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(f"{address} is no address of a model; give hf://USER/NAME, or hf://USER/NAME@REVISION.")
    return match[1], match[2]


def push(folder: Path, address: str, *, public: bool, confirm: Callable[[str], bool]) -> str:
    """Upload the folder of a model with its card, and return the address with the revision of the upload.

    Other files than :data:`FILES` are not sent. ``confirm`` is called with a description of the upload; nothing is sent
    unless it returns True.
    """
    name, revision = parse_address(address)
    if revision is not None:
        raise InputError(f"{address} names a revision, which an upload cannot set; give hf://{name}.")
    read_files(folder, "model")
    hub = import_hub()
    license = license_of(folder / CARD, hub)
    files = [folder / name for name in FILES if (folder / name).is_file()]
    if links := [file.name for file in files if file.is_symlink()]:
        raise InputError(f"{folder / links[0]} is a link, so what it sends may be any file; replace it by a copy.")
    size = sum(file.stat().st_size for file in files) / 1e6
    content = f"{', '.join(file.name for file in files)} ({size:.1f} MB, license {license})"
    repository = f"the {'public' if public else 'private'} repository {address}"
    text = f"This sends {content} to {repository}; a model discloses something about the donors of its cells"
    if not confirm(text):
        raise InputError(f"{text}; confirm by `confirmed=True`.")
    if hub.get_token() is None:
        raise InputError(f"{address} needs a token; log in by hf auth login, or set the variable HF_TOKEN.")
    api = hub.HfApi()
    with errors_in_words(address, hub):
        if not api.repo_exists(name):
            api.create_repo(name, private=not public)
        is_public = not api.model_info(name).private
        if is_public != public:
            raise InputError(
                f"{address} exists and is {'public' if is_public else 'private'}; push "
                f"{'with' if is_public else 'without'} `public=True`, or change its visibility on its page."
            )
        additions = [hub.CommitOperationAdd(file.name, file) for file in files]
        commit = api.create_commit(name, additions, commit_message=f"Upload a model of bdm {__version__}")
    return f"{address}@{commit.oid}"


def download(address: str) -> Path:
    """Download a model into Hugging Face's cache, and return its folder.

    The folder is named by the commit. Only :data:`FILES` are downloaded, whatever else is in the repository.
    """
    name, revision = parse_address(address)
    hub = import_hub()
    api = hub.HfApi()
    with errors_in_words(address, hub):
        info = api.model_info(name, revision=revision)
        names = {sibling.rfilename for sibling in info.siblings}
        if "model.json" not in names:
            raise InputError(f"{address} is no model of bdm: the repository has no model.json.")
        files = [api.hf_hub_download(name, file, revision=info.sha) for file in FILES if file in names]
    return Path(files[0]).parent


def local_folder(path: Path | str) -> Path:
    """Return the folder of a model, which is downloaded if ``path`` is an address."""
    address = re.sub("^hf:/+", "hf://", str(path))  # Path joins the slashes
    return download(address) if address.startswith("hf://") else Path(path)


def license_of(card: Path, hub: ModuleType) -> str:
    """Return the license in the metadata of a card; reject a card without one."""
    try:
        metadata = (hub.metadata_load(card) if card.is_file() else None) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{card} has invalid metadata; write it again by bdm card.") from error
    if not metadata.get("license"):
        raise InputError(f"{card} is missing, or states no license of the data; write it by bdm card, with `license=`.")
    return str(metadata.get("license_name") or metadata["license"])


def import_hub() -> ModuleType:
    """Import huggingface_hub, of the extra ``hub``."""
    try:
        import huggingface_hub.errors
    except ImportError as error:
        raise missing_package("Hugging Face Hub", "huggingface_hub", extra="hub") from error
    module: ModuleType = huggingface_hub
    return module


@contextmanager
def errors_in_words(address: str, hub: ModuleType) -> Iterator[None]:
    """Turn errors of the hub and the network into InputErrors."""
    errors = hub.errors
    try:
        yield
    except InputError:
        raise
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{address} has no such revision; name a branch, a tag or a commit.") from error
    except errors.RepositoryNotFoundError as error:  # also raised for private repositories
        raise InputError(
            f"{address} does not exist, or you may not read it; check the name, or log in by hf auth login."
        ) from error
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        message = getattr(error, "server_message", None) or str(error)
        reason = " ".join(message.split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"The exchange with {address} failed ({reason}); check the name, your token and the network."
        ) from error
