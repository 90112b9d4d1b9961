"""Distributions of noise levels in training.

Most are a quantile function: u, uniform in (0, 1), becomes a time or a logsnr. From it follow the
draws, their stratified form, and the density over logsnr, which is 1 / |d logsnr / du|.
"""

import abc
import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from diffusion.levels import NoiseLevel
from diffusion.schedules import Schedule

# Half of the distance between neighbours of jax.random.uniform: quantiles at 0 and 1 are infinite.
_HALF_STEP = 2.0**-24


class Draw(NamedTuple):
    """Noise levels of a batch; fields of shape [batch] (or scalars).

    `weight` multiplies each example's loss: 1 where the sampler means to change the expected loss,
    the ratio of densities where it must leave the loss of another one (importance sampling).
    `log_density` is that of logsnr under the distribution that the expected loss then has.
    """

    level: NoiseLevel
    weight: ArrayLike = 1.0
    log_density: ArrayLike = 0.0


class Part(NamedTuple):
    """A batch is rows index, index + count, ... of a step's, whose parts have `key` in common."""

    key: Key[Array, ""]
    index: ArrayLike = 0
    count: int = 1


_part: contextvars.ContextVar[Part | None] = contextvars.ContextVar("part", default=None)


@contextlib.contextmanager
def part_of_step(part: Part) -> Iterator[None]:
    """Within it, while a loss is traced, samplers draw for one of several parts of a batch."""
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


class TimeSampler(abc.ABC):
    """Draws levels for a whole global batch. One with a memory keeps it in the train state.

    uniform: whether the expected loss is that of uniform time, as the variational bounds need.
    """

    uniform: bool = False

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""], batch_size: int, schedule: Schedule, state: dict) -> Draw:
        """Levels for `batch_size` examples."""

    def init(self, schedule: Schedule) -> dict:
        """The memory before the first step; empty where there is none."""
        return {}

    def update(self, state: dict, drawn: Draw, loss: Float[Array, " batch"]) -> dict:
        """The memory after a step: `loss` is each example's, before `drawn.weight`."""
        return state


@dataclasses.dataclass(frozen=True)
class Quantiles(TimeSampler):
    """Levels at quantiles u of a distribution.

    low_discrepancy: one u0 for the batch, u_i = u0 + i / B mod 1 (VDM, appendix I.1), so that each
    of B equal parts of the distribution gets one example whatever B is. Under a mesh the batch is
    the global one: i counts over all hosts, and over the microbatches of a step (`part_of_step`).
    """

    low_discrepancy: bool

    @abc.abstractmethod
    def at(
        self, u: Float[Array, " batch"], schedule: Schedule
    ) -> tuple[NoiseLevel, Float[Array, " batch"]]:
        """(level, log density over logsnr) at quantile u in (0, 1)."""

    def draw(self, key: Key[Array, ""], batch_size: int, schedule: Schedule, state: dict) -> Draw:
        """Independent or stratified draws, all of weight 1."""
        if self.low_discrepancy:
            part = _part.get() or Part(key)
            row = jnp.arange(batch_size) * part.count + part.index
            u = (jax.random.uniform(part.key) + row / (batch_size * part.count)) % 1.0
        else:
            u = jax.random.uniform(key, (batch_size,))
        level, log_density = self.at(jnp.clip(u, _HALF_STEP, 1.0 - _HALF_STEP), schedule)
        return Draw(level, jnp.ones(batch_size), log_density)


@dataclasses.dataclass(frozen=True)
class OfTime(Quantiles):
    """`warp(u)` is the share of the schedule's range of time, 0 the least noisy end."""

    warp: Callable[[Array], Array]

    @property
    def uniform(self) -> bool:
        """Only where nothing is warped."""
        return self.warp is _same

    def at(
        self, u: Float[Array, " batch"], schedule: Schedule
    ) -> tuple[NoiseLevel, Float[Array, " batch"]]:
        """On a discrete schedule the index floor(T warp(u))."""
        low, high = schedule.t_range
        count = schedule.num_timesteps

        def logsnr(u):
            return schedule.logsnr(low + (high - low) * self.warp(u))

        if count is None:
            _, slope = jax.jvp(logsnr, (u,), (jnp.ones_like(u),))
            return schedule.level(low + (high - low) * self.warp(u)), -jnp.log(jnp.abs(slope))
        share, warp_slope = jax.jvp(self.warp, (u,), (jnp.ones_like(u),))
        t = jnp.clip(jnp.floor(share * count), 0, count - 1)
        before, after = jnp.maximum(t - 0.5, low), jnp.minimum(t + 0.5, high)
        slope = (schedule.logsnr(after) - schedule.logsnr(before)) / (after - before) * count
        return schedule.level(t), -jnp.log(jnp.abs(slope * warp_slope))


@dataclasses.dataclass(frozen=True)
class OfLogsnr(Quantiles):
    """`logsnr(u)` is the level itself; on a discrete schedule within its ends, between indices."""

    logsnr: Callable[[Array], Array]

    def at(
        self, u: Float[Array, " batch"], schedule: Schedule
    ) -> tuple[NoiseLevel, Float[Array, " batch"]]:
        """The density does not depend on the schedule."""
        logsnr, slope = jax.jvp(self.logsnr, (u,), (jnp.ones_like(u),))
        if schedule.num_timesteps is not None:
            low, high = (schedule.logsnr(jnp.float32(t)) for t in schedule.t_range)
            logsnr = jnp.clip(logsnr, high, low)
        return schedule.level_of_logsnr(logsnr), -jnp.log(jnp.abs(slope))


def uniform(low_discrepancy: bool = False) -> OfTime:
    """Each index equally often, or t uniform on `schedule.t_range` where time is continuous."""
    return OfTime(low_discrepancy, _same)


def _same(u: Array) -> Array:
    return u


def low_discrepancy() -> OfTime:
    """Uniform in time, spread evenly over each batch (VDM, appendix I.1)."""
    return uniform(low_discrepancy=True)


def log_normal(mean: float = -1.2, std: float = 1.2, low_discrepancy: bool = False) -> OfLogsnr:
    """ln(sigma / alpha) is normal (EDM, table 1; EDM2: -0.4, 1.0 and for ImageNet-64 -0.8, 1.6)."""
    _positive("log_normal: std", std)
    return OfLogsnr(low_discrepancy, lambda u: -2.0 * (mean + std * ndtri(u)))


def logit_normal(mean: float = 0.0, std: float = 1.0, low_discrepancy: bool = False) -> OfTime:
    """log(t / (1 - t)) is normal, t on [0, 1] (Stable Diffusion 3, eq. 19)."""
    _positive("logit_normal: std", std)
    return OfTime(low_discrepancy, lambda u: jax.nn.sigmoid(mean + std * ndtri(u)))


def mode(scale: float = 1.29, low_discrepancy: bool = False) -> OfTime:
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), heavy in the middle or, where scale is negative,
    at the ends (Stable Diffusion 3, eq. 20)."""
    if not -1.0 <= scale <= 2.0 / (math.pi - 2.0):
        raise ValueError(
            f"mode: scale={scale} must lie in [-1, {2.0 / (math.pi - 2.0):.4f}], where t falls in u"
        )
    return OfTime(
        low_discrepancy,
        lambda u: 1.0 - u - scale * (jnp.cos(0.5 * jnp.pi * u) ** 2 - 1.0 + u),
    )


def cosmap(low_discrepancy: bool = False) -> OfTime:
    """t = 1 - 1 / (tan(pi u / 2) + 1): the logsnr of the cosine schedule on a straight path
    (Stable Diffusion 3, eq. 21)."""
    return OfTime(low_discrepancy, lambda u: 1.0 - 1.0 / (jnp.tan(0.5 * jnp.pi * u) + 1.0))


def laplace(mean: float = 0.0, scale: float = 0.5, low_discrepancy: bool = False) -> OfLogsnr:
    """logsnr has a Laplace distribution (Hang and Gu 2024, table 1)."""
    _positive("laplace: scale", scale)

    def logsnr(u: Array) -> Array:
        # Both tails by log1p of what is exact there.
        below = jnp.log(2.0 * jnp.minimum(u, 0.5))
        above = -jnp.log(2.0 * jnp.minimum(1.0 - u, 0.5))
        return mean - scale * (below + above)

    return OfLogsnr(low_discrepancy, logsnr)


def _positive(field: str, value: float) -> None:
    if not value > 0.0:
        raise ValueError(f"{field}={value} must be positive")
