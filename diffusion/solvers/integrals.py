"""Integrals of a polynomial through known values, against the weight of an exponential integrator.

A solver of the form x_next = a x + b int_0^1 w(s) m(s) ds knows m at a few places s (its nodes; 0
is where the step starts, 1 where it ends). With m replaced by the polynomial through them the
integral is a weighted sum of the values, exact for polynomials of that degree. Host, float64.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_S = 0.5 * (_NODES + 1.0)


def moments(h: float, count: int, kind: str) -> Float64[np.ndarray, " count"]:
    """int_0^1 w(s) s^k ds, k = 0..count-1, for w = exp(-h (1 - s)) ('x0'), exp(-h s) ('eps').

    The weights of DPM-Solver++ and of DPM-Solver and DEIS; h = 0 is that of plain Adams-Bashforth.
    """
    k = np.arange(count)
    if abs(h) < 16.0:
        exponent = _S - 1.0 if kind == "x0" else -_S
        return 0.5 * (_WEIGHTS * np.exp(h * exponent)) @ _S[:, None] ** k
    # By parts, which loses digits for small h only.
    end, slope = (1.0, -1.0) if kind == "x0" else (-np.exp(-h), 1.0)
    out = [-np.expm1(-h) / h]
    for i in k[1:]:
        out.append((end + slope * i * out[-1]) / h)
    return np.array(out)


def interpolation(
    nodes: Sequence[float], moments: Float64[np.ndarray, " count"]
) -> Float64[np.ndarray, " count"]:
    """Weights of the values at `nodes`: sum_j weight_j nodes_j^k = moments_k."""
    powers = np.asarray(nodes)[None, :] ** np.arange(len(nodes))[:, None]
    return np.linalg.solve(powers, moments)
