"""Sampling: one scan of a solver over its plan, with randomness per sample."""

from collections.abc import Callable
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
    """Samples [batch, *shape] from `plan = solver.plan(grid, schedule)`; `shape` is one sample's.

    Sample i starts from sigma of the first level times the noise of fold_in(keys[i], 0); row
    k = 1, 2, ... of the plan has the noise of fold_in(keys[i], k).
    """

    def normal(k: Int[Array, ""] | int) -> Float[Array, "batch *shape"]:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, k), shape))(keys)

    start = jnp.asarray(plan.now.sigma[0], jnp.float32) * normal(0)
    return _walk(denoiser, solver, plan, start, normal, condition)


def integrate(
    denoiser: Denoiser,
    solver: Solver,
    plan: Any,
    x: Float[Array, "batch *shape"],
    condition: Condition = None,
) -> Float[Array, "batch *shape"]:
    """The x at the end of a plan from the x at its first level, by a deterministic solver.

    Along a grid that rises, `NoiseLevel(*(field[::-1] for field in grid))`, it is DDIM's inversion,
    from an image to its noise; along the grid itself it leads back.

    Raises:
        ValueError: the solver adds noise.
    """
    if solver.stochastic:
        raise ValueError(
            f"integrate: {solver} adds noise; take a deterministic solver such as ddim(eta=0.0)"
        )
    return _walk(denoiser, solver, plan, x, lambda k: jnp.zeros_like(x), condition)


def _walk(
    denoiser: Denoiser,
    solver: Solver,
    plan: Any,
    start: Float[Array, "batch *shape"],
    noise: Callable[[Int[Array, ""]], Float[Array, "batch *shape"]],
    condition: Condition,
) -> Float[Array, "batch *shape"]:
    """One scan over the rows of a plan.

    Under jit the plan is an argument: its cast to float32 is the only rounding of the host's
    float64 coefficients.
    """
    plan = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), plan)
    rows = len(jax.tree.leaves(plan)[0])

    def bound(x: Float[Array, "batch *shape"], level: NoiseLevel, **told: Float[Array, ""]):
        """What a solver tells beside the level joins the condition."""
        each = {name: jnp.broadcast_to(value, x.shape[:1]) for name, value in told.items()}
        return denoiser(x, level, (condition or {}) | each if each else condition)

    def step(state: Any, row: tuple[Any, Int[Array, ""]]) -> tuple[Any, None]:
        plan_k, k = row
        return solver.step(state, bound, plan_k, noise(k)), None

    state, _ = jax.lax.scan(step, solver.init(start), (plan, jnp.arange(1, rows + 1)))
    return solver.output(state)
