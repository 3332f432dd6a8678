from dataclasses import dataclass

import numpy as np

from bdm.simulation.programmes import Programme


@dataclass(frozen=True)
class Population:
    """What the counts of a cell are drawn from, given its type and library size.

    Attributes
    ----------
    cell_types
        In the order of the rows of ``log_expression``.
    log_expression
        Natural logarithm of the share of each gene in a cell whose factors are 0, types x genes.
    loadings
        Change of log expression with each of a cell's standard normal factors, factors x genes.
    inverse_dispersion
        r of each gene: counts of mean m have variance m + m**2 / r.
    """

    cell_types: tuple[str, ...]
    log_expression: np.ndarray
    loadings: np.ndarray
    inverse_dispersion: np.ndarray

    def draw(self, cell_type: np.ndarray, library_size: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw counts, cells x genes, from the index of each cell's type and its expected number of counts."""
        factors = generator.standard_normal((len(cell_type), len(self.loadings)))
        mean = library_size[:, None] * shares(self.log_expression[cell_type] + factors @ self.loadings)
        return generator.poisson(
            mean * generator.gamma(self.inverse_dispersion, size=mean.shape) / self.inverse_dispersion
        )


def expression_by_type(base: np.ndarray, programmes: tuple[Programme, ...], cell_types: tuple[str, ...]) -> np.ndarray:
    """Natural logarithm of the share of each gene, types x genes, from that at the root, up to a constant."""
    logits = np.tile(base, (len(cell_types), 1))
    for programme in programmes:
        below = np.isin(cell_types, programme.cell_types)
        logits[np.ix_(below, programme.genes)] += np.log(2) * programme.log2_fold_change
    return np.log(shares(logits))


def shares(logits: np.ndarray) -> np.ndarray:
    """Softmax over genes, cells x genes."""
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)
