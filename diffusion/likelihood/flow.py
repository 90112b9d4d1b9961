"""The likelihood of the probability-flow ODE (Song et al. 2021, appendix D.2).

In y = z / alpha the flow is dy = eps_hat d(sigma / alpha), on every path. Scaled to
unit variance, z = y alpha with alpha^2 + sigma^2 = 1 from here on, it is

    dz / d logsnr = -(alpha sigma / 2) (alpha eps_hat - sigma x0_hat),

without a difference of large numbers at either end. d log p / d logsnr is minus its divergence.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from diffusion.denoiser import Condition, Denoiser
from diffusion.levels import NoiseLevel, alpha_sigma
from diffusion.likelihood.base import Method, Result, cast, ends, normalized
from diffusion.options import check_option
from diffusion.pixels import DEQUANTIZATIONS, dequantization_bits, dequantize
from diffusion.schedules import Schedule

# Of each solver of fixed steps: where its stages stand in the step, each reached along the slope
# of the one before it, and their weights in the step itself.
_STAGES = {
    "heun": ((0.0, 1.0), (0.5, 0.5)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
SOLVERS = ("dopri5", *_STAGES)
SPACINGS = ("logsnr", "t")
DIVERGENCES = ("rademacher", "gaussian", "exact")
# Pure noise is infinitely far away in logsnr. Here the data's share in z is 4.5e-5.
_LOWEST = -20.0

# (z, mean divergence over dimensions since the start)
State = tuple[Float[Array, "*shape"], Float[Array, ""]]
# (level, z) -> slopes of the state in logsnr
Field = Callable[[NoiseLevel, Float[Array, "*shape"]], State]


class Rows(NamedTuple):
    """Stages of all steps of a fixed grid, one after the other.

    A stage stands at the step's start + pull times the slope before it; push is its weight.
    """

    level: NoiseLevel
    pull: Float[np.ndarray | Array, "*stages"]
    push: Float[np.ndarray | Array, "*stages"]
    last: Bool[np.ndarray | Array, "*stages"]


class Plan(NamedTuple):
    """The ends of the path, and the stages between (None: the solver chooses them)."""

    first: NoiseLevel
    last: NoiseLevel
    rows: Rows | None


@dataclasses.dataclass(frozen=True)
class ODE(Method):
    """-log2 p(x) by the change of variables along the flow from x to the prior.

    With uniform dequantization it bounds -log2 P(image) in expectation (`pixels.dequantize`). p is
    the density of what the model makes at the least noise of its schedule: x there is z / alpha.

    prior           -log2 of the prior's density where the flow ends.
    volume          the divergence of the flow, estimated as E[e^T J e] (Hutchinson; FFJORD).
    dequantization  -log2 of the width of a bin.

    solver: 'dopri5' with steps of its own to `tolerance` (relative and absolute), or 'rk4', 'heun'
        on a fixed grid. Each image has its own error control, so what it gets does not depend on
        who is in the batch; a batch takes as many steps as its slowest image.
    tolerance, max_steps: of 'dopri5'. An image that needs more steps gets NaN.
    steps, spacing: of the others: how many, evenly spaced in 'logsnr' or in 't'. A step is 2
        (heun) or 4 (rk4) network calls, each with a derivative for each probe.
    divergence: distribution of e, 'rademacher' or 'gaussian', the same e all along the path; or
        'exact', which has one derivative for each dimension.
    probes: draws of e, averaged.
    dequantization: of `pixels.DEQUANTIZATIONS`; 'none' for data that are not 8-bit values.
    """

    solver: str = "dopri5"
    tolerance: float = 1e-5
    max_steps: int = 1000
    steps: int = 0
    spacing: str = "logsnr"
    divergence: str = "rademacher"
    probes: int = 1
    dequantization: str = "centered"

    def __post_init__(self):
        check_option("solver", self.solver, SOLVERS)
        check_option("spacing", self.spacing, SPACINGS)
        check_option("divergence", self.divergence, DIVERGENCES)
        check_option("dequantization", self.dequantization, DEQUANTIZATIONS)
        if self.solver == "dopri5" and self.steps:
            raise ValueError(
                f"steps={self.steps}: 'dopri5' chooses its steps by tolerance; leave steps out, or "
                "take solver='rk4' or 'heun'"
            )
        if self.solver != "dopri5" and self.steps < 1:
            raise ValueError(f"steps={self.steps}: {self.solver!r} needs 1 or more, such as 100")
        if not self.tolerance > 0.0:
            raise ValueError(f"tolerance={self.tolerance}: must be above 0")
        if self.max_steps < 1 or self.probes < 1:
            raise ValueError(f"max_steps={self.max_steps}, probes={self.probes}: must be 1 or more")

    def plan(self, schedule: Schedule, learned_variance: bool) -> Plan:
        """The ends, and the stages of a fixed grid. A pure-noise end is cut at logsnr -20."""
        first, last = ends(schedule)
        if last.logsnr < _LOWEST:
            last = schedule.level_of_logsnr(np.float64(_LOWEST))
        if self.solver == "dopri5":
            return Plan(first, last, None)
        if self.spacing == "t":
            logsnr = schedule.logsnr(np.linspace(first.t, last.t, self.steps + 1))
        else:
            logsnr = np.linspace(first.logsnr, last.logsnr, self.steps + 1)
        points, weights = map(np.array, _STAGES[self.solver])
        step = np.diff(logsnr)[:, None]
        rows = Rows(
            level=schedule.level_of_logsnr((logsnr[:-1, None] + step * points).ravel()),
            pull=(step * points).ravel(),
            push=(step * weights).ravel(),
            last=np.tile(np.arange(len(points)) == len(points) - 1, self.steps),
        )
        return Plan(first, last, rows)

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        plan: Plan,
        x0: Float[Array, "batch *shape"],
        condition: Condition,
        keys: Key[Array, " batch"],
    ) -> Result:
        """Counts have the number of steps of each image."""
        plan = cast(plan)

        def one(x, condition, key):
            uniform_key, probe_key = (jax.random.fold_in(key, k) for k in (0, 1))
            x = dequantize(x, jax.random.uniform(uniform_key, x.shape), self.dequantization)
            field = vector_field(denoiser, condition, self._probes(probe_key, x))
            alpha = normalized(plan.first).alpha
            if plan.rows is None:
                end, steps = _adaptive(self, field, schedule, plan, alpha * x)
            else:
                end = _fixed(field, plan.rows, alpha * x)
                steps = jnp.full((), self.steps, x.dtype)
            z, volume = end
            nats = {
                "prior": 0.5 * (jnp.mean(z**2) + math.log(2.0 * math.pi)),
                # Of the flow, and of z = alpha x at its start.
                "volume": -volume - jnp.log(alpha),
            }
            parts = {name: value / math.log(2.0) for name, value in nats.items()}
            return parts, {"steps": steps}

        parts, counts = jax.vmap(one)(x0, condition, keys)
        bits = jnp.full(len(x0), dequantization_bits(self.dequantization), x0.dtype)
        return Result(parts | {"dequantization": bits}, {}, counts)

    def _probes(
        self, key: Key[Array, ""], like: Float[Array, "*shape"]
    ) -> Float[Array, "probes *shape"]:
        """Vectors e of unit variance: the mean of e^T J e over them estimates the trace of J."""
        if self.divergence == "exact":
            # One direction each, as long as all would be together.
            return math.sqrt(like.size) * jnp.eye(like.size).reshape(like.size, *like.shape)
        draw = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}
        return draw[self.divergence](key, (self.probes, *like.shape)).astype(like.dtype)


def vector_field(
    denoiser: Denoiser, condition: Condition, probes: Float[Array, "probes *shape"]
) -> Field:
    """Slopes of z of one image and of its divergence per dimension."""
    condition = jax.tree.map(lambda value: value[None], condition)

    def field(level: NoiseLevel, z: Float[Array, "*shape"]) -> State:
        alpha, sigma = alpha_sigma(level.logsnr, "vp")
        # The schedule's own scaling.
        scale = level.alpha / alpha

        def slope(z):
            prediction = denoiser(scale * z[None], level, condition)
            eps, x0 = prediction.eps[0], prediction.x0[0]
            return -0.5 * alpha * sigma * (alpha * eps - sigma * x0)

        def along(probe):
            return jax.jvp(slope, (z,), (probe,))

        # The slope itself does not depend on the probe and is computed once.
        dz, derivative = jax.vmap(along, out_axes=(None, 0))(probes)
        return dz, jnp.mean(probes * derivative)

    return field


def _fixed(field: Field, rows: Rows, z: Float[Array, "*shape"]) -> State:
    """The state at the end of a fixed grid: one scan over the stages of all steps."""

    def add(state, factor, slope):
        return jax.tree.map(lambda value, change: value + factor * change, state, slope)

    def stage(carry, row: Rows):
        start, total, slope = carry
        slope = field(row.level, add(start, row.pull, slope)[0])
        total = add(total, row.push, slope)
        start = jax.tree.map(lambda old, new: jnp.where(row.last, new, old), start, total)
        return (start, total, slope), None

    state = z, jnp.zeros((), z.dtype)
    (end, _, _), _ = jax.lax.scan(stage, (state, state, jax.tree.map(jnp.zeros_like, state)), rows)
    return end


def _adaptive(
    method: ODE, field: Field, schedule: Schedule, plan: Plan, z: Float[Array, "*shape"]
) -> tuple[State, Float[Array, ""]]:
    """The state at the end, NaN where it was not reached in max_steps, and the number of steps."""
    import diffrax  # slow to import, and only this needs it

    def norm(state: State) -> Float[Array, ""]:
        # The divergence counts as much as all pixels, not as one more of them.
        z, volume = state
        return jnp.maximum(jnp.sqrt(jnp.mean(z**2)), abs(volume))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda logsnr, state, _: field(schedule.level_of_logsnr(logsnr), state[0])),
        diffrax.Dopri5(),
        t0=plan.first.logsnr,
        t1=plan.last.logsnr,
        dt0=None,
        y0=(z, jnp.zeros((), z.dtype)),
        stepsize_controller=diffrax.PIDController(method.tolerance, method.tolerance, norm=norm),
        max_steps=method.max_steps,
        # No gradient is asked for.
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    reached = solution.result == diffrax.RESULTS.successful
    end = jax.tree.map(lambda path: jnp.where(reached, path[-1], jnp.nan), solution.ys)
    return end, solution.stats["num_steps"].astype(z.dtype)
