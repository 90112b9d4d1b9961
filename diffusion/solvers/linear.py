"""Solvers whose steps are linear in what they remember: all but DDPM and DDIM.

Runge-Kutta, Adams-Bashforth, exponential integrators, predictor-correctors: each call of the
denoiser gives one value m, and what follows is a weighted sum of m, of the state and of earlier
values. So a solver is a table of weights, made on the host, and one step serves them all.
"""

import abc
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float64

from diffusion.levels import AnyArray, NoiseLevel
from diffusion.schedules import Schedule
from diffusion.solvers.base import Bound, Solver, Table

# The value of a call as weights of (x, predicted x0, predicted eps).
X0, EPS = np.eye(3)[1:]

Weights = Float64[np.ndarray, " registers"]


class LinearState(NamedTuple):
    """x goes into the next call; base is what a step started from; values, the newest first."""

    x: AnyArray
    base: AnyArray
    values: tuple[AnyArray, ...]


class LinearPlan(NamedTuple):
    """One call a row; `next` is the level of the next call, or the end.

    x_call = churn_scale x + churn_std noise goes into the denoiser at level `call`, which differs
    from `now` by the churn alone. m = value . (x_call, x0, eps). Then x and base are the weighted
    sums of (x_call, base, m, values...), x with noise_std noise. No row has noise twice.
    """

    now: NoiseLevel
    call: NoiseLevel
    next: NoiseLevel
    churn_scale: Table
    churn_std: Table
    value: Table
    x: Table
    base: Table
    noise_std: Table


def row(
    now: NoiseLevel,
    after: NoiseLevel,
    value: Float64[np.ndarray, "3"],
    x: Weights,
    base: Weights,
    noise_std: float = 0.0,
    call: NoiseLevel | None = None,
    churn: tuple[float, float] = (1.0, 0.0),
) -> LinearPlan:
    """One row of a plan; churn is (scale, std)."""
    return LinearPlan(now, call or now, after, *churn, value, x, base, noise_std)


class Linear(Solver):
    """A solver that is its plan; subclasses give `rows` and how many values are remembered."""

    @property
    @abc.abstractmethod
    def memory(self) -> int:
        """How many earlier values the weights may use."""

    @abc.abstractmethod
    def rows(self, grid: NoiseLevel, schedule: Schedule) -> list[LinearPlan]:
        """The rows of the plan, in order."""

    def weights(
        self, x: float = 0.0, base: float = 0.0, value: float = 0.0, values: dict | None = None
    ) -> Weights:
        """Weights of (x, base, m, values...); `values` is {how many calls ago: weight}, 1 first."""
        out = np.zeros(3 + self.memory)
        out[:3] = x, base, value
        for ago, weight in (values or {}).items():
            out[2 + ago] = weight
        return out

    def to_data(self, now: NoiseLevel, after: NoiseLevel, **churn: Any) -> LinearPlan:
        """The step to clean data: the predicted image itself."""
        return row(now, after, X0, self.weights(value=after.alpha), self.weights(), **churn)

    def plan(self, grid: NoiseLevel, schedule: Schedule) -> LinearPlan:
        """The rows, stacked."""
        rows = self.rows(grid, schedule)
        return jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float64), *rows)

    def init(self, x: Float[AnyArray, "batch *shape"]) -> LinearState:
        """x, and nothing remembered."""
        return LinearState(x, 0.0 * x, (0.0 * x,) * self.memory)

    def step(
        self,
        state: LinearState,
        denoiser: Bound,
        plan: LinearPlan,
        noise: Float[AnyArray, "batch *shape"],
    ) -> LinearState:
        """One call and the weighted sums."""
        x = plan.churn_scale * state.x + plan.churn_std * noise
        prediction = denoiser(x, plan.call)
        m = _mix(plan.value, (x, prediction.x0, prediction.eps))
        registers = (x, state.base, m, *state.values)
        return LinearState(
            _mix(plan.x, registers) + plan.noise_std * noise,
            _mix(plan.base, registers),
            (m, *state.values)[: self.memory],
        )

    def output(self, state: LinearState) -> Float[AnyArray, "batch *shape"]:
        """x."""
        return state.x


def _mix(weights: AnyArray, terms: tuple[AnyArray, ...]) -> AnyArray:
    # Sums of products, not a matrix product: accelerators round those to bfloat16 or TF32.
    return sum(weights[i] * term for i, term in enumerate(terms))
