"""How well each gene alone distinguishes the sides of a contrast, by noise level."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from bdm.interpretation.ancestral_states import AncestralStates
from bdm.interpretation.contrasts import Contrast
from bdm.latent.moments import Normal, matrix_power
from bdm.model.model import BranchedModel, log_expression


@dataclass(frozen=True)
class Commitment:
    """How well each gene alone distinguishes the two sides of a contrast, under noise; all arrays are by gene.

    With the linear decoder, a gene's log expression is a direction in whitened space. Along it the sides' means are
    ``shift`` apart, and noise of level sigma adds to their variances; so, taken as normal, they have

        AUC(sigma) = Phi( |shift| / sqrt(variance + 2 sigma**2 size**2) ).

    This is the formula of the hierarchy's branch levels, for one gene in place of all: at the hierarchy's threshold, a
    gene that distinguishes the sides as well as all genes together would commit at the branch's level. The noise of
    counts is left out: it would hide rare genes at any level.

    Attributes
    ----------
    shift
        Difference of mean log expression, inside minus outside, in natural units: the branch's shift read as genes.
    variance
        Of log expression, the sum over both sides.
    size
        Change in log expression with one whitened unit along the gene's direction.
    """

    shift: np.ndarray
    variance: np.ndarray
    size: np.ndarray

    def auc(self, sigma: float) -> np.ndarray:
        """AUC at a noise level."""
        return np.asarray(norm.cdf(np.abs(self.shift) / np.sqrt(self.variance + 2 * (sigma * self.size) ** 2)))

    def level(self, threshold: float) -> np.ndarray:
        """Find the commitment level: the highest noise level at which the AUC is ``threshold`` or more.

        NaN where there is none, as the sides overlap more than that in the gene without any noise.
        """
        room = (self.shift / norm.ppf(threshold)) ** 2 - self.variance
        return np.where(room >= 0, np.sqrt(np.maximum(room, 0) / 2) / self.size, np.nan)


def commitment_of(model: BranchedModel, states: AncestralStates, contrast: Contrast) -> Commitment:
    """Measure the commitment of each gene to the sides of a contrast, at the ancestral state of the node.

    Type-specific decoders shift the sides by what they add to the shared decoder.
    """
    share = states.expression.loc[contrast.node].to_numpy() / 1e4
    sides = contrast.inside, contrast.outside
    shared = commitment(gene_directions(model, share), *map(model.moments.mixture, sides))
    inside, outside = (type_specific_shift(model, side) for side in sides)
    return replace(shared, shift=shared.shift + inside - outside)


def type_specific_shift(model: BranchedModel, populations: tuple[str, ...]) -> np.ndarray:
    """Mean change in log expression by type-specific decoders, by gene, over populations weighted as in training."""
    members = [model.populations.index(name) for name in populations]
    share = (model.moments.weight[members] / model.moments.weight[members].sum()).tolist()
    total = np.zeros(len(model.autoencoder.genes))
    for name, of_population in zip(populations, share, strict=True):
        if name in model.autoencoder.adapters:
            own, shared = (log_expression(model, name, type_specific=own) for own in (True, False))
            total += of_population * (own - shared)
    return total


def commitment(directions: np.ndarray, inside: Normal, outside: Normal) -> Commitment:
    """Measure commitment along directions in whitened space, genes x dimensions."""
    shift = directions @ (inside.mean - outside.mean).double().numpy()
    covariance = (inside.covariance + outside.covariance).double().numpy()
    variance = np.einsum("gi,ij,gj->g", directions, covariance, directions, optimize=True)
    return Commitment(shift, variance, np.linalg.norm(directions, axis=1))


def gene_directions(model: BranchedModel, share: np.ndarray) -> np.ndarray:
    """Gradient of each gene's log expression in whitened space, genes x dimensions.

    The loadings, brought to whitened space, less their mean over genes: the softmax subtracts log sum exp, whose
    gradient is the loadings' mean by expression. It changes with expression, by one amount for all genes.

    Parameters
    ----------
    share
        Share of each gene in expression where the gradient is taken; sums to 1.
    """
    loadings = model.autoencoder.network.loadings.weight.detach().double()
    to_latent = matrix_power(model.whitening.covariance.double(), 0.5)[: loadings.shape[1]]
    directions = (loadings @ to_latent).numpy()
    return np.asarray(directions - share @ directions)
