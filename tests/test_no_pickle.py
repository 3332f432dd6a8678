"""Nothing that is read can run code: no pickle in the package, in its files, or behind what reads them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bdm
from bdm.model.model import save_model

RUNS_CODE = re.compile(
    r"\b(pickle|cloudpickle|dill|joblib|shelve|marshal)\b|torch\.(load|save)\b|allow_pickle|\b(eval|exec)\(|np\.load\b"
)
# Opened by what reads files, if a pickle is among them
GUARD = """
import sys
def guard(event, arguments):
    if event in ("pickle.find_class", "marshal.loads") and guarded:
        raise RuntimeError("code would be run: " + event)
guarded = []
sys.addaudithook(guard)
import pickle, torch
pickle.load = pickle.loads = pickle.Unpickler = torch.load = None
"""
IMPORTS = """
import sys
from pathlib import Path
from bdm.model.model import load_model
"""
READ = """
model = load_model(Path(sys.argv[1]))
"""


@pytest.fixture
def folder(small_model, tmp_path) -> Path:
    save_model(tmp_path, small_model.model)
    return tmp_path


def test_source_reads_no_pickle():
    sources = {path: path.read_text() for path in Path(bdm.__file__).parent.rglob("*.py")}
    assert len(sources) > 100
    harmless = r"\.eval\(\)|^from joblib import cpu_count$"
    sources = {path: re.sub(harmless, "", text, flags=re.MULTILINE) for path, text in sources.items()}
    found = {str(path): RUNS_CODE.findall(text) for path, text in sources.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_files_are_json_and_safetensors(folder):
    files = list(folder.rglob("*"))
    assert {file.suffix for file in files} >= {".json", ".safetensors"}
    for file in files:
        head = file.read_bytes()[:9]
        assert head.startswith(b"{") or head[8:9] == b"{", file  # safetensors begin with the length of a JSON header
        assert head[:1] != b"\x80" or file.suffix != ".json"


def test_model_is_read_where_no_pickle_can_be(folder):
    """Once all that reads it is imported, which is code itself."""
    pickled = "print('read')\nimport io, _pickle\n_pickle.loads(b'cos\\nsystem\\n.')"
    program = IMPORTS + READ + GUARD + "guarded = [True]\n" + READ + pickled
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
    assert done.stdout == "read\n", done.stderr
    assert "code would be run: pickle.find_class" in done.stderr  # the guard can fail
