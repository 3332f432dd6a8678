"""Evaluations of transmuted cells: the scores with all that figures show of them, in memory and as a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bdm._core.files import atomic_write
from bdm._core.store import load, save

KIND = "transmutation"
MAX_TYPES = 8  # original types whose genes and cells are drawn


@dataclass(frozen=True, repr=False)
class TransmutationEvaluation:
    """Scores of transmuted cells by their original type.

    Attributes
    ----------
    to
        The type that cells were transmuted to.
    table
        (original_type, set) x ``n_cells`` and scores, see :func:`bdm.transmutation.evaluate.score_transmutation`; sets
        are the floor (training cells of the new type), the transmuted sets (``transmuted`` the first), and the cells
        ``unchanged``.
    fold_changes
        A row for each ``original_type``, ``set`` (the floor and the transmuted sets) and ``gene`` (shown as ``label``)
        of those that differ most between the two types: its ``log2_fold_change`` from the original type in the set, and
        in test cells of the new type (``log2_fold_change_test``).
    provenance
        Version, packages, seed, and checksums and settings of the transmuted files.
    compute_embedding
        Returns the table :attr:`embedding`, which it computes once.
    """

    to: str
    table: pd.DataFrame
    fold_changes: pd.DataFrame
    provenance: dict[str, Any]
    compute_embedding: Callable[[], pd.DataFrame]

    def __repr__(self) -> str:
        return summary(self)

    @property
    def embedding(self) -> pd.DataFrame:
        """Joint UMAP of transmuted cells of the first set, the same cells before, and training cells of the new type.

        A row for each cell with ``umap_1``, ``umap_2``, ``original_type`` (the new type for the training cells),
        ``cell_type`` and ``set``. It is computed when it is first needed.
        """
        return self.compute_embedding()

    @property
    def original_types(self) -> list[str]:
        """Types that cells were transmuted from."""
        return list(self.table.index.unique("original_type"))

    def save(self, folder: Path | str) -> None:
        """Write the evaluation as a folder, for :meth:`load`.

        The folder has ``transmutation.json`` and ``transmutation.safetensors`` with everything, and the table
        ``scores.csv`` to read.

        Raises
        ------
        InputError
            If the folder cannot be written, or holds anything but an evaluation of transmuted cells.
        """
        with atomic_write(Path(folder), folder_of=f"{KIND}.json") as out:
            save(out, KIND, self)
            self.table.to_csv(out / "scores.csv", float_format="%.6g")

    @classmethod
    def load(cls, folder: Path | str) -> TransmutationEvaluation:
        """Read an evaluation that :meth:`save` or ``bdm evaluate-transmuted`` wrote.

        Raises
        ------
        InputError
            If the folder holds no such evaluation, one of another version of bdm, or a damaged one.
        """
        return load(Path(folder), KIND, cls)


def summary(evaluation: TransmutationEvaluation) -> str:
    """Format the scores as a table to print."""
    return f"Transmuted to {evaluation.to}:\n{evaluation.table.to_string(float_format='{:.3f}'.format)}"
