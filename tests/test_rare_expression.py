"""Expression of few cells by empirical Bayes, with known truth."""

import numpy as np
import pytest
import torch

from bdm.autoencoder.rare_types import shrink_expression

N_GENES, SIZE, DISPERSION = 400, 1000.0, 0.5


def references(rng: np.random.Generator) -> np.ndarray:
    """Log expression of five populations, which differ in a fifth of the genes."""
    common = rng.normal(-6.5, 1, N_GENES)
    return common + rng.normal(0, 1.5, (5, N_GENES)) * (rng.random((5, N_GENES)) < 0.2)


def counts_of(expression: np.ndarray, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    rate = rng.gamma(1 / DISPERSION, DISPERSION, (n_cells, N_GENES)) * SIZE * expression
    return rng.poisson(rate)


def shrunken(counts: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exposure = torch.full((len(counts), 1), SIZE)
    typical = torch.full((N_GENES,), float(np.log(DISPERSION)))
    expression, dispersion = shrink_expression(torch.tensor(counts), exposure, torch.tensor(known), typical)
    return expression.numpy(), dispersion.numpy()


@pytest.mark.parametrize(("n_cells", "max_ratio"), [(6, 0.65), (20, 0.75), (2000, 1.05)])
def test_error_of_few_cells_is_smaller_than_that_of_their_own_mean(n_cells, max_ratio):
    # A tenth of the genes differ from the first reference
    rng = np.random.default_rng(0)
    known = references(rng)
    truth = np.exp(known[0] + rng.normal(0, 1.5, N_GENES) * (rng.random(N_GENES) < 0.1))
    counts = counts_of(truth, n_cells, rng)
    expression, dispersion = shrunken(counts, known)
    own = (counts.sum(axis=0) + 0.5) / (n_cells * SIZE)
    error, error_of_own = (np.sqrt(np.mean(np.log(estimate / truth) ** 2)) for estimate in (expression, own))
    assert error < max_ratio * error_of_own
    assert np.median(dispersion) == pytest.approx(DISPERSION, rel=0.3)


def test_genes_have_their_own_dispersion():
    rng = np.random.default_rng(0)
    known = references(rng)
    counts = counts_of(np.exp(known[0]), 50, rng)
    genes = np.argsort(-known[0])[:100]
    counts[:, genes[:50]] = rng.poisson(SIZE * np.exp(known[0, genes[:50]]), (50, 50))
    _, dispersion = shrunken(counts, known)
    assert np.median(dispersion[genes[:50]]) < 0.2 * DISPERSION
    assert np.median(dispersion[genes[50:]]) == pytest.approx(DISPERSION, rel=0.3)
