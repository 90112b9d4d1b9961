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
SCALINGS = ("vp", "sub_vp", "ve", "flow")


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


def log_alpha_sigma(logsnr: ArrayLike, scaling: str) -> tuple[ArrayLike, ArrayLike]:
    """(log alpha, log sigma) at `logsnr`, exact at +-inf.

    vp: alpha^2 + sigma^2 = 1 (DDPM). sub_vp: sigma = 1 - alpha^2 (Song et al. 2021, appendix B).
    ve: alpha = 1 (EDM). flow: alpha + sigma = 1 (rectified flow).
    """
    check_option("scaling", scaling, SCALINGS)
    xp, logsnr = as_floats(logsnr)
    if scaling == "ve":
        return xp.zeros_like(logsnr), -0.5 * logsnr
    if scaling == "vp":
        return tuple(-0.5 * xp.logaddexp(0.0, sign * logsnr) for sign in (-1, 1))
    if scaling == "flow":
        return tuple(-xp.logaddexp(0.0, sign * 0.5 * logsnr) for sign in (-1, 1))
    # alpha / (1 - alpha^2) = exp(logsnr / 2) solved for alpha.
    log_alpha = -xp.arcsinh(0.5 * xp.exp(-0.5 * logsnr))
    with np.errstate(divide="ignore"):
        return log_alpha, xp.log(-xp.expm1(2.0 * log_alpha))


def alpha_sigma(logsnr: ArrayLike, scaling: str) -> tuple[ArrayLike, ArrayLike]:
    """The signal and noise coefficients (alpha, sigma) at `logsnr`, exact at +-inf.

    Both come from logsnr through their logs, so neither is a difference of near-equal numbers:
    1 - alpha_bar in float32 is off by 2e-4 at the first step of DDPM.
    """
    log_alpha, log_sigma = log_alpha_sigma(logsnr, scaling)
    xp = namespace(log_alpha)
    return xp.exp(log_alpha), xp.exp(log_sigma)


def logsnr_of_alpha(alpha: ArrayLike, complement: ArrayLike, scaling: str) -> ArrayLike:
    """logsnr where alpha is the signal's coefficient; `complement` is 1 - alpha, in all its digits.

    -inf at alpha = 0, +inf at complement = 0. Under 've' alpha says nothing of logsnr.
    """
    check_option("scaling", scaling, tuple(name for name in SCALINGS if name != "ve"))
    xp = namespace(alpha)
    with np.errstate(divide="ignore"):
        log_alpha, log_complement = xp.log(alpha), xp.log(complement)
    if scaling == "flow":
        return 2.0 * (log_alpha - log_complement)
    # 1 - alpha^2, which is sigma^2 of vp and sigma of sub_vp.
    rest = log_complement + xp.log1p(alpha)
    return 2.0 * log_alpha - (rest if scaling == "vp" else 2.0 * rest)
