"""Posterior of a cell's latent: a normal around its mode, by the Laplace approximation."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bdm.autoencoder.observation import ObservationModel

# In standard deviations of the prior
MAX_STEP = 3  # prevents Newton's method from overshooting far from the mode
SHORTEST_STEP = 1e-3  # below it, a cell has reached its mode


@dataclass(frozen=True)
class Posterior:
    """Normal posterior of the latent.

    Attributes
    ----------
    mean
        Cells x latent dimensions.
    factor
        Lower Cholesky factor of the precision, cells x latent dimensions x latent dimensions.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def joined(cls, portions: "Iterable[Posterior]") -> "Posterior":
        """Concatenate the posteriors of several portions of cells."""
        means, factors = zip(*((portion.mean, portion.factor) for portion in portions), strict=True)
        return cls(torch.cat(means), torch.cat(factors))

    @property
    def scale(self) -> Tensor:
        """Standard deviation of each latent dimension, cells x latent dimensions."""
        return torch.cholesky_inverse(self.factor).diagonal(dim1=1, dim2=2).sqrt()

    @property
    def precision(self) -> Tensor:
        """Precision, cells x latent dimensions x latent dimensions."""
        return self.factor @ self.factor.transpose(1, 2)

    def sample(self, noise: Tensor) -> Tensor:
        """Sample latents from standard normal noise, both cells x latent dimensions."""
        deviation: Tensor = torch.linalg.solve_triangular(self.factor.transpose(1, 2), noise[:, :, None], upper=True)
        return self.mean + deviation.squeeze(2)

    def divergence(self, prior_mean: Tensor) -> Tensor:
        """Kullback-Leibler divergence from normals of unit covariance around ``prior_mean``, one a cell."""
        log_determinant = 2 * self.factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        variance = torch.cholesky_inverse(self.factor).diagonal(dim1=1, dim2=2).sum(dim=1)
        distance = ((self.mean - prior_mean) ** 2).sum(dim=1)
        return (variance + distance - prior_mean.shape[1] + log_determinant) / 2


def products_of(loadings: Tensor) -> Tensor:
    """Products of each pair of loadings of a gene, genes x pairs, from which information matrices are one product."""
    row, column = torch.triu_indices(loadings.shape[1], loadings.shape[1], device=loadings.device)
    by_dimension = loadings.T.contiguous()  # selecting rows takes a third of the time
    return (by_dimension[row] * by_dimension[column]).T


def number_of_pair(n_latent: int) -> Tensor:
    """Find the column of :func:`products_of` for each element of a matrix of dimensions by dimensions, in its order."""
    row, column = torch.triu_indices(n_latent, n_latent)
    number = torch.empty(n_latent, n_latent, dtype=torch.long)
    number[row, column] = number[column, row] = torch.arange(len(row))
    return number.flatten()


def information_of_latent(
    weight: Tensor, expression: Tensor, loadings: Tensor, products: Tensor, pair: Tensor
) -> Tensor:
    """Fisher information of counts on the latent of each cell, through the softmax.

    Parameters
    ----------
    weight, expression
        Information of each count on its log mean, and expression, both cells x genes.
    products, pair
        Results of :func:`products_of` and :func:`number_of_pair`.

    Returns
    -------
    Cells x latent dimensions x latent dimensions.
    """
    n_latent = loadings.shape[1]
    information: Tensor = (weight @ products)[:, pair].view(-1, n_latent, n_latent)
    by_weight, by_expression = weight @ loadings, expression @ loadings
    cross = by_weight[:, :, None] * by_expression[:, None, :]
    square = by_expression[:, :, None] * by_expression[:, None, :]
    information -= cross
    information -= cross.transpose(1, 2)
    information += weight.sum(dim=1)[:, None, None] * square
    return information


@torch.no_grad()
@torch.autocast("cuda", enabled=False)  # type: ignore[untyped-decorator]
def laplace_posterior(
    counts: Tensor,
    loadings: Tensor,
    offset: Tensor,
    observation: ObservationModel,
    prior_mean: Tensor,
    *,
    n_iterations: int,
    products: Tensor | None = None,
) -> Posterior:
    """Approximate posteriors by normals around their modes, by Newton's method with Fisher's information.

    With library size n and expression p = softmax(loadings z + offset), counts have the mean n p; z is normal around
    ``prior_mean`` with unit covariance. The observation model gives the derivatives by the logarithms of n p.

    Parameters
    ----------
    counts, offset
        Cells x genes.
    loadings
        Genes x latent dimensions.
    prior_mean
        Cells x latent dimensions; where the search starts.
    products
        Result of :func:`products_of` for the loadings, if it has been computed already.
    """
    n_latent = loadings.shape[1]
    products = products_of(loadings) if products is None else products
    pair, identity = number_of_pair(n_latent).to(loadings.device), torch.eye(n_latent, device=loadings.device)
    latent, factors = prior_mean.clone(), torch.empty(len(counts), n_latent, n_latent, device=loadings.device)
    moving = torch.arange(len(counts), device=loadings.device)
    x, offset_of, prior, of_cells = counts, offset, prior_mean, observation
    for _ in range(n_iterations):
        z = latent[moving]
        expression = torch.softmax((z @ loadings.T).add_(offset_of), dim=1)
        residual, weight = of_cells.derivatives(x, x.sum(dim=1, keepdim=True) * expression)
        # Gradient, through the softmax
        residual -= expression * residual.sum(dim=1, keepdim=True)
        gradient = residual @ loadings - (z - prior)
        information = information_of_latent(weight, expression, loadings, products, pair)
        # Step
        factor = torch.linalg.cholesky(information.add_(identity))
        step = torch.cholesky_solve(gradient[:, :, None], factor).squeeze(2)
        length = step.norm(dim=1)
        latent[moving] = z + step * (MAX_STEP / length).clamp(max=1)[:, None]
        factors[moving] = factor
        goes_on = length > SHORTEST_STEP
        if not goes_on.any():
            break
        if not goes_on.all():  # selecting cells copies their counts
            moving = moving[goes_on]
            x, offset_of, prior, of_cells = (
                counts[moving],
                offset[moving],
                prior_mean[moving],
                observation.select(moving),
            )
    return Posterior(latent, factors)
