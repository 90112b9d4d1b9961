"""Schedules made of other schedules."""

import dataclasses

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from diffusion.levels import (
    NoiseLevel,
    as_floats,
    log_alpha_sigma,
    logsnr_of_alpha,
    namespace,
)
from diffusion.schedules.base import Schedule
from diffusion.schedules.discrete import Discrete


@dataclasses.dataclass(frozen=True, eq=False)
class ZeroTerminal(Schedule):
    """alpha' = (alpha - alpha_T) alpha_0 / (alpha_0 - alpha_T), 0 and T the ends of t_range.

    alpha keeps its first value and ends at 0, where logsnr is -inf; sigma follows by the scaling of
    `schedule`: on vp this is Lin et al. 2023, algorithm 1, on flow the path stays straight.
    """

    schedule: Schedule

    def __post_init__(self):
        if self.scaling == "ve":
            raise ValueError(
                "zero_terminal_snr: alpha is 1 at every time of a 've' schedule, so none of its "
                "levels is without signal; take a vp or flow schedule"
            )

    @property
    def scaling(self) -> str:
        """That of `schedule`."""
        return self.schedule.scaling

    @property
    def num_timesteps(self) -> int | None:
        """That of `schedule`."""
        return self.schedule.num_timesteps

    @property
    def t_range(self) -> tuple[float, float]:
        """That of `schedule`."""
        return self.schedule.t_range

    def _map(self, like: ArrayLike) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
        """(alpha_T, 1 - alpha_0, alpha_0 / (alpha_0 - alpha_T))."""
        ends = self.schedule.logsnr(namespace(like).asarray(self.t_range, like.dtype))
        (first, last), (rest, _) = _alpha(ends, self.scaling)
        return last, rest, first / (first - last)

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """-inf at the end of t_range; +inf where alpha' would pass 1, before its start."""
        _, t = as_floats(t)
        logsnr = self.schedule.logsnr(t)
        xp = namespace(logsnr)
        last, rest, stretch = self._map(logsnr)
        alpha, complement = _alpha(logsnr, self.scaling)
        mapped = logsnr_of_alpha(
            xp.maximum(stretch * (alpha - last), 0.0),
            xp.maximum(rest + stretch * (complement - rest), 0.0),
            self.scaling,
        )
        # Exactly, whatever the rounding of alpha.
        return xp.where(t >= self.t_range[1], -xp.inf, mapped)

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """The map of alpha, undone."""
        _, logsnr = as_floats(logsnr)
        last, rest, stretch = self._map(logsnr)
        alpha, complement = _alpha(logsnr, self.scaling)
        t = self.schedule.t_of_logsnr(
            logsnr_of_alpha(
                last + alpha / stretch, rest + (complement - rest) / stretch, self.scaling
            )
        )
        return namespace(t).where(logsnr == np.inf, self.schedule.data.t, t)

    def network_time(self, level: NoiseLevel) -> ArrayLike:
        """What `schedule` tells of its own level at this time."""
        return self.schedule.network_time(self.schedule.level(level.t))

    def init(self, key: Key[Array, ""]) -> dict:
        """Parameters of `schedule`."""
        return self.schedule.init(key)

    def bind(self, params: dict) -> "ZeroTerminal":
        """`schedule` at these parameters, its end moved to no signal."""
        return ZeroTerminal(self.schedule.bind(params)) if jax.tree.leaves(params) else self


def _alpha(logsnr: ArrayLike, scaling: str) -> tuple[ArrayLike, ArrayLike]:
    """(alpha, 1 - alpha), both in all their digits."""
    log_alpha, _ = log_alpha_sigma(logsnr, scaling)
    xp = namespace(log_alpha)
    return xp.exp(log_alpha), -xp.expm1(log_alpha)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """`schedule` with its last level turned into pure noise (Lin et al. 2023, algorithm 1).

    Train it with a parameterization that says something of x0 there: v, x0 or flow.
    """
    zero = ZeroTerminal(schedule)
    if isinstance(schedule, Discrete):
        return Discrete(zero.logsnr(np.arange(schedule.num_timesteps)))
    return zero
