from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]


def noise_levels(high: float, low: float, *, sigma_max: float, n_levels: int, sigma_min: float = 0.02) -> list[float]:
    """Noise levels from ``high`` down to ``low`` at which a branch's cells stop, both included.

    Between the ends lie those levels of the grid of Karras et al. 2022 (arXiv 2206.00364), with rho = 7 from
    ``sigma_max`` to ``sigma_min``, that are not closer to the lower end than half a grid step, nor to the upper than
    a quarter.

    Parameters
    ----------
    n_levels
        Levels of the grid over the whole way from ``sigma_max`` down.
    """
    rho = 7
    ramp = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n_levels, dtype=torch.float64)
    grid = (ramp**rho).tolist()
    step = (sigma_max / sigma_min) ** (1 / (2 * (n_levels - 1)))
    inner = [sigma for sigma in grid if low * step < sigma < high / step**0.5]
    return [high, *inner, low]


def heun(denoise: Denoise, x: Tensor, sigmas: list[float]) -> Tensor:
    """Follow the probability-flow ODE through the noise levels, with second-order steps (Karras et al. 2022).

    Parameters
    ----------
    denoise
        Denoised x at a noise level.
    x
        Cells at noise level ``sigmas[0]``, cells x dimensions.
    sigmas
        In the order to be followed; downwards generates, upwards encodes; only the last may be 0.
    """
    for sigma, sigma_next in pairwise(sigmas):
        # Euler step
        slope = (x - denoise(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * slope
        # Second-order correction
        if sigma_next > 0:
            slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
    return x


def stochastic_heun(
    denoise: Denoise, x: Tensor, sigmas: list[float], generator: torch.Generator, *, churn: float = 0.4
) -> Tensor:
    """As :func:`heun`, raising the noise by a share ``churn`` of the level before every step down."""
    for sigma, sigma_next in pairwise(sigmas):
        raised = min(sigma * (1 + churn), sigmas[0]) if sigma_next > 0 else sigma
        x = x + (raised**2 - sigma**2) ** 0.5 * torch.randn(x.shape, generator=generator).to(x)
        x = heun(denoise, x, [raised, sigma_next])
    return x
