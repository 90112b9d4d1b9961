"""Runge-Kutta along a straight path, with the churn of Karras et al. 2022.

The variables: z = s x and a noise coordinate u in which z = (clean part) + u (direction), so that
dz/du = (z - x0) / u. space 'edm' is s = 1 / alpha, u = sigma / alpha, and dz/du = eps; 'flow' is
s = 1 / (alpha + sigma), u = sigma / (alpha + sigma), and dz/du = eps - x0, the velocity of
rectified flow. Euler's rule is the same in both (and is DDIM); all others differ.
"""

import dataclasses
import math

import numpy as np

from diffusion.levels import NoiseLevel
from diffusion.options import check_option
from diffusion.schedules import Schedule
from diffusion.solvers.base import at, pairs
from diffusion.solvers.linear import Linear, LinearPlan, row

SPACES = ("edm", "flow")
# For each stage but the first its place c, then what it adds up; the last row is the result.
TABLEAUS = {
    "euler": (np.array([0.0]), np.array([[1.0]])),
    "heun": (np.array([0.0, 1.0]), np.array([[1.0, 0.0], [0.5, 0.5]])),
    "rk4": (
        np.array([0.0, 0.5, 0.5, 1.0]),
        np.array([[1 / 2, 0, 0, 0], [0, 1 / 2, 0, 0], [0, 0, 1, 0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]]),
    ),
}


@dataclasses.dataclass(frozen=True)
class Churn:
    """Noise added before a step: sigma (1 + gamma), gamma = min(s_churn / N, sqrt(2) - 1).

    Where s_min <= sigma <= s_max of the EDM scaling; the noise is s_noise times as large as the
    level says (Karras et al. 2022, algorithm 2).
    """

    s_churn: float
    s_min: float
    s_max: float
    s_noise: float

    def __post_init__(self):
        if self.s_churn < 0.0 or self.s_noise < 0.0 or not 0.0 <= self.s_min <= self.s_max:
            raise ValueError(
                f"churn: s_churn={self.s_churn}, s_min={self.s_min}, s_max={self.s_max}, "
                f"s_noise={self.s_noise}; need s_churn, s_noise >= 0 and 0 <= s_min <= s_max"
            )

    def __call__(
        self, now: NoiseLevel, steps: int, schedule: Schedule
    ) -> tuple[NoiseLevel, tuple[float, float]]:
        """The noisier level, and (scale, std) that lead to it."""
        sigma = np.exp(-0.5 * now.logsnr)
        inside = self.s_min <= sigma <= self.s_max and np.isfinite(sigma)
        gamma = min(self.s_churn / steps, math.sqrt(2.0) - 1.0) if inside else 0.0
        if gamma == 0.0:
            return now, (1.0, 0.0)
        call = schedule.level_of_logsnr(now.logsnr - 2.0 * np.log1p(gamma))
        # Time of a table ends with it: the network would be told of less noise than there is.
        if schedule.num_timesteps and call.logsnr < schedule.logsnr(call.t) - 1e-6:
            raise ValueError(
                f"churn: from sigma={sigma:.5g} to {sigma * (1.0 + gamma):.5g} leads beyond the "
                f"noisiest index of the schedule; give an s_max below {sigma:.5g}"
            )
        added = sigma * math.sqrt(gamma * (2.0 + gamma))
        return call, (call.alpha / now.alpha, call.alpha * self.s_noise * added)


@dataclasses.dataclass(frozen=True)
class RungeKutta(Linear):
    """An explicit rule of `TABLEAUS`; a step to clean data is Euler's, as in EDM."""

    rule: str
    space: str
    churn: Churn

    def __post_init__(self):
        check_option(f"{self.rule}: space", self.space, SPACES)

    @property
    def stochastic(self) -> bool:
        """With churn."""
        return self.churn.s_churn > 0.0

    @property
    def memory(self) -> int:
        """The slopes of the stages before."""
        return len(TABLEAUS[self.rule][0]) - 1

    def _coordinates(self, level: NoiseLevel) -> tuple[float, float]:
        """(s, u)."""
        total = level.alpha if self.space == "edm" else level.alpha + level.sigma
        return 1.0 / total, level.sigma / total

    def _between(
        self, start: NoiseLevel, end: NoiseLevel, c: float, schedule: Schedule
    ) -> NoiseLevel:
        """The level at u_start + c (u_end - u_start)."""
        if c in (0.0, 1.0):
            return end if c else start
        u = sum(w * self._coordinates(level)[1] for w, level in ((1.0 - c, start), (c, end)))
        return schedule.level_of_logsnr(2.0 * np.log((1.0 if self.space == "edm" else 1.0 - u) / u))

    def rows(self, grid: NoiseLevel, schedule: Schedule) -> list[LinearPlan]:
        """A row for each stage; values are slopes dz/du."""
        levels = pairs(grid, self.rule, self.stochastic, self.space == "edm")
        steps = len(grid.logsnr) - 1
        out = []
        for k in range(steps):
            now, after = (at(part, k) for part in levels)
            call, churn = self.churn(now, steps, schedule)
            if after.sigma == 0.0:
                out.append(self.to_data(now, after, call=call, churn=churn))
                continue
            places, sums = TABLEAUS[self.rule]
            stages = [self._between(call, after, c, schedule) for c in places] + [after]
            (s_start, u_start), (_, u_end) = map(self._coordinates, (call, after))
            for i in range(len(places)):
                s, u = self._coordinates(stages[i])
                s_next, _ = self._coordinates(stages[i + 1])
                slopes = (u_end - u_start) / s_next * sums[i]
                start = {"base": s_start / s_next} if i else {"x": s_start / s_next}
                x = self.weights(
                    **start, value=slopes[i], values={i - j: slopes[j] for j in range(i)}
                )
                base = self.weights(base=1.0) if i else self.weights(x=1.0)
                first = {} if i else {"call": call, "churn": churn}
                slope = np.array([s / u, -1.0 / u, 0.0])
                level = stages[i] if i else now
                out.append(row(level, stages[i + 1], slope, x, base, **first))
        return out


def euler(
    s_churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
) -> RungeKutta:
    """Euler's rule, in x / alpha and along a flow's straight path alike; DDIM where s_churn = 0."""
    return RungeKutta("euler", "flow", Churn(s_churn, s_min, s_max, s_noise))


def heun(
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    space: str = "edm",
) -> RungeKutta:
    """Heun's rule, 2 N - 1 calls for N steps to clean data (Karras et al. 2022, algorithms 1, 2).

    space='flow' takes the steps along the straight path of rectified flow.
    """
    return RungeKutta("heun", space, Churn(s_churn, s_min, s_max, s_noise))


def rk4(space: str = "edm") -> RungeKutta:
    """The classical rule of order 4, 4 N - 3 calls for N steps to clean data."""
    return RungeKutta("rk4", space, Churn(0.0, 0.0, math.inf, 1.0))
