"""Weights of the squared error over noise levels.

A weighting gives the log of the weight of the x0-loss, from the `Point` that a level is. The loss
on the raw output then has weight exp(weighting - log_raw), so a weighting means the same whatever
is predicted. SNR = exp(logsnr). What the weight and the time sampler make together,
weight times density over logsnr, is drawn by `--mode=inspect`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from jax.typing import ArrayLike

from diffusion.levels import namespace


class Point(NamedTuple):
    """What a weight may depend on; fields of one shape, or scalars.

    `log_raw` is the parameterization's `log_x0_weight` at the level, `log_density` that of logsnr
    in training (`time_samplers.Draw`).
    """

    logsnr: ArrayLike
    log_raw: ArrayLike
    log_density: ArrayLike


Weighting = Callable[[Point], ArrayLike]


def constant() -> Weighting:
    """1 on the network's own squared error ("L_simple" for eps, unit weight for v, flow and F)."""
    return lambda at: at.log_raw


def snr() -> Weighting:
    """SNR: 1 on the eps-loss, whatever is predicted (DDPM, eq. 14)."""
    return lambda at: at.logsnr


def truncated_snr(high: float = math.inf) -> Weighting:
    """max(SNR, 1) (Salimans and Ho 2022, eq. 7), and no more than `high`."""
    if not high >= 1.0:
        raise ValueError(f"truncated_snr: high={high} must be 1 or more")
    return lambda at: namespace(at.logsnr).clip(at.logsnr, 0.0, math.log(high))


def snr_plus_one() -> Weighting:
    """SNR + 1: 1 on the v-loss of a vp path (Salimans and Ho 2022, eq. 8)."""
    return lambda at: _log_sum(at.logsnr, 0.0)


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) (Hang et al. 2023, eq. 5)."""
    log_gamma = _log("min_snr: gamma", gamma)
    return lambda at: namespace(at.logsnr).minimum(at.logsnr, log_gamma)


def soft_min_snr(gamma: float = 4.0) -> Weighting:
    """SNR gamma / (SNR + gamma), the smooth minimum (Crowson et al. 2024, section 3.4).

    gamma is 1 / sigma_data^2 there.
    """
    log_gamma = _log("soft_min_snr: gamma", gamma)
    return lambda at: -_log_sum(-at.logsnr, -log_gamma)


def p2(k: float = 1.0, gamma: float = 1.0) -> Weighting:
    """SNR / (k + SNR)^gamma (Choi et al. 2022, eq. 8)."""
    log_k = _log("p2: k", k)
    return lambda at: at.logsnr - gamma * _log_sum(at.logsnr, log_k)


def edm(sigma_data: float = 0.5) -> Weighting:
    """SNR + 1 / sigma_data^2: 1 on EDM's F (Karras et al. 2022, section 5)."""
    log_precision = -2.0 * _log("edm: sigma_data", sigma_data)
    return lambda at: _log_sum(at.logsnr, log_precision)


def sigmoid(bias: float = 0.0) -> Weighting:
    """sigmoid(bias - logsnr) on the eps-loss in the measure d logsnr (Kingma and Gao 2023).

    The density of the time sampler is divided out: it changes the variance of the loss alone.
    """
    return lambda at: _in_logsnr(-_log_sum(-at.logsnr, -bias), at)


def likelihood() -> Weighting:
    """1 on the eps-loss in the measure d logsnr: the variational bound of continuous time, times 2.

    This is g(t)^2-weighting of the score (Song et al. 2021, "Maximum likelihood training", eq. 7)
    and VDM's eq. 18; like `sigmoid` it does not depend on the time sampler.
    """
    return lambda at: _in_logsnr(at.logsnr, at)


def _in_logsnr(log_weight: ArrayLike, at: Point) -> ArrayLike:
    """The weight in the measure d logsnr as one in that of the draws.

    Zero terminal SNR is at logsnr -inf, with density 0: exp(logsnr) d logsnr = d SNR is nothing
    there, so no weight is left either.
    """
    xp = namespace(at.logsnr)
    terminal = at.logsnr == -xp.inf
    return xp.where(terminal, -xp.inf, log_weight - xp.where(terminal, 0.0, at.log_density))


def _log(field: str, value: float) -> float:
    if not value > 0.0:
        raise ValueError(f"{field}={value} must be positive")
    return math.log(value)


def _log_sum(a: ArrayLike, b: float) -> ArrayLike:
    """log(e^a + e^b)."""
    return namespace(a).logaddexp(a, b)
