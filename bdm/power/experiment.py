"""Experiments to test: cells of samples in two conditions, and their counts summed by sample (pseudobulk)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from anndata import AnnData
from annotated_types import Ge
from scipy import sparse

from bdm.data.columns import complete_column
from bdm.data.counts import raw_counts
from bdm.data.read import rna_in
from bdm.errors import InputError, abbreviated
from bdm.schema import StageSettings
from bdm.validation import column_rejection

MIN_SAMPLES = 2  # of a condition, as the variance between samples is unknown with one


@dataclass(frozen=True, kw_only=True)
class ExperimentSettings(StageSettings):
    """Where an AnnData has the samples of an experiment, and what is tested.

    Attributes
    ----------
    sample_key, condition_key, label_key
        Columns of ``obs`` with the sample, the condition and the cell type.
    pair_key
        Column of ``obs`` whose values have one sample in each condition, such as the donor before and after a
        treatment; tests then compare samples within pairs.
    counts
        Where the raw counts are: ``X``, ``raw``, the name of a layer, or ``auto``.
    conditions
        The reference, and the condition that is compared with it; by default the two that there are, in their order.
    min_cells
        Samples with fewer cells of a cell type are not used for this type.
    min_counts
        Genes are tested if as many samples as the smaller condition has reach this number of counts.
    """

    section: ClassVar[str] = "experiment"

    sample_key: str = "sample"
    condition_key: str = "condition"
    label_key: str = "cell_type"
    pair_key: str | None = None
    counts: str = "auto"
    conditions: tuple[str, ...] = ()
    min_cells: Annotated[int, Ge(1)] = 10
    min_counts: Annotated[int, Ge(1)] = 10


@dataclass(frozen=True)
class SampleCounts:
    """Counts of the cells of one cell type, summed by sample."""

    counts: np.ndarray  # samples x genes
    tested: np.ndarray  # whether each gene has enough counts to be tested
    # Samples x coefficients of a linear model, the last of which is the difference between conditions
    design: np.ndarray


@dataclass(frozen=True)
class Experiment:
    """Cells of samples in two conditions."""

    counts: sparse.csr_matrix  # raw counts, cells x genes
    genes: pd.Index
    # cell_type, sample: of each cell: the name of its type, and the row of its sample in ``samples``
    cell_type: np.ndarray
    sample: np.ndarray
    # A row for each sample, with ``condition`` (0 in the reference, 1 in the other), and ``pair`` if there are pairs
    samples: pd.DataFrame
    settings: ExperimentSettings

    @classmethod
    def of(cls, adata: AnnData, settings: ExperimentSettings) -> "Experiment":
        """Read an experiment from an AnnData."""
        adata = rna_in(adata)
        columns = label_columns(adata.obs, settings)
        reference, other = compared_conditions(columns["condition"], settings)
        kept = columns["condition"].isin([reference, other]).to_numpy()
        table = columns[kept].astype(str)
        samples = samples_of(table.drop(columns="cell_type"), settings)
        samples["condition"] = (samples["condition"] == other).astype(int)
        for code, name in enumerate((reference, other)):
            if (n_samples := int((samples["condition"] == code).sum())) < MIN_SAMPLES:
                raise InputError(
                    f"condition {name!r} has {n_samples} sample; tests need {MIN_SAMPLES} or more in each condition, "
                    "as differences between samples are not known from one."
                )
        cells = adata if kept.all() else adata[kept]
        counts = raw_counts(cells, source=settings.counts) if cells.n_vars else cells  # shares need no counts
        sample = samples.index.get_indexer(table["sample"])
        cell_type = table["cell_type"].to_numpy(dtype=str)
        return cls(sparse.csr_matrix(counts.X), counts.var_names, cell_type, sample, samples, settings)

    @property
    def cell_types(self) -> list[str]:
        """Names of the cell types, in alphabetical order."""
        return sorted(set(self.cell_type))

    @property
    def n_cells(self) -> pd.DataFrame:
        """Numbers of cells, samples x cell types."""
        cell_type = pd.Categorical(self.cell_type, categories=self.cell_types)
        table = np.zeros((len(self.samples), len(self.cell_types)), dtype=int)
        np.add.at(table, (self.sample, cell_type.codes), 1)
        return pd.DataFrame(table, index=self.samples.index, columns=self.cell_types)

    def used_samples(self, cell_type: str) -> np.ndarray:
        """Rows of the samples with enough cells of a type, in which pairs are complete; none if there are too few."""
        enough = (self.n_cells[cell_type] >= self.settings.min_cells).to_numpy()
        if "pair" in self.samples:
            pairs = self.samples[enough].groupby("pair")["condition"].nunique()
            enough = enough & self.samples["pair"].isin(pairs.index[pairs == 2]).to_numpy()
        rows = np.flatnonzero(enough)
        design = design_matrix(self.samples.iloc[rows])
        n_by_condition = np.bincount(self.samples["condition"].iloc[rows], minlength=2)
        too_few = n_by_condition.min() < MIN_SAMPLES or len(rows) <= design.shape[1]
        return rows[:0] if too_few else rows

    def pseudobulk(self, cell_type: str) -> SampleCounts | None:
        """Sum the counts of a cell type by sample; None if too few samples have enough of its cells."""
        rows = self.used_samples(cell_type)
        if not len(rows):
            return None
        cells = np.flatnonzero(self.cell_type == cell_type)
        shape = (len(self.samples), len(cells))
        of_sample = sparse.csr_matrix((np.ones(len(cells)), (self.sample[cells], np.arange(len(cells)))), shape=shape)
        counts = np.rint((of_sample @ self.counts[cells]).toarray()[rows]).astype(int)
        smaller = np.bincount(self.samples["condition"].iloc[rows]).min()
        tested = (counts >= self.settings.min_counts).sum(axis=0) >= smaller
        return SampleCounts(counts, tested, design_matrix(self.samples.iloc[rows]))


def keys_of(settings: ExperimentSettings) -> dict[str, str]:
    """Name the columns of an experiment by what they hold."""
    keys = {"sample": settings.sample_key, "condition": settings.condition_key, "cell_type": settings.label_key}
    return keys if settings.pair_key is None else keys | {"pair": settings.pair_key}


def label_columns(obs: pd.DataFrame, settings: ExperimentSettings) -> pd.DataFrame:
    """Read the columns of an experiment as categories of text, in the order of the data, by what they hold."""
    columns = {}
    arguments = ("sample_key", "condition_key", "label_key", "pair_key")
    for (name, key), argument in zip(keys_of(settings).items(), arguments, strict=False):
        if sentence := column_rejection(key, obs, argument=argument):
            raise InputError(sentence)
        labels = complete_column(obs, key)
        # The first condition in the order of the data is the reference
        known = map(str, obs[key].cat.categories) if hasattr(obs[key], "cat") else sorted(set(labels))
        present = set(labels)
        columns[name] = pd.Categorical(labels, categories=[label for label in known if label in present])
    return pd.DataFrame(columns, index=obs.index)


def compared_conditions(condition: pd.Series, settings: ExperimentSettings) -> tuple[str, str]:
    """Name the reference, and the condition to compare with it."""
    known = list(condition.cat.categories)
    requested = list(dict.fromkeys(settings.conditions)) or known
    key, there_are = settings.condition_key, abbreviated(known, n_shown=10)
    for name in requested:
        if name not in known:
            raise InputError(f"no cell has the condition {name!r} in obs[{key!r}]; it has {there_are}.")
    if len(requested) != 2:
        raise InputError(
            f"two conditions are compared, but there are {len(requested)}; name the reference and one other by "
            f"`conditions=` (obs[{key!r}] has {there_are})."
        )
    return requested[0], requested[1]


def samples_of(table: pd.DataFrame, settings: ExperimentSettings) -> pd.DataFrame:
    """List samples with their conditions and pairs, in alphabetical order."""
    samples = table.drop_duplicates().set_index("sample").sort_index()
    repeated = samples.index[samples.index.duplicated()]
    if len(repeated):
        sample = table[table["sample"] == repeated[0]]
        what = "condition" if sample["condition"].nunique() > 1 else "pair"
        raise InputError(
            f"sample {repeated[0]!r} has cells of several values of obs[{keys_of(settings)[what]!r}] "
            f"({abbreviated(sorted(sample[what].unique()), n_shown=5)}); give each sample one."
        )
    if "pair" in samples:
        complete = samples.groupby("pair")["condition"].agg(["size", "nunique"])
        if (complete["size"] > complete["nunique"]).any():
            pair = complete.index[complete["size"] > complete["nunique"]][0]
            raise InputError(
                f"{pair!r} of obs[{settings.pair_key!r}] has several samples in one condition; pairs have one in each."
            )
        if (complete["nunique"] == 2).sum() < MIN_SAMPLES:
            raise InputError(
                f"fewer than {MIN_SAMPLES} values of obs[{settings.pair_key!r}] have a sample in both conditions; "
                "leave out `pair_key=` to compare samples that are not paired."
            )
    return samples


def design_matrix(samples: pd.DataFrame) -> np.ndarray:
    """Linear model of samples: intercept, pairs but the first if samples are paired, and condition."""
    condition = samples[["condition"]].to_numpy(dtype=float)
    intercept = np.ones_like(condition)
    if "pair" not in samples:
        return np.hstack([intercept, condition])
    pairs = pd.get_dummies(samples["pair"], dtype=float).to_numpy()[:, 1:]
    return np.hstack([intercept, pairs, condition])
