"""Noise levels: z = alpha x + sigma eps, and their one coordinate, logsnr = log(alpha^2 / sigma^2).

Everything here is given numpy or jax arrays and answers in kind: float64 numpy for plans and
tables, jax's default float (float32) inside a compiled program.
"""

from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from diffusion.options import check_option

AnyArray = jax.Array | np.ndarray
SCALINGS = ("vp", "ve", "flow")


class NoiseLevel(NamedTuple):
    """A noise level, or an array of them; all fields have one shape.

    `t` is the schedule's own time: an index 0..T-1 of a discrete schedule (-1: clean data), or a
    number in [0, 1]. `logsnr` is +inf for clean data and -inf for pure noise.
    """

    t: ArrayLike
    logsnr: ArrayLike
    alpha: ArrayLike
    sigma: ArrayLike

    def like(self, x: AnyArray) -> "NoiseLevel":
        """The level with axes of size 1 added on the right, to multiply x [batch ...]."""
        return NoiseLevel(*(expand_like(field, x) for field in self))


def expand_like(value: ArrayLike, x: AnyArray) -> ArrayLike:
    """`value`, a scalar or [batch], with axes of size 1 added on the right up to those of x."""
    missing = np.ndim(x) - np.ndim(value)
    return value if np.ndim(value) == 0 else value.reshape(value.shape + (1,) * missing)


def namespace(x: ArrayLike) -> ModuleType:
    """`jax.numpy` for a jax array (or tracer), `numpy` for anything else."""
    return jnp if isinstance(x, jax.Array) else np


def as_floats(x: ArrayLike) -> tuple[ModuleType, AnyArray]:
    """The namespace of x, and x as its floats: float64 in numpy, the default float in jax."""
    if isinstance(x, jax.Array):
        return jnp, x.astype(jnp.result_type(float))
    return np, np.asarray(x, np.float64)


def alpha_sigma(logsnr: ArrayLike, scaling: str) -> tuple[ArrayLike, ArrayLike]:
    """The signal and noise coefficients (alpha, sigma) at `logsnr`, exact at +-inf.

    vp: alpha^2 + sigma^2 = 1 (DDPM). ve: alpha = 1 (EDM). flow: alpha + sigma = 1 (rectified flow).
    Both coefficients come from logsnr through logaddexp, so neither is a difference of
    near-equal numbers: 1 - alpha_bar in float32 is off by 2e-4 at the first step of DDPM.
    """
    check_option("scaling", scaling, SCALINGS)
    xp, logsnr = as_floats(logsnr)
    if scaling == "ve":
        return xp.ones_like(logsnr), xp.exp(-0.5 * logsnr)
    if scaling == "vp":
        log_alpha, log_sigma = (-0.5 * xp.logaddexp(0.0, sign * logsnr) for sign in (-1, 1))
    else:
        log_alpha, log_sigma = (-xp.logaddexp(0.0, sign * 0.5 * logsnr) for sign in (-1, 1))
    return xp.exp(log_alpha), xp.exp(log_sigma)
