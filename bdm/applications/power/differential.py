"""Differential expression and composition between two conditions, with samples as replicates."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd
from anndata import AnnData
from annotated_types import Ge
from scipy import sparse, stats
from scipy.special import logit

from bdm._core.errors import InputError, abbreviated, missing_package
from bdm._core.schema import StageSettings, checked
from bdm._core.validation import column_rejection
from bdm.data.cells import Cells
from bdm.data.columns import complete_column
from bdm.data.counts import raw_counts
from bdm.data.gene_tests import adjusted, wilcoxon
from bdm.data.read import rna_in

KEYS = {"sample": "sample_key", "condition": "condition_key", "cell_type": "label_key", "pair": "pair_key"}
MIN_SAMPLES = 2  # in each condition; a single sample gives no variance between samples


@dataclass(frozen=True, kw_only=True)
class ExperimentSettings(StageSettings):
    """Columns of an experiment in ``obs``, and filters of samples and genes.

    Attributes
    ----------
    sample_key, condition_key, label_key
        Columns of ``obs`` with the sample, the condition and the cell type.
    pair_key
        Column of ``obs`` that pairs samples across conditions, such as the donor before and after a treatment. Tests
        then compare samples within pairs.
    counts
        Location of the raw counts: ``X``, ``raw``, the name of a layer, or ``auto``.
    conditions
        Reference condition and the condition to compare with it; by default both conditions in ``obs``, in order.
    min_cells
        Samples with fewer cells of a cell type are left out for this type.
    min_counts
        Genes are tested if at least n samples reach this count, where n is the size of the smaller condition.
    """

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
    """Counts of a cell type, summed by sample."""

    cell_type: str
    samples: np.ndarray  # rows of the samples in the experiment
    counts: np.ndarray  # samples x genes
    tested: np.ndarray  # whether each gene has enough counts to be tested
    design: np.ndarray  # design matrix, samples x coefficients; the last coefficient is the condition


@dataclass(frozen=True)
class Experiment:
    """Cells of an experiment with two conditions."""

    counts: sparse.csr_matrix  # raw counts, cells x genes
    genes: pd.Index
    cell_type: np.ndarray  # cell type of each cell
    sample: np.ndarray  # row of each cell's sample in ``samples``
    samples: pd.DataFrame  # columns ``condition`` (0 for the reference, else 1), and ``pair`` for paired samples
    settings: ExperimentSettings

    @classmethod
    def from_anndata(cls, adata: AnnData, settings: ExperimentSettings) -> "Experiment":
        """Read an experiment from an AnnData, and check its samples and pairs."""
        adata = rna_in(adata, counts=settings.counts)
        columns = label_columns(adata.obs, settings)
        reference, compared = compared_conditions(columns["condition"], settings)
        kept = columns["condition"].isin([reference, compared]).to_numpy()
        table = columns[kept].astype(str)
        samples = sample_table(table.drop(columns="cell_type"), settings)
        samples["condition"] = (samples["condition"] == compared).astype(int)
        for code, name in enumerate((reference, compared)):
            if (n_samples := int((samples["condition"] == code).sum())) < MIN_SAMPLES:
                raise InputError(
                    f"condition {name!r} has {n_samples} sample; tests need {MIN_SAMPLES} or more in each condition, "
                    "because a single sample shows no variation between samples."
                )
        cells = adata if kept.all() else adata[kept]
        counts = raw_counts(cells, source=settings.counts) if cells.n_vars else cells  # composition needs no counts
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
        table = pd.crosstab(self.samples.index[self.sample], self.cell_type)
        return table.reindex(index=self.samples.index, columns=self.cell_types, fill_value=0)

    def used_samples(self, cell_type: str) -> np.ndarray:
        """Return rows of samples with enough cells, in complete pairs."""
        enough = (self.n_cells[cell_type] >= self.settings.min_cells).to_numpy()
        if "pair" in self.samples:
            pairs = self.samples[enough].groupby("pair")["condition"].nunique()
            enough = enough & self.samples["pair"].isin(pairs.index[pairs == 2]).to_numpy()
        return np.flatnonzero(enough)

    def pseudobulk(self, cell_type: str) -> SampleCounts | None:
        """Sum counts of a cell type by sample; None with few samples."""
        used = self.used_samples(cell_type)
        samples = self.samples.iloc[used]
        design, n_smaller = design_matrix(samples), np.bincount(samples["condition"], minlength=2).min()
        if n_smaller < MIN_SAMPLES or len(used) <= design.shape[1]:
            return None
        cells = np.flatnonzero(self.cell_type == cell_type)
        shape = (len(self.samples), len(cells))
        indicator = sparse.csr_matrix((np.ones(len(cells)), (self.sample[cells], np.arange(len(cells)))), shape=shape)
        counts = np.rint((indicator @ self.counts[cells]).toarray()[used]).astype(int)
        tested = (counts >= self.settings.min_counts).sum(axis=0) >= n_smaller
        return SampleCounts(cell_type, used, counts, tested, design)


def label_columns(obs: pd.DataFrame, settings: ExperimentSettings) -> pd.DataFrame:
    """Read the columns named in ``KEYS``, with their categories in order."""
    columns = {}
    for name, argument in KEYS.items():
        if (key := getattr(settings, argument)) is None:
            continue
        if sentence := column_rejection(key, obs, argument=argument):
            raise InputError(sentence)
        labels = complete_column(obs, key)
        # By default, the first category of the condition is the reference
        categories = map(str, obs[key].cat.categories) if hasattr(obs[key], "cat") else sorted(set(labels))
        present = set(labels)
        columns[name] = pd.Categorical(labels, categories=[label for label in categories if label in present])
    return pd.DataFrame(columns, index=obs.index)


def compared_conditions(condition: pd.Series, settings: ExperimentSettings) -> tuple[str, str]:
    """Return the reference condition and the condition to compare with it."""
    categories = list(condition.cat.categories)
    requested = list(dict.fromkeys(settings.conditions)) or categories
    key, names = settings.condition_key, abbreviated(categories, n_shown=10)
    for name in requested:
        if name not in categories:
            raise InputError(f"no cell has the condition {name!r} in obs[{key!r}]; it has {names}.")
    if len(requested) != 2:
        raise InputError(
            f"two conditions are compared, but there are {len(requested)}; name the reference and one other by "
            f"`conditions=` (obs[{key!r}] has {names})."
        )
    return requested[0], requested[1]


def sample_table(table: pd.DataFrame, settings: ExperimentSettings) -> pd.DataFrame:
    """Return a table of samples, in alphabetical order, with conditions and pairs."""
    samples = table.drop_duplicates().set_index("sample").sort_index()
    repeated = samples.index[samples.index.duplicated()]
    if len(repeated):
        sample = table[table["sample"] == repeated[0]]
        column = "condition" if sample["condition"].nunique() > 1 else "pair"
        raise InputError(
            f"sample {repeated[0]!r} has cells of several values of obs[{getattr(settings, KEYS[column])!r}] "
            f"({abbreviated(sorted(sample[column].unique()), n_shown=5)}); give each sample a single value."
        )
    if "pair" in samples:
        complete = samples.groupby("pair")["condition"].agg(["size", "nunique"])
        if (complete["size"] > complete["nunique"]).any():
            pair = complete.index[complete["size"] > complete["nunique"]][0]
            raise InputError(
                f"{pair!r} of obs[{settings.pair_key!r}] has several samples in one condition; a pair has one in each."
            )
        if (complete["nunique"] == 2).sum() < MIN_SAMPLES:
            raise InputError(
                f"fewer than {MIN_SAMPLES} values of obs[{settings.pair_key!r}] have a sample in both conditions; "
                "leave out `pair_key=` to compare samples that are not paired."
            )
    return samples


def design_matrix(samples: pd.DataFrame) -> np.ndarray:
    """Return the design matrix: intercept, all pairs except the first, and condition."""
    condition = samples[["condition"]].to_numpy(dtype=float)
    intercept = np.ones_like(condition)
    if "pair" not in samples:
        return np.hstack([intercept, condition])
    pairs = pd.get_dummies(samples["pair"], dtype=float).to_numpy()[:, 1:]
    return np.hstack([intercept, pairs, condition])


# ---- tests

COLUMNS = ["cell_type", "gene", "log2_fold_change", "p_value", "fdr"]
METHODS = {
    "deseq2": "DESeq2",
    "deseq2_t": "DESeq2, t-distribution",
    "t_test": "t-test",
    "wilcoxon": "Wilcoxon of cells",
}  # names in figures and tables
COMPARED = "compared"  # label of cells in the condition that is compared with the reference
DEFAULTS = ExperimentSettings()
MIN_RANGE = 1e-12  # smaller ranges are constant up to rounding


@checked
def pseudobulk_tests(
    adata: AnnData, settings: ExperimentSettings = DEFAULTS, *, t_distribution: bool = False
) -> pd.DataFrame:
    """Test genes in each cell type by DESeq2 on pseudobulk counts.

    Parameters
    ----------
    t_distribution
        Compare Wald's statistic with a t-distribution, whose degrees of freedom are residual plus prior (from the
        dispersions). DESeq2's normal distribution gives too many small p-values with few samples.

    Returns
    -------
    Table with a row for each ``cell_type`` and tested ``gene``: ``log2_fold_change`` of the condition over the
    reference, ``p_value``, and ``fdr``, the p-value adjusted within the cell type (Benjamini and Hochberg). Cell types
    with too few samples are left out.
    """
    return expression_test(Experiment.from_anndata(adata, settings), "deseq2_t" if t_distribution else "deseq2")


@checked
def log_cpm_tests(adata: AnnData, settings: ExperimentSettings = DEFAULTS) -> pd.DataFrame:
    """Test genes in each cell type by a t-test of log2 CPM.

    This test uses the same pseudobulk counts as DESeq2, and is faster.

    Returns
    -------
    Table as from :func:`pseudobulk_tests`.
    """
    return expression_test(Experiment.from_anndata(adata, settings), "t_test")


@checked
def wilcoxon_tests(adata: AnnData, settings: ExperimentSettings = DEFAULTS) -> pd.DataFrame:
    """Test genes in each cell type by Wilcoxon's test, ignoring samples.

    Use it only for comparison: cells of a sample are not independent, so this test also finds differences between
    donors ([Squair et al. 2021](https://doi.org/10.1038/s41467-021-25960-2)).

    Returns
    -------
    Table as from :func:`pseudobulk_tests`, with the same cells and genes.
    """
    return expression_test(Experiment.from_anndata(adata, settings), "wilcoxon")


@checked
def composition_tests(adata: AnnData, settings: ExperimentSettings = DEFAULTS) -> pd.DataFrame:
    """Test the share of each cell type by a t-test.

    The arcsine square root of shares stabilises the variance, both of sampled cells and of beta-distributed differences
    between samples. The test is therefore valid with few samples, with pairs, and without differences between samples.
    It is propeller's test ([Phipson et al. 2022](https://doi.org/10.1093/bioinformatics/btac582)), without its prior on
    the variance.

    Parameters
    ----------
    adata
        Real or simulated cells.

    Returns
    -------
    Table with a row for each ``cell_type``: ``log_odds`` (natural log odds ratio of the condition over the reference),
    ``p_value``, and ``fdr``, adjusted for the number of cell types (Benjamini and Hochberg). P-values are missing if
    all samples have the same share.
    """
    experiment = Experiment.from_anndata(adata, settings)
    return share_tests(experiment.n_cells, experiment.samples)


def expression_test(experiment: Experiment, method: str) -> pd.DataFrame:
    """Test all cell types of an experiment, and adjust p-values."""
    tables = []
    for cell_type in experiment.cell_types:
        bulk = experiment.pseudobulk(cell_type)
        if bulk is not None and bulk.tested.any():
            tests = TESTS[method](experiment, bulk)
            fdr = adjusted(tests["p_value"].to_numpy())
            tables.append(tests.assign(cell_type=cell_type, gene=experiment.genes[bulk.tested], fdr=fdr))
    return pd.concat(tables, ignore_index=True)[COLUMNS] if tables else pd.DataFrame(columns=COLUMNS)


def by_deseq2(_: Experiment, bulk: SampleCounts, *, t_distribution: bool = False) -> pd.DataFrame:
    """Test the genes of a cell type by DESeq2."""
    return deseq2_test()(bulk.counts[:, bulk.tested], bulk.design, t_distribution=t_distribution)


def deseq2_test() -> Callable[..., pd.DataFrame]:
    """Import DESeq2's test, which needs the extra ``power``."""
    try:
        from bdm.applications.power.deseq import deseq2
    except ImportError as error:
        raise missing_package("DESeq2", "pydeseq2", extra="power") from error
    return deseq2


def by_t_test(_: Experiment, bulk: SampleCounts) -> pd.DataFrame:
    """Test the genes of a cell type by a t-test of log2 CPM."""
    library = bulk.counts.sum(axis=1, keepdims=True)
    # Add half a count to keep logarithms finite, as in limma's voom
    log_cpm = np.log2((bulk.counts[:, bulk.tested] + 0.5) / (library + 1) * 1e6)
    log2_fold_change, p_value = t_test(log_cpm, bulk.design)
    return pd.DataFrame({"log2_fold_change": log2_fold_change, "p_value": p_value})


def t_test(values: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Test a design's last coefficient for samples x variables; NaN if constant."""
    coefficients, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(values) - rank
    variance = ((values - design @ coefficients) ** 2).sum(axis=0) / freedom
    error = np.sqrt(variance * np.linalg.inv(design.T @ design)[-1, -1])
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = 2 * stats.t.sf(np.abs(coefficients[-1] / error), freedom)
    return coefficients[-1], np.where(np.ptp(values, axis=0) > MIN_RANGE, p_value, np.nan)


def by_wilcoxon(experiment: Experiment, bulk: SampleCounts) -> pd.DataFrame:
    """Test the genes of a cell type by Wilcoxon's test of log1p(CP10k) in cells."""
    used = np.isin(experiment.sample, bulk.samples) & (experiment.cell_type == bulk.cell_type)
    condition = experiment.samples["condition"].to_numpy()[experiment.sample[used]]
    cells = Cells(experiment.counts[used], np.where(condition == 1, COMPARED, "reference"))
    p_value = wilcoxon(cells, [COMPARED])[COMPARED][1][bulk.tested]
    mean = [cells.cp10k[condition == code].mean(axis=0).A1[bulk.tested] for code in (0, 1)]
    with np.errstate(divide="ignore"):
        log2_fold_change = np.log2(mean[1]) - np.log2(mean[0])
    return pd.DataFrame({"log2_fold_change": log2_fold_change, "p_value": p_value})


def share_tests(n_cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Test shares as :func:`composition_tests`; ``n_cells``: samples x cell types."""
    if "pair" in samples:
        samples = samples[samples.groupby("pair")["condition"].transform("nunique") == 2]
    numbers = n_cells.loc[samples.index].to_numpy(dtype=float)
    total, design = numbers.sum(axis=1, keepdims=True), design_matrix(samples)
    _, p_value = t_test(np.arcsin(np.sqrt(numbers / total)), design)
    # Add half a cell, because a type may be absent from a sample
    log_odds = np.linalg.lstsq(design, logit((numbers + 0.5) / (total + 1)), rcond=None)[0][-1]
    table = pd.DataFrame({"cell_type": list(n_cells), "log_odds": log_odds, "p_value": p_value})
    return table.assign(fdr=adjusted(p_value))


TESTS: dict[str, Callable[[Experiment, SampleCounts], pd.DataFrame]] = {
    "deseq2": by_deseq2,
    "deseq2_t": partial(by_deseq2, t_distribution=True),
    "t_test": by_t_test,
    "wilcoxon": by_wilcoxon,
}
