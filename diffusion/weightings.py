"""Weights of the squared error over noise levels.

A weighting is a function (logsnr, log_raw) -> log weight of the x0-loss, where log_raw is the
parameterization's `log_x0_weight` at the same level. The loss on the raw output then has weight
exp(weighting - log_raw), so a weighting means the same thing whatever is predicted.
"""

import math
from collections.abc import Callable

from jax.typing import ArrayLike

from diffusion.levels import namespace

Weighting = Callable[[ArrayLike, ArrayLike], ArrayLike]


def constant() -> Weighting:
    """1 on the network's own squared error ("L_simple" for eps, unit weight for v, flow and F)."""
    return lambda logsnr, log_raw: log_raw


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the x0-loss (Hang et al. 2023, eq. 5)."""
    if gamma <= 0:
        raise ValueError(f"min_snr: gamma={gamma} must be positive")
    return lambda logsnr, log_raw: namespace(logsnr).minimum(logsnr, math.log(gamma))
