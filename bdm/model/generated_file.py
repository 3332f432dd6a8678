"""Files of generated cells: the record that they carry, and what the card of their model says of them."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from bdm._core.files import provenance, sha256, storable
from bdm._core.store import checksum_of
from bdm.data.read import read_cells
from bdm.errors import InputError
from bdm.model.match import labels_of
from bdm.model.model import BranchedModel

logger = logging.getLogger(__name__)

ABOUT = "Synthetic cells, computed by bdm with a model of measured cells; they are no measurements."


def record_of_cells(model: BranchedModel, folder: Path | None, *, seed: int, **facts: Any) -> dict[str, Any]:
    """Record for ``uns['bdm']`` of cells that a model computes: what they are, versions, seed, checksums and facts."""
    record = provenance(
        seed=seed,
        about=ABOUT,
        license=model.preparation.get("license"),
        model_sha256=None if folder is None else checksum_of(folder, "model"),
        data_sha256=model.autoencoder.provenance.get("data_sha256"),
    )
    return storable(record | facts)


def is_of_model(path: Path, checksum: str) -> bool:
    """Whether a model with this checksum computed the cells of a file, or that is unknown; warns if another one did."""
    recorded = read_cells(path, on_disk=True).uns.get("bdm", {}).get("model_sha256") if path.exists() else None
    if recorded in (None, checksum):
        return True
    logger.warning("Not shown: %s has cells of another model than the one next to it; make them again.", path)
    return False


@dataclass(frozen=True)
class GeneratedFile:
    """A file of cells that a model generated."""

    name: str  # name of the file, without its folder
    sha256: str
    n_by_type: pd.Series  # number of cells by cell type
    var: pd.DataFrame
    seed: int
    columns: tuple[str, ...]  # columns of ``obs``
    sampling: dict[str, Any]  # how the cells were sampled: the settings of ``bdm generate``, by name

    @classmethod
    def read(cls, path: Path, model: BranchedModel, *, checksum: str) -> Self:
        """Describe a file that ``bdm generate`` wrote, without reading its counts."""
        adata = read_cells(path, on_disk=True)
        record = dict(adata.uns.get("bdm", {}))
        recorded = record.get("model_sha256")
        is_generated = "request" in record and "synthetic" in adata.obs and bool(adata.obs["synthetic"].all())
        if recorded is None or not is_generated:
            raise InputError(f"{path} has other cells than those of bdm generate; give a file that it wrote.")
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
