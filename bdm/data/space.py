"""Positions of cells in space: checked, read, and named by section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from bdm._core.errors import InputError
from bdm.data.columns import name_in

POSITIONS, SECTION = "spatial", "section"  # of prepared cells: key of obsm, column of obs
COORDINATES = ("x", "y", "z")  # columns of tables of locations
ONE_SECTION = "section"  # name of the section of cells without a column of sections

PositionKeys: TypeAlias = tuple[str, str | None]  # key of obsm; column of obs, None for one section
PREPARED: PositionKeys = (POSITIONS, SECTION)


def has_positions(adata: AnnData) -> bool:
    """Return whether prepared cells have positions."""
    return POSITIONS in adata.obsm


def sections_of(obs: pd.DataFrame, key: str | None = SECTION) -> np.ndarray:
    """Return the section of each cell as text, from its :func:`section_column`."""
    column = section_column(obs, key)
    sections = np.full(len(obs), ONE_SECTION, dtype=object) if column is None else obs[column].astype(str)
    return np.asarray(sections, dtype=object)


def position_keys(preparation: Mapping[str, Any]) -> PositionKeys:
    """Return the user's keys of positions and sections, or the keys of prepared cells if none are recorded."""
    spatial_key = preparation.get("spatial_key")
    return PREPARED if spatial_key is None else (spatial_key, preparation["section_key"])


def position_key(adata: AnnData, key: str) -> str:
    """Return the key of positions in ``obsm``: ``key``, or the one of prepared cells."""
    return key if key in adata.obsm or POSITIONS not in adata.obsm else POSITIONS


def section_column(obs: pd.DataFrame, key: str | None) -> str | None:
    """Return the column of sections, ``key`` or as in prepared cells; None without one."""
    return None if key is None else next((name for name in (name_in(obs, key), SECTION) if name in obs), None)


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


def position_table(adata: AnnData, keys: PositionKeys = PREPARED) -> pd.DataFrame | None:
    """Return coordinates (``x``, ``y`` and any ``z``) and ``section`` of cells; None without valid positions.

    Keys of prepared cells replace ``keys`` that the cells lack.
    """
    spatial_key, section_key = keys
    try:
        positions = positions_in(adata, position_key(adata, spatial_key))
    except InputError:
        return None
    table = pd.DataFrame(positions, columns=list(COORDINATES[: positions.shape[1]]))
    return table.assign(section=sections_of(adata.obs, section_key))


def check_sections(obs: pd.DataFrame, positions: np.ndarray) -> None:
    """Reject sections with a constant coordinate; ``positions`` is cells x coordinates."""
    section = sections_of(obs)
    for name in np.unique(section):
        if not np.ptp(positions[section == name], axis=0).all():
            where = f"section {name!r}" if SECTION in obs else "all cells"
            raise InputError(
                f"A coordinate is constant in {where}; give positions in a plane as two coordinates, and leave out "
                "sections of one cell."
            )


def nearest_neighbours(positions: np.ndarray, section: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair each cell with its nearest neighbours in the section, up to ``number``.

    ``positions`` is cells x coordinates. Returns indices of the cells, and of their neighbours.
    """
    cells, neighbours = [np.empty(0, dtype=int)], [np.empty(0, dtype=int)]
    for name in np.unique(section):
        members = np.flatnonzero(section == name)
        k = min(number, len(members) - 1)
        if k > 0:
            nearest = np.asarray(cKDTree(positions[members]).query(positions[members], k=k + 1)[1])
            is_self = nearest == np.arange(len(members))[:, None]
            is_self[~is_self.any(axis=1), -1] = True  # of more than k + 1 cells at the same position
            cells.append(members.repeat(k))
            neighbours.append(members[nearest[~is_self]])
    return np.concatenate(cells), np.concatenate(neighbours)
