"""Variance-preserving schedules in T steps, given by their betas."""

import dataclasses
import functools

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float64

from diffusion.levels import as_floats
from diffusion.schedules.base import Schedule


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
