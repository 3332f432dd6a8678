"""Models of released versions are read by this version, and give the same cells."""

import json
from pathlib import Path

import numpy as np
import pytest
from stored_models import DATA, results_of

from bdm._core.store import OLDEST

FOLDERS = sorted(path.parent for path in DATA.glob("model-*/*/model.json"))
# Larger than differences between processors (levels, latents), or between seeds (others)
TOLERANCE = {"levels": 1e-4, "latents": 0.01, "means": 0.15, "deviations": 0.1, "donors": 0.06, "positions": 0.3}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_model_of_a_release_gives_the_same_results(folder: Path):
    expected, found = json.loads((folder / "expected.json").read_text()), results_of(folder)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if name in TOLERANCE:
            np.testing.assert_allclose(found[name], values, rtol=0, atol=TOLERANCE[name], err_msg=name)
        else:
            assert found[name] == values


def test_a_model_in_the_oldest_readable_format_is_kept():
    assert min(json.loads((folder / "model.json").read_text())["format"] for folder in FOLDERS) == OLDEST["model"]
