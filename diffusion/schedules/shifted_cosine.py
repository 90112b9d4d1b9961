"""The cosine schedule in continuous time, shifted with the resolution (Hoogeboom et al. 2023)."""

import dataclasses
import math

import numpy as np
from jax.typing import ArrayLike

from diffusion.levels import as_floats
from diffusion.schedules.base import Schedule
from diffusion.schedules.inverse import bisect


@dataclasses.dataclass(frozen=True)
class ShiftedCosine(Schedule):
    """logsnr = -2 log tan(a + (b - a) t) + shift, from logsnr_max at t = 0 to logsnr_min at t = 1.

    The angles a and b are those of the bounds less the shift, so that the ends stay where they are
    and only the middle moves.
    """

    shift: float
    logsnr_min: float
    logsnr_max: float
    scaling: str = dataclasses.field(default="vp", init=False)
    num_timesteps: None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(
                f"logsnr_min={self.logsnr_min} must be less than logsnr_max={self.logsnr_max}"
            )

    @property
    def t_range(self) -> tuple[float, float]:
        """logsnr_max to logsnr_min."""
        return 0.0, 1.0

    @property
    def _angles(self) -> tuple[float, float]:
        ends = self.logsnr_max, self.logsnr_min
        return tuple(math.atan(math.exp(-0.5 * (end - self.shift))) for end in ends)

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """Decreasing in t; beyond the ends on to +-inf, which the angles 0 and pi/2 give."""
        xp, t = as_floats(t)
        low, high = self._angles
        angle = low + (high - low) * t
        # The angle to the nearer of 0 and pi/2 keeps the digits at both ends.
        other = 0.5 * math.pi - high + (high - low) * (1.0 - t)
        with np.errstate(divide="ignore"):
            tangent = xp.log(xp.sin(xp.maximum(angle, 0.0)))
            tangent = tangent - xp.log(xp.sin(xp.maximum(other, 0.0)))
        return self.shift - 2.0 * tangent

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """Inverse of `logsnr`, also outside [0, 1]."""
        xp, logsnr = as_floats(logsnr)
        low, high = self._angles
        return (xp.arctan(xp.exp(-0.5 * (logsnr - self.shift))) - low) / (high - low)


def shifted_cosine(
    image_size: int = 64, noise_size: int = 64, logsnr_min: float = -15.0, logsnr_max: float = 15.0
) -> ShiftedCosine:
    """Cosine with logsnr lower by 2 log(image_size / noise_size) (section 3.1).

    An image of image_size pixels a side, averaged down to noise_size, then has the SNR of the plain
    cosine schedule, which this is where the two are equal.
    """
    shift = _shift("shifted_cosine: image_size", image_size, "noise_size", noise_size)
    return ShiftedCosine(shift, logsnr_min, logsnr_max)


@dataclasses.dataclass(frozen=True)
class InterpolatedCosine(Schedule):
    """(1 - t) of one shifted cosine schedule and t of another, with the same ends."""

    start: ShiftedCosine
    end: ShiftedCosine
    scaling: str = dataclasses.field(default="vp", init=False)
    num_timesteps: None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        if not np.all(np.diff(self.logsnr(np.linspace(0.0, 1.0, 1001))) < 0):
            raise ValueError(
                f"interpolated_cosine: between shifts of {self.start.shift:.3g} and "
                f"{self.end.shift:.3g} logsnr does not always fall; take noise sizes closer to "
                "each other"
            )

    @property
    def t_range(self) -> tuple[float, float]:
        """logsnr_max to logsnr_min."""
        return 0.0, 1.0

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """The mean of the two at t; +inf below 0, constant beyond 1."""
        xp, t = as_floats(t)
        share = xp.clip(t, 0.0, 1.0)
        mean = (1.0 - share) * self.start.logsnr(share) + share * self.end.logsnr(share)
        return xp.where(t < 0, xp.inf, mean)

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """Inverse of `logsnr` on its range; outside of it the nearest end, -1 for +inf."""
        xp, logsnr = as_floats(logsnr)
        return xp.where(logsnr == xp.inf, -1.0, bisect(self.logsnr, logsnr, 0.0, 1.0))


def interpolated_cosine(
    image_size: int = 256,
    noise_size_start: int = 256,
    noise_size_end: int = 32,
    logsnr_min: float = -15.0,
    logsnr_max: float = 15.0,
) -> InterpolatedCosine:
    """From the shift of noise_size_start at t = 0, clean, to that of noise_size_end at t = 1
    (section 3.1): at 256 to 32 fine detail is noised as at 256 pixels, the whole as at 32.
    """
    return InterpolatedCosine(
        *(
            ShiftedCosine(
                _shift("interpolated_cosine: image_size", image_size, name, size),
                logsnr_min,
                logsnr_max,
            )
            for name, size in (
                ("noise_size_start", noise_size_start),
                ("noise_size_end", noise_size_end),
            )
        )
    )


def _shift(image_field: str, image_size: int, field: str, noise_size: int) -> float:
    if not (image_size > 0 and noise_size > 0):
        raise ValueError(f"{image_field}={image_size}, {field}={noise_size}; both must be positive")
    return 2.0 * math.log(noise_size / image_size)
