"""The Gaussian chain: q(z_t | x0), its posterior, divergences and likelihoods.

For two levels s (less noisy) and t of one path, all is said by alpha, sigma and the ratio of SNRs,
SNR_t / SNR_s = exp(logsnr_t - logsnr_s). With c = -expm1(logsnr_t - logsnr_s) in (0, 1]:

    q(z_t | z_s)      variance sigma_t^2 c                         (beta_t of a vp chain)
    q(z_s | z_t, x0)  variance sigma_s^2 c
                      mean alpha_s c x0 + (alpha_t / alpha_s) (sigma_s / sigma_t)^2 z_t
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float64

from diffusion.levels import AnyArray, NoiseLevel, namespace
from diffusion.options import check_option
from diffusion.schedules import Schedule

LIKELIHOODS = ("exact", "tanh")


def q_sample(
    x0: Float[AnyArray, "batch *shape"], eps: Float[AnyArray, "batch *shape"], level: NoiseLevel
) -> Float[AnyArray, "batch *shape"]:
    """z = alpha x0 + sigma eps."""
    level = level.like(x0)
    return level.alpha * x0 + level.sigma * eps


class Posterior(NamedTuple):
    """q(z_s | z_t, x0): mean x0_coef x0 + z_coef z_t; fields have the shape of the levels."""

    x0_coef: ArrayLike
    z_coef: ArrayLike
    variance: ArrayLike
    log_variance: ArrayLike


def posterior(now: NoiseLevel, after: NoiseLevel) -> Posterior:
    """q(z_s | z_t, x0) for t = now and s = after, less noisy; variance 0 where s is clean data."""
    xp = namespace(now.logsnr)
    difference = now.logsnr - after.logsnr
    c = -xp.expm1(difference)
    with np.errstate(divide="ignore"):
        log_variance = 2.0 * xp.log(after.sigma) + xp.log(c)
    return Posterior(
        x0_coef=after.alpha * c,
        z_coef=now.alpha / after.alpha * (after.sigma / now.sigma) ** 2,
        variance=after.sigma**2 * c,
        log_variance=log_variance,
    )


def transition_log_variance(now: NoiseLevel, after: NoiseLevel) -> ArrayLike:
    """log of the variance of q(z_t | z_s), t = now and s = after: log beta_t of a vp chain."""
    xp = namespace(now.logsnr)
    return 2.0 * xp.log(now.sigma) + xp.log(-xp.expm1(now.logsnr - after.logsnr))


class ReverseChain(NamedTuple):
    """What p(z_s | z_t) needs for each step of a chain, as float64 tables.

    log_small is the posterior's log variance, log_large that of the forward step (log beta): the
    variances that are best for data of no and of unit variance, and the ends of `learned_range`.
    """

    x0_coef: Float64[np.ndarray, " steps"]
    z_coef: Float64[np.ndarray, " steps"]
    log_small: Float64[np.ndarray, " steps"]
    log_large: Float64[np.ndarray, " steps"]


def reverse_chain(grid: NoiseLevel) -> ReverseChain:
    """The chain that visits `grid` (numpy [N + 1], noisiest first); tables of N.

    A step to clean data has posterior variance 0, whose log would be -inf: as in OpenAI's code it
    takes the log_small of the step before it (log beta where there is none).
    """
    now, after = (NoiseLevel(*(field[part] for field in grid)) for part in (np.s_[:-1], np.s_[1:]))
    steps = posterior(now, after)
    log_large = transition_log_variance(now, after)
    log_small = steps.log_variance.copy()
    if after.sigma[-1] == 0.0:
        log_small[-1] = log_small[-2] if len(log_small) > 1 else log_large[-1]
    return ReverseChain(steps.x0_coef, steps.z_coef, log_small, log_large)


def full_chain(schedule: Schedule) -> ReverseChain:
    """The chain of all T steps of a discrete schedule, indexed by t (0 is the step to the data)."""
    chain = reverse_chain(schedule.level(np.arange(schedule.num_timesteps - 1, -2, -1)))
    return ReverseChain(*(field[::-1] for field in chain))


def learned_range_log_variance(
    fraction: ArrayLike, log_small: ArrayLike, log_large: ArrayLike
) -> ArrayLike:
    """The network's v as a log variance: -1 is log_small, +1 log_large (iDDPM eq. 15).

    v is not squashed: outside [-1, 1] it extrapolates, as in OpenAI's code.
    """
    fraction = (fraction + 1.0) / 2.0
    return fraction * log_large + (1.0 - fraction) * log_small


def normal_kl(
    mean1: ArrayLike, log_variance1: ArrayLike, mean2: ArrayLike, log_variance2: ArrayLike
) -> ArrayLike:
    """KL(N(mean1, var1) || N(mean2, var2)) in nats, elementwise."""
    xp = namespace(mean1 - mean2)
    ratio = log_variance1 - log_variance2
    # expm1(r) - r rather than exp(r) - 1 - r: the two variances are nearly equal at a good fit.
    return 0.5 * (xp.expm1(ratio) - ratio + (mean1 - mean2) ** 2 * xp.exp(-log_variance2))


def discretized_log_likelihood(
    x: Float[Array, "*shape"],
    mean: Float[Array, "*shape"],
    log_std: Float[Array, "*#shape"],
    method: str = "exact",
) -> Float[Array, "*shape"]:
    """log P (nats) of 8-bit values under a Gaussian, x = v / 127.5 - 1 in bins of +-1/255.

    The bins of 0 and 255 reach to -inf and +inf. 'exact' takes differences of log Phi; 'tanh' is
    the approximation of DDPM's and iDDPM's code with its floor of 1e-12 (39.9 bits), for parity.
    """
    check_option("method", method, LIKELIHOODS)
    inverse_std = jnp.exp(-log_std)
    upper = inverse_std * (x - mean + 1.0 / 255.0)
    lower = inverse_std * (x - mean - 1.0 / 255.0)
    first, last = x < -0.999, x > 0.999
    if method == "tanh":
        cdf_upper, cdf_lower = _tanh_cdf(upper), _tanh_cdf(lower)
        mass = jnp.where(first, cdf_upper, jnp.where(last, 1.0 - cdf_lower, cdf_upper - cdf_lower))
        return jnp.log(jnp.maximum(mass, 1e-12))
    # Phi(upper) - Phi(lower) = Phi(-lower) - Phi(-upper): taken on the side where both are small.
    flip = upper + lower > 0
    low, high = jnp.where(flip, -upper, lower), jnp.where(flip, -lower, upper)
    log_high = _log_ndtr(high)
    inside = log_high + jnp.log(-jnp.expm1(_log_ndtr(low) - log_high))
    return jnp.where(first, _log_ndtr(upper), jnp.where(last, _log_ndtr(-lower), inside))


def _tanh_cdf(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return 0.5 * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _log_ndtr(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log Phi(x): by erfc, and below -12 by the asymptotic series, for the sake of its gradient.

    The derivative of jax.scipy's is exp(log pdf - log Phi), a difference of numbers of size
    x^2 / 2: in float32 wrong by a factor at x = -1e4, which a poor prediction reaches at t = 0.
    """
    near = jnp.clip(x, -12.0, 12.0)
    mass = 0.5 * jax.scipy.special.erfc(jnp.where(near > 0, near, -near) / math.sqrt(2.0))
    central = jnp.where(near > 0, jnp.log1p(-mass), jnp.log(mass))
    tail = jnp.minimum(x, -12.0)
    i = 1.0 / tail**2
    series = jnp.log1p(-i * (1.0 - 3.0 * i * (1.0 - 5.0 * i * (1.0 - 7.0 * i))))
    asymptotic = -0.5 * tail**2 - jnp.log(-tail) - 0.5 * math.log(2.0 * math.pi) + series
    return jnp.where(x < -12.0, asymptotic, central)
