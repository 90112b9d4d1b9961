"""Distributions of t in training.

A time sampler is a function (key, batch_size, schedule) -> (t [batch], weight [batch]). The weight
multiplies each example's loss; a sampler of density p that must leave the expected loss as under
uniform sampling returns 1 / (N p), and one that means to change it returns ones. batch_size is the
global one: a stratified sampler spreads its strata over the whole batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from diffusion.schedules import Schedule

TimeSampler = Callable[
    [PRNGKeyArray, int, Schedule], tuple[Real[Array, " batch"], Float[Array, " batch"]]
]


def uniform() -> TimeSampler:
    """Each index equally often, or t uniform on `schedule.t_range` where time is continuous."""

    def draw(
        key: PRNGKeyArray, batch_size: int, schedule: Schedule
    ) -> tuple[Real[Array, " batch"], Float[Array, " batch"]]:
        shape = (batch_size,)
        if schedule.num_timesteps is None:
            low, high = schedule.t_range
            t = jax.random.uniform(key, shape, minval=low, maxval=high)
        else:
            t = jax.random.randint(key, shape, 0, schedule.num_timesteps)
        return t, jnp.ones(shape)

    return draw
