"""Models are sent to Hugging Face Hub with consent, and read without code; a local server stands in for the hub."""

import base64
import hashlib
import json
import os
import pty
import re
import sys
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import anndata as ad
import pytest

from bdm._core.errors import InputError
from bdm.api import BranchedDiffusion
from bdm.report.card import CARD
from bdm.report.hub import download

ADDRESS, TOKEN = "hf://lab/blood", "hf_stub"
SENT = {CARD, "LICENSE", "model.json", "model.safetensors"}


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # files by revision

    def commit(self, **files: bytes | None) -> str:
        """Add files to the last commit."""
        revision = f"{len(self.commits) + 1:040x}"
        self.commits[revision] = {**(list(self.commits.values()) or [{}])[-1], **files}
        return revision


class Hub(ThreadingHTTPServer):
    """Repositories by name, and the requests so far."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []


class Answer(BaseHTTPRequestHandler):
    """Answers as Hugging Face Hub does, as far as models are pushed and read."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.server.requests.append(f"{self.command} {'/'.join(parts)}")
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts == ["api", "validate-yaml"]:
            return self.send({})
        user, name, action, revision, file = [*(parts[2:] if parts[0] == "api" else parts), *[""] * 5][:5]
        repository = self.server.repositories.get(f"{user}/{name}")
        if repository is None or (repository.private and not self.is_member):
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if action == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self.send({"files": [{"path": each["path"], **modes} for each in json.loads(body)["files"]]})
        if action == "commit":
            values = [json.loads(line)["value"] for line in body.splitlines()]
            files = {each["path"]: base64.b64decode(each["content"]) for each in values if "path" in each}
            revision = repository.commit(**files)
            url = f"{self.home}/{user}/{name}/commit/{revision}"
            return self.send({"commitUrl": url, "commitOid": revision})
        revision = list(repository.commits or [""])[-1] if revision in ("", "main") else revision
        if revision not in repository.commits:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        files = repository.commits[revision]
        if action == "resolve":
            etag = hashlib.sha1(files[file]).hexdigest()
            return self.send(files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": revision})
        siblings = [{"rfilename": path} for path in files]
        return self.send({"id": f"{user}/{name}", "sha": revision, "private": repository.private, "siblings": siblings})

    def create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if not self.is_member:
            return self.refuse(401, "", "Invalid username or password.")
        is_private = asked.get("private", asked.get("visibility") == "private")
        self.server.repositories[name] = Repository(is_private)
        self.server.repositories[name].commit()
        return self.send({"url": f"{self.home}/{name}"})

    @property
    def is_member(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    @property
    def home(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send({"error": message}, {"X-Error-Code": code, "X-Error-Message": message}, status=status)

    def send(self, content: object, headers: dict[str, str] | None = None, *, status: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def use_endpoint(monkeypatch, address: str) -> None:
    """Have huggingface_hub, which reads HF_ENDPOINT when it is imported, use a server."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def folder(small_model, tmp_path_factory):
    """Model with a license in its card, and a file of cells."""
    folder = tmp_path_factory.mktemp("pushed") / "model"
    small_model.save(folder)
    (folder / CARD).write_text(small_model.card(license="cc-by-4.0"))
    (folder / "LICENSE").write_text("Use it.")
    (folder / "generated.h5ad").write_text("cells")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in SENT}


def test_pushed_model_is_read_back(hub, folder, bdm, small_model, tmp_path, caplog):
    assert bdm("push", folder, ADDRESS, "--yes") == (0, "")
    repository = hub.repositories["lab/blood"]
    assert repository.private
    files = list(repository.commits.values())[-1]
    assert files == contents(folder)
    assert f"{ADDRESS}@{2:040x}" in caplog.messages[-1]
    assert contents(download(ADDRESS)) == files
    assert bdm("generate", ADDRESS, tmp_path / "new.h5ad", "--cells", 3, "--seed", 1, "--device", "cpu")[0] == 0
    loaded = BranchedDiffusion.load(ADDRESS, device="cpu")
    for cells in (ad.read_h5ad(tmp_path / "new.h5ad"), loaded.generate(3, seed=1)):
        assert (cells.X != small_model.generate(3, seed=1).X).nnz == 0


def test_model_is_pushed_from_python(hub, small_model):
    card = small_model.card(license="cc0-1.0")
    with pytest.raises(InputError, match=r"license cc0-1\.0\) to the private repository hf://lab/blood; .* donors"):
        small_model.push(ADDRESS, card=card)
    assert not hub.requests
    pushed = small_model.push(ADDRESS, card=card, public=True, confirmed=True)
    assert not hub.repositories["lab/blood"].private
    assert BranchedDiffusion.load(pushed, device="cpu").model.provenance == small_model.model.provenance


def test_revision_is_read(hub, folder, bdm):
    hub.repositories["lab/blood"] = Repository(private=False)
    first = hub.repositories["lab/blood"].commit(**contents(folder))
    hub.repositories["lab/blood"].commit(**{CARD: b"later"})
    assert contents(download(f"{ADDRESS}@{first}")) == contents(folder)
    assert (download(ADDRESS) / CARD).read_text() == "later"
    code, error = bdm("card", f"{ADDRESS}@{'f' * 39}")
    assert code == 2
    assert "has no such revision" in error


def test_only_files_of_a_model_are_downloaded(hub, folder):
    unsafe = {"model.pkl": b"cos\nsystem\n.", "bdm.py": b"raise SystemExit", "deep/model.json": b"{}"}
    hub.repositories["lab/blood"] = Repository(private=False)
    hub.repositories["lab/blood"].commit(**contents(folder), **unsafe)
    assert {path.name for path in download(ADDRESS).iterdir()} == SENT
    resolved = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert resolved == SENT


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model.json": None}, "hf://lab/blood is no model of bdm"),
        ({"model.safetensors": b"changed"}, "model.safetensors is missing or damaged"),
        ({"model.json": b"{}"}, "model.json holds no model that bdm wrote"),
    ],
)
def test_what_is_no_whole_model_is_rejected(hub, folder, bdm, change, expected):
    hub.repositories["lab/blood"] = Repository(private=False)
    files = {name: content for name, content in {**contents(folder), **change}.items() if content is not None}
    hub.repositories["lab/blood"].commit(**files)
    code, error = bdm("card", ADDRESS)
    assert code == 2
    assert expected in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([ADDRESS], "license cc-by-4.0) to the private repository hf://lab/blood; a model discloses"),
        ([ADDRESS], "confirm by `--yes`"),
        ([f"{ADDRESS}@main", "--yes"], "names a revision"),
        (["lab/blood", "--yes"], "lab/blood is no address of a model"),
    ],
)
def test_nothing_is_sent_without_an_answer(hub, folder, bdm, words, expected):
    code, error = bdm("push", folder, *words)
    assert code == 2
    assert expected in error
    assert not hub.requests


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_the_question_is_answered_on_a_terminal(hub, folder, bdm, monkeypatch, answer, code):
    terminal, keyboard = pty.openpty()
    os.write(terminal, f"{answer}\n".encode())
    with open(keyboard) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert bdm("push", folder, ADDRESS, "--public")[0] == code
    os.close(terminal)
    assert bool(hub.repositories) == bool(hub.requests) == (code == 0)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (None, "README.md is missing, or states no license of the data"),
        (
            "---\nlicense:\n---\n",
            "states no license of the data; write it by bdm card, with `--license`",
        ),
        ("A model.", "states no license of the data"),
        ("---\n: [\n---\n", "README.md has invalid metadata"),
    ],
)
def test_model_without_a_license_is_not_sent(hub, folder, bdm, tmp_path, card, expected):
    for name, content in contents(folder).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / CARD).unlink() if card is None else (tmp_path / CARD).write_text(card)
    code, error = bdm("push", tmp_path, ADDRESS, "--yes")
    assert code == 2
    assert expected in error
    assert not hub.requests


def test_links_are_not_sent(hub, folder, bdm, tmp_path):
    for name, content in contents(folder).items():
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    (tmp_path / "secret").write_text("key")
    (tmp_path / "model/LICENSE").unlink(missing_ok=True)
    (tmp_path / "model/LICENSE").symlink_to(tmp_path / "secret")
    code, error = bdm("push", tmp_path / "model", ADDRESS, "--yes")
    assert code == 2
    assert "LICENSE is a link" in error
    assert not hub.requests


def test_damaged_model_is_not_sent(hub, folder, bdm, tmp_path):
    for name, content in contents(folder).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.safetensors").write_bytes(b"changed")
    assert bdm("push", tmp_path, ADDRESS, "--yes")[0] == 2
    assert not hub.requests


@pytest.mark.parametrize("private", [True, False])
def test_visibility_of_a_repository_is_not_changed(hub, folder, bdm, private):
    hub.repositories["lab/blood"] = Repository(private)
    hub.repositories["lab/blood"].commit()
    code, error = bdm("push", folder, ADDRESS, "--yes", *(["--public"] if private else []))
    assert code == 2
    assert f"is {'private' if private else 'public'}; push {'without' if private else 'with'} `--public`" in error
    assert len(hub.repositories["lab/blood"].commits) == 1


@pytest.mark.parametrize(
    ("token", "is_reachable", "command", "expected"),
    [
        ("", True, "push", "hf://lab/blood needs a token"),
        ("other", True, "push", "Invalid username or password"),
        (TOKEN, True, "card", "does not exist, or you may not read it"),
        (TOKEN, False, "push", "check the name, your token and the network"),
        (TOKEN, False, "card", "check the name, your token and the network"),
    ],
)
def test_errors_of_the_hub_are_one_sentence(
    hub, folder, bdm, tmp_path, monkeypatch, token, is_reachable, command, expected
):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", token)
    if not is_reachable:
        use_endpoint(monkeypatch, "http://127.0.0.1:9")
    words = (folder, ADDRESS, "--yes") if command == "push" else (ADDRESS,)
    code, error = bdm(command, *words)
    assert code == 2
    assert expected in error
    assert len(error.splitlines()) == 1


def test_missing_package_is_named(bdm, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    code, error = bdm("card", ADDRESS)
    assert code == 2
    assert re.search("of the extra `hub` of bdm", error)
