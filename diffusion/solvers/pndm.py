"""PNDM (Liu et al. 2022): fixed Adams-Bashforth weights of eps, moved by DDIM's rule."""

import dataclasses

import numpy as np

from diffusion.levels import NoiseLevel
from diffusion.options import check_option
from diffusion.schedules import Schedule
from diffusion.solvers.base import at, pairs
from diffusion.solvers.linear import EPS, Linear, LinearPlan, row

STARTS = ("runge_kutta", "multistep")
# Of the newest value first, by how many there are.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclasses.dataclass(frozen=True)
class PNDM(Linear):
    """Steps of equal length in t; three Runge-Kutta steps or one improved Euler step to start."""

    start: str
    decode: bool

    def __post_init__(self):
        check_option("pndm: start", self.start, STARTS)

    @property
    def stochastic(self) -> bool:
        """Never."""
        return False

    @property
    def memory(self) -> int:
        """As far back as the first multistep rows look: over the calls inside of the start."""
        return 12 if self.start == "runge_kutta" else 4

    def rows(self, grid: NoiseLevel, schedule: Schedule) -> list[LinearPlan]:
        """A row for each call."""
        pairs(grid, "pndm", divides_by_alpha=True)
        steps = len(grid.t) - 1
        lengths = np.diff(grid.t[:-1])
        # Rounded indices differ by one.
        slack = 1.0 if schedule.num_timesteps else 1e-6
        if steps > 2 and np.ptp(lengths) > slack + 1e-9:
            raise ValueError(
                "pndm: its weights are those of equal steps in t, and these differ; take grid "
                "'leading', 'respaced' or 'uniform', or solver lms or deis"
            )
        out: list[LinearPlan] = []
        # The row whose value is eps at the start of each step.
        known: list[int] = []

        def add(level, start, end, x_register, weights):
            """A call at `level`, then the move from `start` to `end` by weighted earlier rows."""
            x_coef = end.alpha / start.alpha
            eps_coef = end.sigma - x_coef * start.sigma
            i = len(out)
            earlier = {i - j: eps_coef * w for j, w in weights.items() if j != i}
            x = self.weights(
                **{x_register: x_coef}, value=eps_coef * weights.get(i, 0.0), values=earlier
            )
            base = self.weights(**{x_register: 1.0})
            out.append(row(level, end, EPS, x, base))

        for k in range(steps):
            now, after, i = at(grid, k), at(grid, k + 1), len(out)
            known = [*known, i][-4:]
            if self.decode and after.sigma == 0.0:
                out.append(self.to_data(now, after))
            elif self.start == "runge_kutta" and k < 3 and after.sigma > 0.0:
                middle = schedule.level(0.5 * (now.t + after.t))
                add(now, now, middle, "x", {i: 1.0})
                add(middle, now, middle, "base", {i + 1: 1.0})
                add(middle, now, after, "base", {i + 2: 1.0})
                rule = {i: 1 / 6, i + 1: 1 / 3, i + 2: 1 / 3, i + 3: 1 / 6}
                add(after, now, after, "base", rule)
            elif self.start == "multistep" and k == 0 and after.sigma > 0.0:
                add(now, now, after, "x", {i: 1.0})
                add(after, now, after, "base", {i: 0.5, i + 1: 0.5})
            else:
                rule = ADAMS_BASHFORTH[len(known)]
                add(now, now, after, "x", dict(zip(known[::-1], rule, strict=True)))
        return out


def pndm(start: str = "runge_kutta", decode: bool = False) -> PNDM:
    """PNDM: N + 9 calls for N > 3 steps. start='multistep' is PLMS: N + 1 calls.

    Refuses grids of unequal steps in t. Its weights go on to clean data; decode=True takes the
    predicted image there, as others do.
    """
    return PNDM(start, decode)
