"""Variance-preserving schedules in T steps: a table of logsnr."""

import dataclasses
import functools
import math

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float64

from diffusion.levels import as_floats
from diffusion.schedules.base import Schedule


@dataclasses.dataclass(frozen=True, eq=False)
class Discrete(Schedule):
    """Variance-preserving schedule given by its logsnr at indices 0..T-1, which falls.

    Between indices logsnr is interpolated linearly; index -1, and all of t < 0, is clean data. The
    last entry may be -inf (zero terminal SNR); on the way there alpha / sigma falls linearly.
    """

    table: Float64[np.ndarray, " timesteps"]
    scaling: str = dataclasses.field(default="vp", init=False)

    def __post_init__(self):
        table = self.table
        if len(table) == 0 or not np.all(np.isfinite(table[:-1])) or not table[-1] < np.inf:
            raise ValueError(
                f"logsnr must be finite, but for a last -inf; seen {len(table)} values, "
                f"{np.sum(~np.isfinite(table))} of them not finite"
            )
        if self._zero_terminal and len(table) < 2:
            raise ValueError("a schedule whose only level is pure noise (logsnr -inf) has no use")
        rises = np.flatnonzero(~(np.diff(table) < 0))
        if len(rises):
            t = rises[0]
            raise ValueError(
                f"logsnr must fall from each index to the next; seen {table[t]:.6g} at {t} and "
                f"{table[t + 1]:.6g} at {t + 1}"
            )

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.table)

    @property
    def t_range(self) -> tuple[float, float]:
        """All indices."""
        return 0.0, self.num_timesteps - 1.0

    @property
    def _zero_terminal(self) -> bool:
        return bool(self.table[-1] == -np.inf)

    @functools.cached_property
    def betas(self) -> Float64[np.ndarray, " timesteps"]:
        """1 - alpha_bar_t / alpha_bar_{t-1}; 1 at a terminal SNR of zero."""
        return -np.expm1(np.diff(-np.logaddexp(0.0, -self.table), prepend=0.0))

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """Table at an index, linear between indices, constant beyond T-1, +inf below 0."""
        xp, t = as_floats(t)
        table, last = xp.asarray(self.table, t.dtype), self.num_timesteps - 1
        inside = xp.clip(t, 0, last)
        index = xp.floor(inside).astype(int)
        if self._zero_terminal:
            index = xp.minimum(index, last - 1)
            share, lower = inside - index, table[index]
            upper = xp.where(index == last - 1, lower, table[index + 1])
            with np.errstate(divide="ignore"):
                fade = 2.0 * xp.log1p(-share)
            between = xp.where(index == last - 1, fade, share * (upper - lower))
        else:
            lower, upper = table[index], table[xp.minimum(index + 1, last)]
            between = (inside - index) * (upper - lower)
        return xp.where(t < 0, xp.inf, lower + between)

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """Inverse of `logsnr` on the table's range; outside of it the nearest end, -1 for +inf."""
        xp, logsnr = as_floats(logsnr)
        table = xp.asarray(self.table[:-1] if self._zero_terminal else self.table, logsnr.dtype)
        t = xp.interp(-logsnr, -table, xp.arange(len(table), dtype=logsnr.dtype))
        if self._zero_terminal:
            t = t - xp.expm1(0.5 * xp.minimum(logsnr - table[-1], 0.0))
        return xp.where(logsnr == xp.inf, -1.0, t)


def from_betas(betas: Float64[np.ndarray, " timesteps"]) -> Discrete:
    """The schedule of beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}; the last beta may be 1."""
    if not (np.all((betas > 0) & (betas <= 1)) and np.all(betas[:-1] < 1)):
        raise ValueError(
            f"betas must lie strictly between 0 and 1; seen {betas.min():.4g} to "
            f"{betas.max():.4g}. Use more timesteps or smaller betas."
        )
    with np.errstate(divide="ignore"):
        return from_log_alpha_bar(np.cumsum(np.log1p(-betas)))


def from_log_alpha_bar(log_alpha_bar: Float64[np.ndarray, " timesteps"]) -> Discrete:
    """The schedule of alpha_bar = alpha^2, given by its log; the last may be -inf."""
    if not np.all(log_alpha_bar < 0):
        raise ValueError(f"alpha_bar must lie below 1; seen {np.exp(log_alpha_bar.max()):.17g}")
    return Discrete(log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))


def linear(timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    """beta linear in t (DDPM, section 4), both ends times 1000 / timesteps (iDDPM's code)."""
    scale = 1000.0 / timesteps
    return from_betas(np.linspace(scale * beta_start, scale * beta_end, timesteps))


def scaled_linear(
    timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Discrete:
    """sqrt(beta) linear in t (latent diffusion, Stable Diffusion).

    Both ends are of 1000 steps and not scaled to other lengths, as in the published code.
    """
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2)


def cosine(timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Discrete:
    """alpha_bar(u) = cos^2(pi/2 (u + offset) / (1 + offset)), beta at most max_beta (iDDPM eq. 17).

    max_beta keeps the last level from being pure noise: logsnr ends at -19.8 for 1000 steps.
    """
    angle = (np.arange(timesteps + 1) / timesteps + offset) / (1.0 + offset) * (np.pi / 2)
    before, after = angle[:-1], angle[1:]
    # 1 - cos^2(after) / cos^2(before), written without the difference.
    betas = np.sin(after - before) * np.sin(after + before) / np.cos(before) ** 2
    return from_betas(np.minimum(betas, max_beta))


def sqrt(timesteps: int = 1000, offset: float = 1e-4) -> Discrete:
    """alpha_bar_t = 1 - sqrt(t / T + offset), t = 0..T-1 (Li et al. 2022, "Diffusion-LM").

    Its first level has sigma = 0.1 by the offset. (Their code takes ratios of alpha_bar at t + 1
    and t, which divides this away, and clips the last beta, where alpha_bar would be negative.)
    """
    sigma2 = np.sqrt(np.arange(timesteps) / timesteps + offset)
    if not (sigma2[0] > 0.0 and sigma2[-1] < 1.0):
        raise ValueError(
            f"sqrt: offset={offset} must lie in (0, 1 / timesteps) = (0, {1.0 / timesteps:.4g}), "
            "where alpha_bar stays between 0 and 1"
        )
    return from_log_alpha_bar(np.log1p(-sigma2))


def sigmoid(
    timesteps: int = 1000,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    min_alpha_bar: float = 1e-9,
) -> Discrete:
    """alpha_bar falls like a sigmoid from start / tau to end / tau, scaled to run from 1 to 0
    over t = (i + 1) / T (Jabri et al. 2022; Chen 2023, algorithm 1).

    min_alpha_bar clips the end, which would be 0: logsnr ends at -20.7.
    """
    if not (start < end and tau > 0.0):
        raise ValueError(
            f"sigmoid: start={start}, end={end}, tau={tau}; need start < end and tau > 0"
        )
    if not 0.0 < min_alpha_bar < 1.0:
        raise ValueError(f"sigmoid: min_alpha_bar={min_alpha_bar} must lie in (0, 1)")
    low, high = 0.5 * start / tau, 0.5 * end / tau
    share = np.arange(1, timesteps + 1) / timesteps
    # The quotient of two differences of sigmoids, by sinh: it keeps the digits of both ends.
    with np.errstate(divide="ignore"):
        logsnr = np.log(np.sinh((high - low) * (1.0 - share)) / np.sinh((high - low) * share))
    logsnr += np.log(np.cosh(low) / np.cosh(high))
    return Discrete(np.maximum(logsnr, math.log(min_alpha_bar) - math.log1p(-min_alpha_bar)))


def laplace(timesteps: int = 1000, mu: float = 0.0, b: float = 0.5) -> Discrete:
    """Quantiles of a Laplace distribution of logsnr (Hang and Gu 2024, section 2.2).

    alpha_bar = SNR / (1 + SNR) at t = (i + 1) / T, over its value at t = 0. (diffusers takes the
    square root of SNR / (1 + SNR) for alpha_bar, and so ends at logsnr -3.4 instead of -6.9.)
    """
    if not b > 0.0:
        raise ValueError(f"laplace: b={b} must be positive")
    t = np.arange(timesteps + 1) / timesteps
    tails = np.log1p(-2.0 * abs(0.5 - t) + 1e-6)
    log_alpha_bar = -np.logaddexp(0.0, b * np.sign(0.5 - t) * tails - mu)
    return from_log_alpha_bar(log_alpha_bar[1:] - log_alpha_bar[0])
