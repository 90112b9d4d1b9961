"""What a solver is: a plan made on the host, and a step that only multiplies and adds."""

import abc
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.denoiser import Prediction
from diffusion.levels import AnyArray, NoiseLevel
from diffusion.schedules import Schedule

# float64 numpy [calls] in a plan; a scalar in the row of it that a step is given.
Table = ArrayLike
# A denoiser with its condition bound: (x, level), and by name what joins the condition.
Bound = Callable[..., Prediction]


class Solver(abc.ABC):
    """plan(grid, schedule) on the host, then init, step for each row of the plan, output.

    A plan is a NamedTuple of arrays with one leading axis, with at least `now` and `next`. A row is
    one call of the denoiser: a solver of several calls a step has as many rows for each step.
    """

    @property
    @abc.abstractmethod
    def stochastic(self) -> bool:
        """Whether steps add noise; those that do not also run upwards, from image to noise."""

    @abc.abstractmethod
    def plan(self, grid: NoiseLevel, schedule: Schedule) -> Any:
        """Coefficients of all calls along a grid of N + 1 levels, float64 numpy.

        `schedule`, that of the grid, tells the time of levels between those of the grid.

        Raises:
            ValueError: this solver cannot walk this grid.
        """

    @abc.abstractmethod
    def step(
        self, state: Any, denoiser: Bound, plan: Any, noise: Float[AnyArray, "batch *shape"]
    ) -> Any:
        """The state at `plan.next`, for one row of the plan; noise is standard normal."""

    def init(self, x: Float[AnyArray, "batch *shape"]) -> Any:
        """The state at the first level: here x itself."""
        return x

    def output(self, state: Any) -> Float[AnyArray, "batch *shape"]:
        """The sample of the last state: here the state itself."""
        return state


def at(grid: NoiseLevel, where: int | slice) -> NoiseLevel:
    """One level of a grid, or a part of it."""
    return NoiseLevel(*(field[where] for field in grid))


def pairs(
    grid: NoiseLevel, name: str, stochastic: bool = False, divides_by_alpha: bool = False
) -> tuple[NoiseLevel, NoiseLevel]:
    """Levels before and after each step, of a grid that the solver `name` can walk.

    Raises:
        ValueError: the grid turns, begins at clean data, rises though the solver is stochastic, or
            has pure noise though the solver works on x / alpha.
    """
    with np.errstate(invalid="ignore"):
        rises = np.diff(grid.logsnr)
    if not (np.all(rises > 0) or np.all(rises < 0)):
        raise ValueError(f"{name}: the grid's noise must fall (or rise) at every step")
    if grid.sigma[0] == 0.0:
        raise ValueError(
            f"{name}: the grid starts at clean data, of which no network is asked; start an "
            "inversion from a grid made with last_step='sigma_min', reversed"
        )
    if stochastic and rises[0] < 0:
        raise ValueError(
            f"{name}: adds noise, so it has no way back up from an image to its noise; invert with "
            "a deterministic solver such as ddim(eta=0.0)"
        )
    if divides_by_alpha and min(grid.alpha[0], grid.alpha[-1]) == 0.0:
        raise ValueError(
            f"{name}: works on x / alpha, and the grid has a level of pure noise (alpha = 0); take "
            "ddim, ddpm, a dpmpp solver or heun(space='flow')"
        )
    return at(grid, slice(None, -1)), at(grid, slice(1, None))


def half_logsnr(level: NoiseLevel) -> ArrayLike:
    """lambda = log(alpha / sigma), the variable of the exponential integrators."""
    return 0.5 * level.logsnr
