"""Tests of differential composition: whether the share of a cell type differs between conditions."""

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import logit

from bdm.power.experiment import Experiment, ExperimentSettings, design_matrix
from bdm.power.expression import DEFAULTS, adjusted, t_test

COLUMNS = ["cell_type", "log_odds", "p_value", "fdr"]


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
    return composition_table(Experiment.of(adata, settings))


def composition_table(experiment: Experiment) -> pd.DataFrame:
    """Test the composition of an experiment, as :func:`composition_tests`."""
    return share_tests(experiment.n_cells, experiment.samples)


def share_tests(n_cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Test the shares of cell types by their numbers of cells, as :func:`composition_tests`.

    Parameters
    ----------
    n_cells
        Samples x cell types.
    samples
        ``condition`` (0 in the reference, 1 in the other), and ``pair`` if samples are paired, of each sample.
    """
    if "pair" in samples:
        samples = samples[samples.groupby("pair")["condition"].transform("nunique") == 2]
    numbers = n_cells.loc[samples.index].to_numpy(dtype=float)
    total, design = numbers.sum(axis=1, keepdims=True), design_matrix(samples)
    _, p_value = t_test(np.arcsin(np.sqrt(numbers / total)), design)
    # Half a cell more, as a type may be absent from a sample
    log_odds = np.linalg.lstsq(design, logit((numbers + 0.5) / (total + 1)), rcond=None)[0][-1]
    table = pd.DataFrame({"cell_type": list(n_cells), "log_odds": log_odds, "p_value": p_value})
    return table.assign(fdr=adjusted(p_value))[COLUMNS]
