"""Solvers of networks that leap: consistency functions and flow maps."""

import dataclasses
from typing import NamedTuple

from jaxtyping import Float

from diffusion.levels import AnyArray, NoiseLevel
from diffusion.schedules import Schedule
from diffusion.solvers.base import Bound, Solver, Table, pairs


class LeapPlan(NamedTuple):
    """x_next = x0_coef x0 + noise_coef (noise, or eps of the prediction)."""

    now: NoiseLevel
    next: NoiseLevel
    x0_coef: Table
    noise_coef: Table
    # t_now - t_next.
    step: Table


def _plan(grid: NoiseLevel, name: str, stochastic: bool) -> LeapPlan:
    now, after = pairs(grid, name, stochastic)
    return LeapPlan(now, after, after.alpha, after.sigma, now.t - after.t)


@dataclasses.dataclass(frozen=True)
class Consistency(Solver):
    """To clean data in one call, then noised anew to the next level (Song et al. 2023, alg. 1)."""

    @property
    def stochastic(self) -> bool:
        """All of the noise is fresh."""
        return True

    def plan(self, grid: NoiseLevel, schedule: Schedule) -> LeapPlan:
        """A grid of one step needs no noise."""
        return _plan(grid, "consistency", stochastic=True)

    def step(
        self,
        state: Float[AnyArray, "batch *shape"],
        denoiser: Bound,
        plan: LeapPlan,
        noise: Float[AnyArray, "batch *shape"],
    ) -> Float[AnyArray, "batch *shape"]:
        """The predicted image with fresh noise."""
        return plan.x0_coef * denoiser(state, plan.now).x0 + plan.noise_coef * noise


@dataclasses.dataclass(frozen=True)
class FlowMap(Solver):
    """Leaps from level to level by a network that is told how far.

    The denoiser takes `step`, the difference of times, beside the level. Its prediction is read as
    that of a velocity held over the step: on a straight path x_next = x - step u.
    """

    @property
    def stochastic(self) -> bool:
        """No noise is added."""
        return False

    def plan(self, grid: NoiseLevel, schedule: Schedule) -> LeapPlan:
        """Raises ValueError where the path is not straight."""
        if schedule.scaling != "flow":
            raise ValueError(
                f"flow_map: the schedule's scaling is {schedule.scaling!r}; flow maps are trained "
                "on straight paths, 'rectified_flow'"
            )
        return _plan(grid, "flow_map", stochastic=False)

    def step(
        self,
        state: Float[AnyArray, "batch *shape"],
        denoiser: Bound,
        plan: LeapPlan,
        noise: Float[AnyArray, "batch *shape"],
    ) -> Float[AnyArray, "batch *shape"]:
        """x - step u, written by x0 and eps."""
        prediction = denoiser(state, plan.now, step=plan.step)
        return plan.x0_coef * prediction.x0 + plan.noise_coef * prediction.eps


def consistency() -> Consistency:
    """For consistency models: as many calls as levels, fresh noise between."""
    return Consistency()


def flow_map() -> FlowMap:
    """For MeanFlow and shortcut models, which are told the length of each step."""
    return FlowMap()
