"""Evaluations: the scores of sets of cells with all that figures show of them, in memory and as a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.store import Result
from bdm.errors import InputError, abbreviated, counted
from bdm.evaluation.cells import FLOOR, GENERATED, Cells, SizeLimits
from bdm.evaluation.verdict import Verdict, verdict


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """Scores of sets of cells, averaged over resamples, and values by gene and cell of the last resample.

    The floor is the first set; generated cells are the set ``generated``.

    Attributes
    ----------
    overall
        Scores x sets, see :func:`bdm.evaluation.scores.score_all`, with three more rows: ``f1_ratio``, F1 over that of
        the floor, and ``memorisation``, the share of cells nearer to training than to test cells, at equal numbers; 0.5
        without memorisation, and with the standard deviation ``memorisation_chance``.
    by_type
        (set, cell_type) x scores; without types of a single test cell.
    by_population
        A row for each sub-population and set, where a model finds the populations of cells: ``cell_type``,
        ``sub_population``, ``set``, ``n_cells``, ``n_test``, and scores; no rows elsewhere.
    by_covariate
        A row for each ``covariate``, bin of its values (``low`` to ``high``) and set: ``n_cells``, ``n_test``,
        ``energy`` and ``relative_energy``, see :func:`bdm.evaluation.covariates.score_bins`; no rows without
        covariates.
    along
        Expression of genes in bins of covariates, see :func:`bdm.evaluation.covariates.expression_along`.
    properties
        A row for each ``property`` by which benchmarks of simulators compare cells (of a ``kind``), set but the floor,
        and group of cells (``by`` ``all``, ``label`` or ``batch``, and the name ``group``): ``value``, its distance to
        test cells, 0 at best, and the same of the floor, ``floor``; see
        :func:`bdm.evaluation.properties.compare_properties`.
    n_cells
        Available cells: cell types x ``test``, ``train`` and the generated sets.
    n_compared
        Cells compared at a time: cell types x ``test``, the floor and the generated sets.
    markers
        Names of the marker genes of each type.
    gene_statistics
        A row for each set and ``gene`` (with its ``symbol`` where symbols differ): ``mean`` and ``variance`` of
        ``log1p(CP10k)`` and ``zero_fraction`` in the set, and in as many test cells (``mean_test`` and so on).
    fold_changes
        A row for each ``set``, ``cell_type`` and marker ``gene``: its ``log2_fold_change`` in the set and in as many
        test cells (``log2_fold_change_test``); without types of fewer than five cells.
    size_limits
        Most cells that the steps of the evaluation took.
    provenance
        Version, packages, seed, settings, and checksums of the evaluated files.
    compute_embedding
        Returns the table :attr:`embedding`, which it computes once.
    modalities
        (modality, score) x sets, see :func:`bdm.evaluation.modalities.modality_scores`; None for RNA alone. Of several
        modalities, all other scores are of RNA.
    """

    kind = "evaluation"

    overall: pd.DataFrame
    by_type: pd.DataFrame
    by_population: pd.DataFrame
    by_covariate: pd.DataFrame
    along: pd.DataFrame
    properties: pd.DataFrame
    n_cells: pd.DataFrame
    n_compared: pd.DataFrame
    markers: dict[str, list[str]]
    gene_statistics: pd.DataFrame
    fold_changes: pd.DataFrame
    size_limits: SizeLimits
    provenance: dict[str, Any]
    compute_embedding: Callable[[], pd.DataFrame]
    modalities: pd.DataFrame | None = field(default=None, metadata={"optional": True})

    def __repr__(self) -> str:
        n_test, n_types = int(self.n_cells["test"].sum()), len(self.n_cells)
        return f"Evaluation by {n_test:,} test cells of {counted(n_types, 'type')}\n{score_table(self.overall)}"

    @property
    def embedding(self) -> pd.DataFrame:
        """Table of test cells and all sets in a joint UMAP, with ``umap_1``, ``umap_2``, ``cell_type`` and ``set``.

        It is computed when it is first needed.
        """
        return self.compute_embedding()

    @property
    def sets(self) -> list[str]:
        """Keys of the sets, the floor first."""
        return list(self.overall)

    def verdict(self, name: str = GENERATED) -> Verdict:
        """Summarise all scores of a set in words, in comparison with the floor."""
        return verdict(self.overall[name], self.overall[FLOOR], n_cells=int(self.n_matched(name).sum()))

    def verdicts_by_type(self, name: str = GENERATED) -> dict[str, Verdict]:
        """Summarise the scores of each cell type of a set; of types that were not compared the verdict is unknown."""
        scores = {key: dict(row) for key, row in self.by_type.iterrows()}
        return {
            cell_type: verdict(
                scores.get((name, cell_type), {}), scores.get((FLOOR, cell_type), {}), n_cells=int(n_cells)
            )
            for cell_type, n_cells in self.n_matched(name).items()
        }

    def n_matched(self, name: str) -> pd.Series:
        """Count the cells of each type of a set that could be compared with as many test cells."""
        return np.minimum(self.n_compared[name], self.n_compared["test"])

    def _write_tables(self, folder: Path) -> None:
        self.overall.to_csv(folder / "overall.csv", index_label="metric", float_format="%.6g")
        score_rows(self).to_csv(folder / "by_type.csv", index=False, float_format="%.6g")
        self.n_cells.join(self.n_compared.add_prefix("compared_")).to_csv(folder / "n_cells.csv")
        self.by_population.to_csv(folder / "by_population.csv", index=False, float_format="%.6g")
        if len(self.by_covariate):
            self.by_covariate.to_csv(folder / "by_covariate.csv", index=False, float_format="%.6g")
        self.properties.to_csv(folder / "properties.csv", index=False, float_format="%.4g")
        if self.modalities is not None:
            self.modalities.to_csv(folder / "modalities.csv", float_format="%.4g")
        self.gene_statistics.to_csv(folder / "genes.csv", index=False, float_format="%.4g")


def embedding_of(sets: Sequence[tuple[dict[str, str], Cells]], *, seed: int) -> Callable[[], pd.DataFrame]:
    """Return a function that computes the joint UMAP of sets of cells, see :func:`joint_umap`, once."""

    @cache
    def embedding() -> pd.DataFrame:
        from bdm.evaluation.umap import joint_umap  # late, as UMAP takes seconds to import

        return joint_umap(sets, seed=seed)

    return embedding


def score_rows(evaluation: Evaluation) -> pd.DataFrame:
    """List the scores by type, a row for each type and set; rows of types that were not compared are empty."""
    index = pd.MultiIndex.from_product([evaluation.n_cells.index, evaluation.sets], names=["cell_type", "set"])
    scores = evaluation.by_type.swaplevel().reindex(index)
    numbers = evaluation.n_cells[["test", "train"]].add_prefix("n_")
    rows = scores.reset_index().join(numbers, on="cell_type")
    return rows[["cell_type", *numbers, "set", *scores]]


def score_table(overall: pd.DataFrame) -> str:
    """Format the overall scores as a table to print."""
    return str(overall.to_string(float_format="{:.3f}".format))


def verdict_lines(evaluation: Evaluation, name: str) -> list[str]:
    """Return lines to print: the verdict on all cells of a set, and its types by their verdicts, the best first."""
    verdicts = evaluation.verdicts_by_type(name)
    lines = [evaluation.verdict(name).text]
    if evaluation.modalities is not None:
        aucs = evaluation.modalities.xs("forest_auc", level="score")
        lines += [f"{of}: forest AUC {row[name]:.2f} (real cells {row[FLOOR]:.2f})" for of, row in aucs.iterrows()]
    for label in dict.fromkeys(one.label for one in sorted(verdicts.values(), key=lambda one: one.grade)):
        cell_types = [cell_type for cell_type, one in verdicts.items() if one.label == label]
        lines.append(f"{label}: {abbreviated(cell_types, n_shown=5)}")
    return lines


def require_set(evaluation: Evaluation, name: str, folder: Path) -> None:
    """Reject an evaluation without a set of this name or without the floor."""
    if not {name, FLOOR} <= set(evaluation.sets):
        raise InputError(f"{folder}/{Evaluation.kind}.json has no cells named {name}; evaluate again.")
