"""Solver of the probability-flow equation and of its stochastic form, and the noise levels that it steps through."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
RHO = 7  # of the grid of Karras et al. 2022 (arXiv 2206.00364)
SIGMA_MIN = 0.1  # in whitened units; below it the denoised x hardly changes


class Solver(Protocol):
    """Follows the diffusion through noise levels; :func:`dpm_solver` by default, which describes the arguments."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: list[float],
        *,
        trend: Tensor | None = None,
        churn: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return cells at the last noise level, cells x dimensions."""


def noise_levels(
    high: float, low: float, *, sigma_max: float, n_levels: int, sigma_min: float = SIGMA_MIN
) -> list[float]:
    """Noise levels of the solver on a branch from ``high`` down to ``low``, both included.

    Evenly spaced in ``sigma**(1 / RHO)`` (Karras et al. 2022), as dense as ``n_levels`` levels above 0 on a whole path
    from ``sigma_max`` through ``sigma_min`` to 0; a branch has at least one step.
    """
    if high <= sigma_min:
        return [high, low]
    end = max(low, sigma_min)
    top, bottom = high ** (1 / RHO), end ** (1 / RHO)
    whole = sigma_max ** (1 / RHO) - sigma_min ** (1 / RHO)
    n_steps = max(1, round((n_levels - 1) * (top - bottom) / whole))
    inner = [(top + (bottom - top) * step / n_steps) ** RHO for step in range(1, n_steps)]
    return [high, *inner, end] if end == low else [high, *inner, end, low]


def dpm_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: list[float],
    *,
    trend: Tensor | None = None,
    churn: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Follow the diffusion through noise levels by DPM-Solver++(2M), with one evaluation of the denoiser per step.

    Each step solves the equation exactly for a denoised x that is extrapolated from the last two, linearly in the
    logarithm of sigma (Lu et al. 2022, arXiv 2211.01095); the first extrapolates by ``trend``, its derivative by log
    sigma (cells x dimensions). ``sigmas`` go down to generate and up to encode; only the last may be 0. ``churn`` is
    the rate at which fresh noise replaces the noise of cells on the way down: 0 for the probability-flow ODE, 1 for the
    reverse-time SDE.
    """
    before, step = None, 0.0
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            return denoised
        if before is not None:
            trend = (denoised - before) / step
        ratio = sigma_next / sigma
        step = math.log(ratio)
        middle = denoised if trend is None else denoised + trend * (step / 2)
        x = middle + ratio ** (1 + churn) * (x - middle)
        if churn:
            fresh = sigma_next * (1 - ratio ** (2 * churn)) ** 0.5
            x = x + fresh * torch.randn(x.shape, generator=generator).to(x)
        before = denoised
    return x
