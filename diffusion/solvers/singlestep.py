"""Singlestep solvers of DPM-Solver and DPM-Solver++: several calls inside of a step.

The levels between are those that lie evenly in lambda = log(alpha / sigma); each stage integrates
the polynomial through some of the values before it.
"""

import dataclasses

import numpy as np

from diffusion.levels import NoiseLevel
from diffusion.options import check_option
from diffusion.schedules import Schedule
from diffusion.solvers import exponential
from diffusion.solvers.base import at, pairs
from diffusion.solvers.linear import Linear, LinearPlan, row

# Places of the calls; for each stage after the first, and the result, the calls that it uses.
STAGES = {
    2: ((0.0, 1 / 2), ((0,), (1,))),
    3: ((0.0, 1 / 3, 2 / 3), ((0,), (0, 1), (0, 2))),
}


@dataclasses.dataclass(frozen=True)
class Singlestep(Linear):
    """Order 2 or 3 with as many calls; a step from pure noise or to clean data is DDIM's.

    With eta above 0 it goes along the ODE to less noise than the next level has, then adds the
    rest: as much as ancestral sampling for eta = 1, so that the law of the samples keeps the order.
    """

    name: str
    order: int
    prediction: str
    eta: float

    def __post_init__(self):
        check_option(f"{self.name}: prediction", self.prediction, exponential.PREDICTIONS)
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"{self.name}: eta={self.eta} must lie in [0, 1]")

    @property
    def stochastic(self) -> bool:
        """For eta above 0."""
        return self.eta > 0.0

    @property
    def memory(self) -> int:
        """The values of the calls before."""
        return self.order - 1

    def rows(self, grid: NoiseLevel, schedule: Schedule) -> list[LinearPlan]:
        """A row for each call."""
        kind = self.prediction
        levels = pairs(grid, self.name, self.stochastic, divides_by_alpha=kind == "eps")
        out = []
        for k in range(len(grid.logsnr) - 1):
            now, after = (at(part, k) for part in levels)
            if after.sigma == 0.0:
                out.append(self.to_data(now, after))
                continue
            down, noise_std = self._down(now, after, schedule)
            places, uses = STAGES[self.order]
            if not np.isfinite(now.logsnr - down.logsnr):
                places, uses = (0.0,), ((0,),)
            between = (now.logsnr + c * (down.logsnr - now.logsnr) for c in places[1:])
            stages = [now, *map(schedule.level_of_logsnr, between), down]
            for i, used in enumerate(uses):
                step = exponential.step(now, stages[i + 1], kind)
                end = (*places, 1.0)[i + 1]
                w = dict(
                    zip(used, step.weights(kind, [places[j] / end for j in used]), strict=True)
                )
                x = self.weights(
                    **{"base" if i else "x": step.x_coef},
                    value=w.pop(i, 0.0),
                    values={i - j: weight for j, weight in w.items()},
                )
                base = self.weights(base=1.0) if i else self.weights(x=1.0)
                value = exponential.VALUE[kind]
                if i < len(uses) - 1:
                    out.append(row(stages[i], stages[i + 1], value, x, base))
                else:
                    x *= after.alpha / down.alpha
                    out.append(row(stages[i], after, value, x, base, noise_std))
        return out

    def _down(
        self, now: NoiseLevel, after: NoiseLevel, schedule: Schedule
    ) -> tuple[NoiseLevel, float]:
        """Where the ODE is followed to, and the std of the noise that leads up to `after`."""
        if not self.stochastic:
            return after, 0.0
        kept = np.exp(now.logsnr - after.logsnr)
        with np.errstate(divide="ignore"):
            logsnr = after.logsnr - np.log((1.0 - self.eta**2) + self.eta**2 * kept)
        return schedule.level_of_logsnr(logsnr), after.sigma * self.eta * np.sqrt(1.0 - kept)


def dpmpp_2s(prediction: str = "x0", eta: float = 0.0) -> Singlestep:
    """DPM-Solver++(2S) with r = 1/2; prediction='eps' is DPM-Solver-2 (Lu et al. 2022a, b).

    eta=1.0 is k-diffusion's "2S ancestral".
    """
    return Singlestep("dpmpp_2s", 2, prediction, eta)


def dpmpp_3s(prediction: str = "x0", eta: float = 0.0) -> Singlestep:
    """DPM-Solver++(3S) with r = 1/3, 2/3; prediction='eps' is DPM-Solver-3 (Lu et al. 2022a, b)."""
    return Singlestep("dpmpp_3s", 3, prediction, eta)
