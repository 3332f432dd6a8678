"""Proportions of populations that depend on inputs: logistic regression, as far as left-out cells support it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bdm.effects.surfaces import MIN_GAIN

RIDGES = (3.0, 1.0, 0.3, 0.1)  # candidate ridge penalties, largest first


def fit_log_odds(
    functions: np.ndarray, population: np.ndarray, log_share: np.ndarray, ridge: float, start: np.ndarray
) -> np.ndarray:
    """Fit a multinomial logistic regression with a ridge penalty; returns functions x populations."""
    inputs, offset = torch.from_numpy(functions), torch.from_numpy(log_share)
    target, coefficients = torch.from_numpy(population).long(), torch.tensor(start, requires_grad=True)
    optimiser = torch.optim.LBFGS([coefficients], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        misfit = torch.nn.functional.cross_entropy(inputs @ coefficients + offset, target, reduction="sum")
        value: Tensor = misfit + ridge / 2 * (coefficients**2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return np.asarray(coefficients.detach())


def choose_ridge(
    functions: np.ndarray, population: np.ndarray, log_share: np.ndarray, fold: np.ndarray
) -> tuple[float | None, float]:
    """Choose the penalty with which the functions make populations of left-out cells most probable.

    Parameters
    ----------
    functions
        Cells x functions.
    population
        Index of each cell's population.
    log_share
        Log share of each population over all cells.
    fold
        Group of each cell; each is left out in turn.

    Returns
    -------
    Penalty, or None if none is better than constant shares; and the gain in nats.
    """
    gains, folds = np.zeros(len(RIDGES)), np.unique(fold)
    for number in folds if len(folds) > 1 else []:
        held_out = fold == number
        log_odds = np.zeros((functions.shape[1], len(log_share)))
        for k, ridge in enumerate(RIDGES):
            log_odds = fit_log_odds(functions[~held_out], population[~held_out], log_share, ridge, log_odds)
            logits = functions[held_out] @ log_odds + log_share
            log_ratio = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) - log_share
            gains[k] += log_ratio[np.arange(len(logits)), population[held_out]].sum()
    best = int(gains.argmax())
    return (RIDGES[best], float(gains[best])) if gains[best] > MIN_GAIN else (None, 0.0)
