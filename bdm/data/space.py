"""Positions of cells in space: checked, read, and named by section."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError

POSITIONS, SECTION = "spatial", "section"  # of prepared cells: key of obsm, column of obs
COORDINATES = ("x", "y", "z")  # columns of tables of locations
ONE_SECTION = "section"  # name of the section of cells without a column of sections


def has_positions(adata: AnnData) -> bool:
    """Return whether prepared cells have positions."""
    return POSITIONS in adata.obsm


def sections_of(adata: AnnData) -> np.ndarray:
    """Return the section of each prepared cell, as text."""
    if SECTION not in adata.obs:
        return np.full(adata.n_obs, ONE_SECTION, dtype=object)
    return np.asarray(adata.obs[SECTION].astype(str).to_numpy(dtype=object))


def position_key(adata: AnnData, key: str) -> str:
    """Return the key of positions in ``obsm``: ``key``, or the one of prepared cells."""
    return key if key in adata.obsm or POSITIONS not in adata.obsm else POSITIONS


def positions_in(adata: AnnData, key: str) -> np.ndarray:
    """Return ``obsm[key]`` as finite numbers, cells x 2 or 3; reject other content."""
    if key not in adata.obsm:
        keys = ", ".join(adata.obsm) or "none"
        raise InputError(f"The cells have no obsm[{key!r}]; name the positions by `spatial_key=` (there are: {keys}).")
    positions = np.asarray(adata.obsm[key])
    if positions.ndim != 2 or positions.shape[1] not in (2, 3):
        raise InputError(f"obsm[{key!r}] has the shape {positions.shape}; give two or three coordinates for each cell.")
    try:
        positions = positions.astype(float)
    except (TypeError, ValueError):
        raise InputError(f"obsm[{key!r}] holds values that are no numbers; give two or three coordinates.") from None
    missing = ~np.isfinite(positions).all(axis=1)
    if missing.any():
        raise InputError(
            f"obsm[{key!r}] has no finite position for {missing.sum()} of {len(positions)} cells, for example "
            f"{adata.obs_names[missing.argmax()]}; complete it, or leave these cells out."
        )
    return positions


def check_sections(obs: pd.DataFrame, positions: np.ndarray) -> None:
    """Reject sections in which a coordinate (``positions``: cells x coordinates) is constant."""
    section = obs[SECTION].astype(str).to_numpy() if SECTION in obs else np.full(len(obs), ONE_SECTION)
    for name in np.unique(section):
        if not np.ptp(positions[section == name], axis=0).all():
            where = f"section {name!r}" if SECTION in obs else "all cells"
            raise InputError(
                f"A coordinate is constant in {where}; give positions in a plane as two coordinates, and leave out "
                "sections of one cell."
            )
