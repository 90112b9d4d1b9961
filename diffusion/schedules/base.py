"""What a noise schedule is: logsnr as a function of the schedule's own time."""

import abc

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Key

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

    def network_time(self, level: NoiseLevel) -> ArrayLike:
        """What a network is told of a level: t brought to 0..1000 whatever the schedule's length.

        Kept in float32: in bfloat16 only 507 of 1000 time steps are distinct.
        """
        _, t = as_floats(level.t)
        return t * (1000.0 / (self.num_timesteps or 1))

    def init(self, key: Key[Array, ""]) -> dict:
        """Parameters of a schedule that is learned with the network; empty where nothing is."""
        return {}

    def bind(self, params: dict) -> "Schedule":
        """The schedule at these parameters (numpy or jax arrays); itself where nothing is learned.

        A learned schedule that is not bound stands at the values that `init` gives.
        """
        return self
