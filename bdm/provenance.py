"""Provenance: versions, seed, settings and input hashes that results record."""

import json
from importlib.metadata import version
from typing import Any

from anndata import AnnData

from bdm import __version__

PACKAGES = ("anndata", "numpy", "scanpy", "torch")


def provenance(*, seed: int, **facts: Any) -> dict[str, Any]:
    """Record of how a result was made: versions, seed, and the given facts."""
    packages = {name: version(name) for name in PACKAGES}
    return {"version": __version__, "packages": packages, "seed": int(seed), **facts}


def storable(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record for ``uns``: nested content becomes JSON text, as its keys may not be valid names in HDF5."""
    return {
        key: value if isinstance(value, str | int | float | bool) else json.dumps(value, ensure_ascii=False)
        for key, value in record.items()
        if value is not None
    }


def preparation(prepared: AnnData) -> dict[str, Any]:
    """Record of how cells were prepared: the settings, and the hash of the input file, if there was one."""
    record = prepared.uns["bdm"]
    return {"prepare": json.loads(record["settings"]), "data_sha256": record.get("data_sha256")}
