"""Steps of exponential integrators, in lambda = log(alpha / sigma), for every scaling.

Along the probability-flow ODE, with the steady part solved exactly (Lu et al. 2022):

    x0   x_t = (sigma_t / sigma_s) x_s + alpha_t int exp(lambda - lambda_t) x0 dlambda
    eps  x_t = (alpha_t / alpha_s) x_s - alpha_t int exp(-lambda) eps dlambda

With h = lambda_t - lambda_s the integrals are `integrals.moments` times h. The reverse SDE with eta
times its noise has the first form with h (1 + eta) in place of h.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from diffusion.levels import NoiseLevel
from diffusion.solvers.base import half_logsnr
from diffusion.solvers.integrals import interpolation, moments
from diffusion.solvers.linear import EPS, X0

PREDICTIONS = ("x0", "eps")
VALUE = {"x0": X0, "eps": EPS}


class Step(NamedTuple):
    """x_t = x_coef x_s + scale sum_j w_j m_j (+ noise_std noise), w from the moments."""

    x_coef: float
    scale: float
    noise_std: float
    # Length of the step in lambda, infinite from pure noise and to clean data; times 1 + eta.
    h: float

    def weights(
        self, kind: str, nodes: list[float], rule: str = "exact"
    ) -> Float64[np.ndarray, " count"]:
        """Weights of the values at `nodes`, in units of the step from its start.

        'exact' integrates the polynomial through the values; other rules change one of its moments.
        'midpoint' holds a line at its middle value (DPM-Solver++'s 2M, and UniPC's B_2(h)); 'bh1'
        is UniPC's B_1(h) for a line. 'half_curvature' is what the published codes of DPM-Solver++'s
        3M do to a parabola; 'reference' is that, and 'midpoint' for a line.
        """
        if not np.isfinite(self.h):
            return np.array([self.scale])
        known = moments(self.h, len(nodes), kind)
        if len(nodes) == 2 and rule in ("midpoint", "reference", "bh1"):
            known[1] = 0.5 if rule == "bh1" else 0.5 * known[0]
        if len(nodes) == 3 and rule in ("half_curvature", "reference"):
            known[2] *= 0.5
        return self.scale * interpolation(nodes, known)


def step(start: NoiseLevel, end: NoiseLevel, kind: str, eta: float = 0.0) -> Step:
    """The step from one level to another."""
    plain = half_logsnr(end) - half_logsnr(start)
    h = (1.0 + eta) * plain
    if kind == "eps":
        scale = -end.alpha * start.sigma / start.alpha * h
        return Step(end.alpha / start.alpha, scale, 0.0, h)
    if not np.isfinite(plain):
        # The limits of what is below: of pure noise any eta leaves nothing.
        x_coef, noise = (0.0, end.sigma) if eta else (end.sigma / start.sigma, 0.0)
        return Step(x_coef, end.alpha, noise, h)
    noise = end.sigma * np.sqrt(-np.expm1(-2.0 * eta * plain)) if eta else 0.0
    x_coef = end.sigma / start.sigma * np.exp(-eta * plain)
    return Step(x_coef, end.alpha * h, noise, h)


def nodes(grid: NoiseLevel, k: int, count: int) -> list[float]:
    """Where levels k, k - 1, ... of a grid lie in units of step k from its start, in lambda."""
    h = grid.logsnr[k + 1] - grid.logsnr[k]
    # The start itself apart: it may be pure noise.
    return [0.0, *((grid.logsnr[k - j] - grid.logsnr[k]) / h for j in range(1, count))]
