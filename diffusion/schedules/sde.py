"""The three SDEs of Song et al. 2021, "Score-based generative modeling", in continuous time."""

import dataclasses
import math

import numpy as np
from jax.typing import ArrayLike

from diffusion.levels import NoiseLevel, as_floats, log_alpha_sigma, namespace
from diffusion.schedules.base import Schedule


@dataclasses.dataclass(frozen=True)
class VP(Schedule):
    """alpha = exp(-t^2 (beta_max - beta_min) / 4 - t beta_min / 2), sigma as `scaling` says.

    t = 0 is clean data; networks are trained on [t_min, 1].
    """

    beta_min: float
    beta_max: float
    t_min: float
    scaling: str
    num_timesteps: None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        if not 0.0 < self.beta_min <= self.beta_max:
            raise ValueError(
                f"{self.scaling}: beta_min={self.beta_min}, beta_max={self.beta_max}; need "
                "0 < beta_min <= beta_max"
            )
        if not 0.0 < self.t_min < 1.0:
            raise ValueError(f"{self.scaling}: t_min={self.t_min} must lie in (0, 1)")

    @property
    def t_range(self) -> tuple[float, float]:
        """All times but those below t_min."""
        return self.t_min, 1.0

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """log alpha^2 - log sigma^2, sigma^2 from 1 - alpha^2 by expm1."""
        xp, t = as_floats(t)
        log_alpha_bar = -t * (0.5 * (self.beta_max - self.beta_min) * t + self.beta_min)
        with np.errstate(divide="ignore"):
            rest = xp.log(-xp.expm1(log_alpha_bar))
        return log_alpha_bar - (rest if self.scaling == "vp" else 2.0 * rest)

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """The positive root of -log alpha^2 = t^2 (beta_max - beta_min) / 2 + t beta_min."""
        decay = -2.0 * log_alpha_sigma(logsnr, self.scaling)[0]
        if self.beta_min == self.beta_max:
            return decay / self.beta_min
        with np.errstate(divide="ignore"):
            xp, inverse = namespace(decay), 1.0 / decay
        half = self.beta_min * inverse
        root = xp.sqrt(half**2 + 2.0 * (self.beta_max - self.beta_min) * inverse)
        with np.errstate(divide="ignore"):
            return 2.0 / (half + root)

    def network_time(self, level: NoiseLevel) -> ArrayLike:
        """999 t, the index in a table of 1000 (score_sde's code; EDM, table 1)."""
        return 999.0 * as_floats(level.t)[1]


def vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> VP:
    """Variance preserving, beta linear in t (section 3.4): `linear` in continuous time."""
    return VP(beta_min, beta_max, t_min, "vp")


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> VP:
    """alpha of `vp` with sigma = 1 - alpha^2, its variance's square (section 3.4, appendix B)."""
    return VP(beta_min, beta_max, t_min, "sub_vp")


@dataclasses.dataclass(frozen=True)
class VE(Schedule):
    """z = x + sigma eps, log sigma linear in t from sigma_min (0) to sigma_max (1)."""

    sigma_min: float
    sigma_max: float
    scaling: str = dataclasses.field(default="ve", init=False)
    num_timesteps: None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"ve: sigma_min={self.sigma_min}, sigma_max={self.sigma_max}; need "
                "0 < sigma_min < sigma_max"
            )

    @property
    def t_range(self) -> tuple[float, float]:
        """sigma_min to sigma_max."""
        return 0.0, 1.0

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """-2 log sigma(t)."""
        return -2.0 * (math.log(self.sigma_min) + self._log_ratio * as_floats(t)[1])

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """Inverse of `logsnr`, also outside [0, 1]; clean data is at -inf."""
        return (-0.5 * as_floats(logsnr)[1] - math.log(self.sigma_min)) / self._log_ratio

    def network_time(self, level: NoiseLevel) -> ArrayLike:
        """ln(sigma / 2) (EDM, table 1)."""
        return -0.5 * as_floats(level.logsnr)[1] - math.log(2.0)


def ve(sigma_min: float = 0.02, sigma_max: float = 100.0) -> VE:
    """Variance exploding (section 3.4), with the range of sigma of EDM's configuration C.

    The original trains on 0.01 to 50.
    """
    return VE(sigma_min, sigma_max)
