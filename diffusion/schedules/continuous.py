"""Schedules of continuous time in [0, 1]."""

import dataclasses
import math

import numpy as np
from jax.typing import ArrayLike

from diffusion.levels import NoiseLevel, as_floats
from diffusion.schedules.base import Schedule


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """z = (1 - s) x + s eps (Liu et al. 2022; Lipman et al. 2022). t = 0 is clean data.

    s = shift t / (1 + (shift - 1) t), which lowers logsnr by 2 log(shift) at each t; with shift 1
    s = t. The network is told s, as Stable Diffusion 3's is.

    Networks are trained and asked on [margin, 1 - margin] only: at t = 0 logsnr is +inf and at
    t = 1 -inf, where eps says nothing of x0 and weights of the form exp(logsnr) have no value.
    """

    margin: float
    shift: float = 1.0
    scaling: str = dataclasses.field(default="flow", init=False)
    num_timesteps: None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        if not 0.0 < self.margin < 0.5:
            raise ValueError(f"rectified_flow: margin={self.margin} must lie in (0, 0.5)")
        if not self.shift > 0.0:
            raise ValueError(f"rectified_flow: shift={self.shift} must be positive")

    @property
    def t_range(self) -> tuple[float, float]:
        """All times but `margin` at each end."""
        return self.margin, 1.0 - self.margin

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """2 log((1 - t) / t) - 2 log(shift)."""
        xp, t = as_floats(t)
        with np.errstate(divide="ignore"):
            return 2.0 * (xp.log1p(-t) - xp.log(t)) - 2.0 * math.log(self.shift)

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """sigmoid(-logsnr / 2 - log(shift))."""
        xp, logsnr = as_floats(logsnr)
        return xp.exp(-xp.logaddexp(0.0, 0.5 * logsnr + math.log(self.shift)))

    def network_time(self, level: NoiseLevel) -> ArrayLike:
        """1000 s, the shifted time."""
        _, t = as_floats(level.t)
        return 1000.0 * self.shift * t / (1.0 + (self.shift - 1.0) * t)


def rectified_flow(margin: float = 1e-5, shift: float = 1.0) -> RectifiedFlow:
    """Straight lines from data to noise; `margin` is kept clear at both ends of time.

    shift: of the resolution, sqrt(dimensions / dimensions of the resolution that 1 is right for)
    (Stable Diffusion 3, eq. 23).
    """
    return RectifiedFlow(margin, shift)


@dataclasses.dataclass(frozen=True)
class EDM(Schedule):
    """z = x + sigma eps, sigma^(1/rho) linear in t from sigma_min (0) to sigma_max (1).

    An even grid in t is the grid of Karras et al. 2022, eq. 5. Times below 0 lead on to smaller
    sigma, down to clean data.
    """

    sigma_min: float
    sigma_max: float
    rho: float
    scaling: str = dataclasses.field(default="ve", init=False)
    num_timesteps: None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        if not (0.0 < self.sigma_min < self.sigma_max and self.rho > 0.0):
            raise ValueError(
                f"edm: sigma_min={self.sigma_min}, sigma_max={self.sigma_max}, rho={self.rho}; "
                "need 0 < sigma_min < sigma_max and rho > 0"
            )

    @property
    def t_range(self) -> tuple[float, float]:
        """sigma_min to sigma_max."""
        return 0.0, 1.0

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1.0 / self.rho), self.sigma_max ** (1.0 / self.rho)

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """-2 log sigma(t)."""
        xp, t = as_floats(t)
        low, high = self._roots
        with np.errstate(divide="ignore"):
            return -2.0 * self.rho * xp.log(xp.maximum(low + t * (high - low), 0.0))

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """Inverse of `logsnr`, also outside [0, 1]."""
        xp, logsnr = as_floats(logsnr)
        low, high = self._roots
        return (xp.exp(-0.5 * logsnr / self.rho) - low) / (high - low)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> EDM:
    """The variance-exploding path of Karras et al. 2022 with their time steps."""
    return EDM(sigma_min, sigma_max, rho)
