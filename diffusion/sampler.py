"""Sampling: one scan of a solver over its plan, with randomness per sample."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from diffusion.denoiser import Condition, Denoiser
from diffusion.levels import NoiseLevel
from diffusion.solvers import Solver


def sample_keys(seed: PRNGKeyArray, indices: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """The key of each sample, fold_in(seed, i): it does not depend on who else is in the batch."""
    return jax.vmap(lambda index: jax.random.fold_in(seed, index))(indices)


def sample(
    denoiser: Denoiser,
    solver: Solver,
    plan: Any,
    keys: Key[Array, " batch"],
    shape: tuple[int, ...],
    condition: Condition = None,
) -> Float[Array, "batch *shape"]:
    """Samples [batch, *shape] from `plan = solver.plan(grid)`; `shape` is that of one sample.

    Sample i starts from sigma of the first level times the noise of fold_in(keys[i], 0); step
    k = 1..N has the noise of fold_in(keys[i], k). Under jit the plan is an argument: its cast to
    float32 is the only rounding of the host's float64 coefficients.
    """
    plan = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), plan)
    steps = len(jax.tree.leaves(plan)[0])

    def normal(k: Int[Array, ""] | int) -> Float[Array, "batch *shape"]:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, k), shape))(keys)

    def bound(x: Float[Array, "batch *shape"], level: NoiseLevel):
        return denoiser(x, level, condition)

    def step(state: Any, row: tuple[Any, Int[Array, ""]]) -> tuple[Any, None]:
        plan_k, k = row
        return solver.step(state, bound, plan_k, normal(k)), None

    state = solver.init(plan.now.sigma[0] * normal(0))
    state, _ = jax.lax.scan(step, state, (plan, jnp.arange(1, steps + 1)))
    return solver.output(state)
