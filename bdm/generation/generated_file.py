"""Records of files of generated cells."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from bdm._core.errors import InputError
from bdm._core.files import sha256
from bdm.data.read import read_cells
from bdm.model.match import labels_of
from bdm.model.model import BranchedModel


@dataclass(frozen=True)
class GeneratedFile:
    """File of generated cells."""

    name: str  # name of the file, without its folder
    sha256: str
    n_by_type: pd.Series  # number of cells by cell type
    var: pd.DataFrame
    seed: int
    columns: tuple[str, ...]  # columns of ``obs``
    sampling: dict[str, Any]  # settings of ``bdm generate``, by name

    @classmethod
    def read(cls, path: Path, model: BranchedModel, *, checksum: str) -> Self:
        """Read the record of a file from ``bdm generate``, without its counts."""
        adata = read_cells(path, on_disk=True)
        record = dict(adata.uns.get("bdm", {}))
        recorded = record.get("model_sha256")
        is_generated = "request" in record and "synthetic" in adata.obs and bool(adata.obs["synthetic"].all())
        if recorded is None or not is_generated:
            raise InputError(f"{path} has other cells than bdm generate writes; name a file that it wrote.")
        if recorded != checksum:
            raise InputError(
                f"{path} has cells of another model (its checksum begins with {recorded[:8]}, this model's with "
                f"{checksum[:8]}); generate cells of this model."
            )
        return cls(
            Path(path).name,
            sha256(path),
            labels_of(adata.obs, model).value_counts(),
            adata.var,
            int(record["seed"]),
            tuple(map(str, adata.obs.columns)),
            json.loads(record["settings"]),
        )
