"""Flow maps: a network of the mean velocity over a step, MeanFlow's and that of shortcut models.

On the straight path x = (1 - t) x0 + t eps with velocity dx/dt = v, u(x, t, h) is the mean velocity
from t down to t - h, so x_{t-h} = x - h u, and u(x, t, 0) = v.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.levels import expand_like

# (x, t [batch], h [batch]) -> u
MeanVelocity = Callable[[Array, Array, Array], Array]


def ordered_times(
    first: Float[Array, " batch"], second: Float[Array, " batch"], equal: float
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """(t, r), t >= r, of two draws; r = t in the share `equal` of the batch (section 4.3)."""
    t, r = jnp.maximum(first, second), jnp.minimum(first, second)
    count = len(t)
    return t, jnp.where(jnp.arange(count) < round(equal * count), t, r)


def meanflow_target(
    u: MeanVelocity,
    x: Float[Array, "batch *shape"],
    t: Float[Array, " batch"],
    r: Float[Array, " batch"],
    v: Float[Array, "batch *shape"],
) -> Float[Array, "batch *shape"]:
    """v - (t - r) du/dt, the total derivative along the path (Geng et al. 2025, eq. 10 and 11).

    With r held and t moving, h = t - r moves as t does.
    """
    h, ones = t - r, jnp.ones_like(t)
    _, derivative = jax.jvp(u, (x, t, h), (v, ones, ones))
    return jax.lax.stop_gradient(v - expand_like(h, x) * derivative)


def adaptive_loss(
    difference: Float[Array, "batch *shape"], power: float, c: float
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """(|d|^2 / sg(|d|^2 + c)^power, mean square a pixel) of each example (Geng et al., eq. 22)."""
    axes = tuple(range(1, difference.ndim))
    square = jnp.sum(difference**2, axis=axes)
    weight = jax.lax.stop_gradient(square + c) ** power
    return square / weight, jnp.mean(difference**2, axis=axes)


def shortcut_target(
    u: MeanVelocity,
    x: Float[Array, "batch *shape"],
    t: Float[Array, " batch"],
    h: Float[Array, " batch"],
    clip: float = 0.0,
) -> Float[Array, "batch *shape"]:
    """Mean velocity over a step h made of two of h / 2 (Frans et al. 2024, eq. 4).

    clip: bound of the point between and of the target, as in the authors' code (there 4); 0: none.
    """

    def bounded(value: Array) -> Array:
        return jnp.clip(value, -clip, clip) if clip else value

    half = 0.5 * h
    first = u(x, t, half)
    between = bounded(x - expand_like(half, x) * first)
    second = u(between, t - half, half)
    return jax.lax.stop_gradient(bounded(0.5 * (first + second)))
