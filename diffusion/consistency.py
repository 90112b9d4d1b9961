"""Consistency models of discrete time: levels, their curriculum and the loss of a pair of levels.

A consistency function f(x, level) gives the clean end of the ODE's path through x. Noise is
measured by sigma, which is sigma / alpha of any schedule: y = x / alpha = x0 + sigma eps.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from diffusion.denoiser import Condition, Denoiser
from diffusion.levels import AnyArray, NoiseLevel, expand_like
from diffusion.schedules import Schedule

# (x, level) -> x0
Function = Callable[[Array, NoiseLevel], Array]


def level_of_sigma(schedule: Schedule, sigma: Float[Array, " batch"]) -> NoiseLevel:
    """The schedule's level of noise sigma / alpha."""
    return schedule.level_of_logsnr(-2.0 * jnp.log(sigma))


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """How many levels there are after some steps: doubled each `double_every` (Song 2023, eq. 10).

    `start` and `end` count the intervals between levels: there is one level more. With
    double_every 0 it is `end` from the first step on.
    """

    start: int
    end: int
    double_every: int

    def __post_init__(self):
        if not 1 <= self.start <= self.end or self.double_every < 0:
            raise ValueError(
                f"start={self.start}, end={self.end}, double_every={self.double_every}: need "
                "1 <= start <= end and double_every >= 0"
            )

    def intervals(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """Number of intervals at a step counted from 0."""
        if self.double_every == 0:
            return jnp.int32(self.end)
        # More than enough to reach the end, and no overflow.
        doublings = jnp.minimum(step // self.double_every, math.ceil(math.log2(self.end)))
        return jnp.minimum(self.start * 2**doublings, self.end).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Discretization:
    """Levels sigma_0 < ... < sigma_n with sigma^(1/rho) in equal steps (Karras 2022, eq. 5)."""

    sigma_min: float
    sigma_max: float
    rho: float = 7.0

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1.0 / self.rho), self.sigma_max ** (1.0 / self.rho)

    def sigma(self, index: ArrayLike, intervals: ArrayLike) -> Float[AnyArray, "..."]:
        """sigma of level `index`, 0 the least noisy of `intervals` + 1."""
        low, high = self._ends
        return (low + index / intervals * (high - low)) ** self.rho

    def draw(
        self, u: Float[Array, " batch"], intervals: Int[Array, ""], mean: float, std: float
    ) -> Int[Array, " batch"]:
        """The index below an interval, at the quantile u of p(i) in (0, 1).

        p(i) is what a normal law of ln sigma puts into interval i (Song and Dhariwal 2023, eq. 10;
        there by differences of erf), given that it is one of them.
        """
        edges = [(math.log(end) - mean) / std for end in (self.sigma_min, self.sigma_max)]
        below, above = ndtr(jnp.float32(edges[0])), ndtr(jnp.float32(edges[1]))
        sigma = jnp.exp(mean + std * ndtri(below + u * (above - below)))
        low, high = self._ends
        place = (sigma ** (1.0 / self.rho) - low) / (high - low) * intervals
        return jnp.clip(jnp.floor(place), 0, intervals - 1).astype(jnp.int32)


def pseudo_huber(difference: Float[Array, "batch *shape"], c: float) -> Float[Array, " batch"]:
    """sqrt(|d|^2 + c^2) - c of each example (Song and Dhariwal 2023, eq. 7)."""
    square = jnp.sum(difference**2, axis=tuple(range(1, difference.ndim)))
    # The difference of near-equal numbers, written as a quotient.
    return square / (jnp.sqrt(square + c**2) + c)


def pair_loss(
    function: Function,
    x_high: Float[Array, "batch *shape"],
    x_low: Float[Array, "batch *shape"],
    high: NoiseLevel,
    low: NoiseLevel,
    at_start: Bool[Array, " batch"],
    c: float,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """(loss, squared distance a pixel) of f at neighbouring points of one path, of each example.

    The target is f at the lower point, not differentiated. At the lowest level, `at_start`, it is
    the point itself: the boundary condition f(x, sigma_min) = x, which so holds whatever the
    parameterization. Weighted by 1 / (sigma_high - sigma_low) (Song and Dhariwal 2023, eq. 8).
    """
    identity = x_low / low.like(x_low).alpha
    target = jnp.where(expand_like(at_start, x_low), identity, function(x_low, low))
    difference = function(x_high, high) - jax.lax.stop_gradient(target)
    sigma_high, sigma_low = (jnp.exp(-0.5 * level.logsnr) for level in (high, low))
    square = jnp.mean(difference**2, axis=tuple(range(1, difference.ndim)))
    return pseudo_huber(difference, c) / (sigma_high - sigma_low), square


def heun_step(
    teacher: Denoiser,
    x: Float[Array, "batch *shape"],
    now: NoiseLevel,
    after: NoiseLevel,
    condition: Condition = None,
) -> Float[Array, "batch *shape"]:
    """One step of Heun's rule along the teacher's ODE, in y over sigma (EDM, algorithm 1)."""
    start, end = now.like(x), after.like(x)
    sigma, sigma_end = start.sigma / start.alpha, end.sigma / end.alpha
    y, slope = x / start.alpha, teacher(x, now, condition).eps
    guess = y + (sigma_end - sigma) * slope
    slope_end = teacher(end.alpha * guess, after, condition).eps
    return end.alpha * (y + (sigma_end - sigma) * 0.5 * (slope + slope_end))
