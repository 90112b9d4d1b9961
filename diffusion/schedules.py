"""Noise schedules: logsnr as a function of the schedule's own time."""

import abc
import dataclasses
import functools

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float64

from diffusion.levels import NoiseLevel, alpha_sigma, as_floats


class Schedule(abc.ABC):
    """A path from data to noise. Immutable; subclasses give `logsnr` and its inverse.

    Time is an index 0..T-1 for a discrete schedule (num_timesteps = T), of which 0 is the least
    noisy level and not clean data, and a number in [0, 1] for a continuous one (num_timesteps
    None). Given numpy, every method computes in float64 numpy; given jax arrays, in float32 jax.
    """

    # One of `levels.SCALINGS`.
    scaling: str
    num_timesteps: int | None

    @abc.abstractmethod
    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """log(alpha^2 / sigma^2) at time t; decreasing in t."""

    @abc.abstractmethod
    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """The time at which logsnr is reached."""

    @property
    @abc.abstractmethod
    def t_range(self) -> tuple[float, float]:
        """The least and most noisy time that a network is trained on or asked about."""

    def alpha(self, t: ArrayLike) -> ArrayLike:
        """Coefficient of the data at time t."""
        return alpha_sigma(self.logsnr(t), self.scaling)[0]

    def sigma(self, t: ArrayLike) -> ArrayLike:
        """Coefficient of the noise at time t."""
        return alpha_sigma(self.logsnr(t), self.scaling)[1]

    def level(self, t: ArrayLike) -> NoiseLevel:
        """The noise level at time t."""
        _, t = as_floats(t)
        logsnr = self.logsnr(t)
        return NoiseLevel(t, logsnr, *alpha_sigma(logsnr, self.scaling))

    def level_of_logsnr(self, logsnr: ArrayLike) -> NoiseLevel:
        """The noise level with this logsnr."""
        _, logsnr = as_floats(logsnr)
        return NoiseLevel(self.t_of_logsnr(logsnr), logsnr, *alpha_sigma(logsnr, self.scaling))

    @property
    def data(self) -> NoiseLevel:
        """Clean data (numpy scalars): logsnr +inf, alpha 1, sigma 0."""
        return self.level_of_logsnr(np.inf)

    def network_time(self, t: ArrayLike) -> ArrayLike:
        """What a network is told of time: t brought to 0..1000 whatever the schedule's length.

        Kept in float32: in bfloat16 only 507 of 1000 time steps are distinct.
        """
        _, t = as_floats(t)
        return t * (1000.0 / (self.num_timesteps or 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Discrete(Schedule):
    """Variance-preserving schedule given by beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}.

    Between indices logsnr is interpolated linearly; index -1, and all of t < 0, is clean data.
    """

    betas: Float64[np.ndarray, " timesteps"]
    scaling: str = dataclasses.field(default="vp", init=False)

    def __post_init__(self):
        if not np.all((self.betas > 0) & (self.betas < 1)):
            raise ValueError(
                f"betas must lie strictly between 0 and 1; seen {self.betas.min():.4g} to "
                f"{self.betas.max():.4g}. Use more timesteps or smaller betas."
            )

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.betas)

    @property
    def t_range(self) -> tuple[float, float]:
        """All indices."""
        return 0.0, self.num_timesteps - 1.0

    @functools.cached_property
    def _table(self) -> Float64[np.ndarray, " timesteps"]:
        """logsnr at indices 0..T-1."""
        log_alpha_bar = np.cumsum(np.log1p(-self.betas))
        return log_alpha_bar - np.log(-np.expm1(log_alpha_bar))

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """Table at an index, linear between indices, constant beyond T-1, +inf below 0."""
        xp, t = as_floats(t)
        table, last = xp.asarray(self._table, t.dtype), self.num_timesteps - 1
        inside = xp.clip(t, 0, last)
        index = xp.floor(inside).astype(int)
        lower, upper = table[index], table[xp.minimum(index + 1, last)]
        return xp.where(t < 0, xp.inf, lower + (inside - index) * (upper - lower))

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """Inverse of `logsnr` on the table's range; outside of it the nearest end, -1 for +inf."""
        xp, logsnr = as_floats(logsnr)
        table = xp.asarray(self._table, logsnr.dtype)
        t = xp.interp(-logsnr, -table, xp.arange(len(table), dtype=logsnr.dtype))
        return xp.where(logsnr == xp.inf, -1.0, t)


def linear(timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    """beta linear in t (DDPM, section 4), both ends times 1000 / timesteps (iDDPM's code)."""
    scale = 1000.0 / timesteps
    return Discrete(np.linspace(scale * beta_start, scale * beta_end, timesteps))


def cosine(timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Discrete:
    """alpha_bar(u) = cos^2(pi/2 (u + offset) / (1 + offset)), beta at most max_beta (iDDPM eq. 17).

    max_beta keeps the last level from being pure noise: logsnr ends at -19.8 for 1000 steps.
    """
    angle = (np.arange(timesteps + 1) / timesteps + offset) / (1.0 + offset) * (np.pi / 2)
    before, after = angle[:-1], angle[1:]
    # 1 - cos^2(after) / cos^2(before), written without the difference.
    betas = np.sin(after - before) * np.sin(after + before) / np.cos(before) ** 2
    return Discrete(np.minimum(betas, max_beta))


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """z = (1 - t) x + t eps (Liu et al. 2022; Lipman et al. 2022). t = 0 is clean data.

    Networks are trained and asked on [margin, 1 - margin] only: at t = 0 logsnr is +inf and at
    t = 1 -inf, where eps says nothing of x0 and weights of the form exp(logsnr) have no value.
    """

    margin: float
    scaling: str = dataclasses.field(default="flow", init=False)
    num_timesteps: None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        if not 0.0 < self.margin < 0.5:
            raise ValueError(f"rectified_flow: margin={self.margin} must lie in (0, 0.5)")

    @property
    def t_range(self) -> tuple[float, float]:
        """All times but `margin` at each end."""
        return self.margin, 1.0 - self.margin

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """2 log((1 - t) / t)."""
        xp, t = as_floats(t)
        with np.errstate(divide="ignore"):
            return 2.0 * (xp.log1p(-t) - xp.log(t))

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """sigmoid(-logsnr / 2)."""
        xp, logsnr = as_floats(logsnr)
        return xp.exp(-xp.logaddexp(0.0, 0.5 * logsnr))


def rectified_flow(margin: float = 1e-5) -> RectifiedFlow:
    """Straight lines from data to noise; `margin` is kept clear at both ends of time."""
    return RectifiedFlow(margin)


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
