"""Tests between two conditions: differential expression by cell type, and differential composition."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats
from scipy.special import logit

from bdm.errors import missing_package
from bdm.evaluation.cells import Cells
from bdm.evaluation.genes import wilcoxon
from bdm.power.experiment import Experiment, ExperimentSettings, design_matrix

COLUMNS = ["cell_type", "gene", "log2_fold_change", "p_value", "fdr"]
METHODS = {
    "deseq2": "DESeq2",
    "deseq2_t": "DESeq2, t-distribution",
    "t_test": "t-test",
    "wilcoxon": "Wilcoxon of cells",
}  # in words
OTHER = "other"  # of the cells that are compared with the reference
DEFAULTS = ExperimentSettings()
MIN_RANGE = 1e-12  # of values that are not constant but for rounding


def pseudobulk_tests(
    adata: AnnData, settings: ExperimentSettings = DEFAULTS, *, t_distribution: bool = False
) -> pd.DataFrame:
    """Test genes in each cell type by DESeq2, on counts summed by sample.

    Parameters
    ----------
    adata
        Real or simulated cells, with raw counts.
    settings
        Columns of samples, conditions and cell types.
    t_distribution
        Compare Wald's statistic with a t-distribution, whose degrees of freedom are those of the samples and those that
        the prior of dispersions is worth. DESeq2's normal distribution has too many small p-values with few samples.

    Returns
    -------
    A row for each ``cell_type`` and tested ``gene``: ``log2_fold_change`` between the condition and the reference,
    ``p_value``, and ``fdr``, the p-value adjusted within the cell type (Benjamini and Hochberg). Without cell types
    of which too few samples have enough cells.

    Raises
    ------
    InputError
        As :meth:`bdm.power.experiment.Experiment.of`.
    """
    return expression_test(Experiment.of(adata, settings), "deseq2_t" if t_distribution else "deseq2")


def log_cpm_tests(adata: AnnData, settings: ExperimentSettings = DEFAULTS) -> pd.DataFrame:
    """Test genes in each cell type by a t-test of log2 counts per million, on counts summed by sample.

    It takes a hundredth of the time of DESeq2. Counts and results are as in :func:`pseudobulk_tests`.
    """
    return expression_test(Experiment.of(adata, settings), "t_test")


def wilcoxon_tests(adata: AnnData, settings: ExperimentSettings = DEFAULTS) -> pd.DataFrame:
    """Test genes in each cell type by Wilcoxon's rank sum test of cells, without regard to their samples.

    Cells of one sample are not independent, so this test finds differences between donors as well; it is here to be
    compared with ([Squair et al. 2021](https://doi.org/10.1038/s41467-021-25960-2)), not to be used. Cells and genes
    are those of :func:`pseudobulk_tests`, and so is the result.
    """
    return expression_test(Experiment.of(adata, settings), "wilcoxon")


def composition_tests(adata: AnnData, settings: ExperimentSettings = DEFAULTS) -> pd.DataFrame:
    """Test the share of each cell type in the samples by a t-test of its arcsine square root.

    The arcsine square root has about the same variance for any share, both from the sampling of cells and from
    differences between samples by a beta distribution, so the test is valid with few samples, with pairs, and where
    samples do not differ. It is the test of propeller ([Phipson et al.
    2022](https://doi.org/10.1093/bioinformatics/btac582)), without a prior of the variance over cell types.

    Parameters
    ----------
    adata
        Real or simulated cells.
    settings
        Columns of samples, conditions and cell types.

    Returns
    -------
    A row for each ``cell_type``: ``log_odds``, the natural logarithm of the odds of the type in the condition over the
    odds in the reference, ``p_value``, and ``fdr``, adjusted for the number of cell types (Benjamini and Hochberg).
    P-values are missing if the share is the same in all samples.

    Raises
    ------
    InputError
        As :meth:`bdm.power.experiment.Experiment.of`.
    """
    experiment = Experiment.of(adata, settings)
    return share_tests(experiment.n_cells, experiment.samples)


def expression_test(experiment: Experiment, method: str) -> pd.DataFrame:
    """Test the genes of all cell types of an experiment by one of ``METHODS``, with adjusted p-values."""
    found = {cell_type: TESTS[method](experiment, cell_type) for cell_type in experiment.cell_types}
    tables = [
        table.assign(cell_type=cell_type, fdr=adjusted(table["p_value"].to_numpy()))
        for cell_type, table in found.items()
        if table is not None and len(table)
    ]
    return pd.concat(tables, ignore_index=True)[COLUMNS] if tables else pd.DataFrame(columns=COLUMNS)


def deseq2_of(experiment: Experiment, cell_type: str, *, t_distribution: bool = False) -> pd.DataFrame | None:
    """Test the genes of one cell type by DESeq2."""
    bulk = experiment.pseudobulk(cell_type)
    if bulk is None or not bulk.tested.any():
        return None
    tests = deseq2_test()(bulk.counts[:, bulk.tested], bulk.design, t_distribution=t_distribution)
    return tests.assign(gene=experiment.genes[bulk.tested])


def deseq2_test() -> Callable[..., pd.DataFrame]:
    """Import the test of DESeq2, which needs an extra of bdm."""
    try:
        from bdm.power.deseq import deseq2
    except ImportError as error:
        raise missing_package("DESeq2", "pydeseq2", extra="power") from error
    return deseq2


def t_test_of(experiment: Experiment, cell_type: str) -> pd.DataFrame | None:
    """Test the genes of one cell type by the last coefficient of a linear model of log2 counts per million."""
    bulk = experiment.pseudobulk(cell_type)
    if bulk is None:
        return None
    library = bulk.counts.sum(axis=1, keepdims=True)
    # Half a count more, as in limma's voom, so that no logarithm is infinite
    log_cpm = np.log2((bulk.counts[:, bulk.tested] + 0.5) / (library + 1) * 1e6)
    log2_fold_change, p_value = t_test(log_cpm, bulk.design)
    genes = experiment.genes[bulk.tested]
    return pd.DataFrame({"gene": genes, "log2_fold_change": log2_fold_change, "p_value": p_value})


def t_test(values: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficient and p-value (missing if constant) of a design's last column, for samples x variables."""
    coefficients, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(values) - rank
    variance = ((values - design @ coefficients) ** 2).sum(axis=0) / freedom
    error = np.sqrt(variance * np.linalg.inv(design.T @ design)[-1, -1])
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = 2 * stats.t.sf(np.abs(coefficients[-1] / error), freedom)
    return coefficients[-1], np.where(np.ptp(values, axis=0) > MIN_RANGE, p_value, np.nan)


def wilcoxon_of(experiment: Experiment, cell_type: str) -> pd.DataFrame | None:
    """Test the genes of one cell type by Wilcoxon's rank sum test of log1p(CP10k)."""
    bulk = experiment.pseudobulk(cell_type)
    if bulk is None:
        return None
    used = np.isin(experiment.sample, experiment.used_samples(cell_type)) & (experiment.cell_type == cell_type)
    treated = experiment.samples["condition"].to_numpy()[experiment.sample[used]]
    cells = Cells(experiment.counts[used], np.where(treated == 1, OTHER, "reference"))
    p_value = wilcoxon(cells, [OTHER])[OTHER][1][bulk.tested]
    mean = [cells.cp10k[treated == code].mean(axis=0).A1[bulk.tested] for code in (0, 1)]
    with np.errstate(divide="ignore"):
        log2_fold_change = np.log2(mean[1]) - np.log2(mean[0])
    genes = experiment.genes[bulk.tested]
    return pd.DataFrame({"gene": genes, "log2_fold_change": log2_fold_change, "p_value": p_value})


def adjusted(p_value: np.ndarray) -> np.ndarray:
    """Adjust p-values for their number (Benjamini and Hochberg 1995); missing ones remain missing, and do not count."""
    found, known = np.full(len(p_value), np.nan), ~np.isnan(p_value)
    if known.any():
        found[known] = stats.false_discovery_control(p_value[known])
    return found


def share_tests(n_cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Test the shares of cell types by their numbers, samples x cell types, as :func:`composition_tests`."""
    if "pair" in samples:
        samples = samples[samples.groupby("pair")["condition"].transform("nunique") == 2]
    numbers = n_cells.loc[samples.index].to_numpy(dtype=float)
    total, design = numbers.sum(axis=1, keepdims=True), design_matrix(samples)
    _, p_value = t_test(np.arcsin(np.sqrt(numbers / total)), design)
    # Half a cell more, as a type may be absent from a sample
    log_odds = np.linalg.lstsq(design, logit((numbers + 0.5) / (total + 1)), rcond=None)[0][-1]
    table = pd.DataFrame({"cell_type": list(n_cells), "log_odds": log_odds, "p_value": p_value})
    return table.assign(fdr=adjusted(p_value))


TESTS: dict[str, Callable[[Experiment, str], pd.DataFrame | None]] = {
    "deseq2": deseq2_of,
    "deseq2_t": partial(deseq2_of, t_distribution=True),
    "t_test": t_test_of,
    "wilcoxon": wilcoxon_of,
}
