"""Consistency models of continuous time, simplified (sCM; Lu and Song 2024).

TrigFlow is a change of variables of any path: with sigma_d the data's standard deviation,

    angle = arctan(sigma / (alpha sigma_d)),   x_trig = cos(angle) x0 + sin(angle) sigma_d eps,

so x_trig = sigma_d x / sqrt(sigma^2 + (alpha sigma_d)^2), and EDM's preconditioning is
f = cos(angle) x_trig - sin(angle) sigma_d F with F minus the network's raw output.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.levels import NoiseLevel, expand_like
from diffusion.schedules import Schedule

# (x_trig / sigma_d, angle [batch]) -> F
Velocity = Callable[[Array, Array], Array]


def angle_of_level(level: NoiseLevel, sigma_data: float) -> Float[Array, " batch"]:
    """In (0, pi / 2): 0 is clean data."""
    return jnp.arctan(jnp.exp(-0.5 * level.logsnr) / sigma_data)


def level_of_angle(
    angle: Float[Array, " batch"], schedule: Schedule, sigma_data: float
) -> NoiseLevel:
    """The schedule's level of an angle."""
    return schedule.level_of_logsnr(-2.0 * jnp.log(sigma_data * jnp.tan(angle)))


def tangent(
    velocity: Velocity,
    x: Float[Array, "batch *shape"],
    angle: Float[Array, " batch"],
    slope: Float[Array, "batch *shape"],
    sigma_data: float,
    warmup: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"]]:
    """(F, g): g = cos(angle) df / d angle along the path with d x / d angle = `slope`.

    g = -cos^2 (sigma_d F - slope) - warmup cos sin (x + sigma_d dF / d angle) (Lu and Song 2024,
    eq. 8 and algorithm 1). The factor cos sin goes into the tangents of the JVP, which keeps it
    finite at both ends.
    """
    cos, sin = expand_like(jnp.cos(angle), x), expand_like(jnp.sin(angle), x)
    value, derivative = jax.jvp(
        velocity,
        (x / sigma_data, angle),
        (cos * sin * slope / sigma_data, jnp.cos(angle) * jnp.sin(angle)),
    )
    still = -(cos**2) * (sigma_data * value - slope)
    return value, still - warmup * (cos * sin * x + sigma_data * derivative)


def normalized(g: Float[Array, "batch *shape"], c: float) -> Float[Array, "batch *shape"]:
    """g / (|g| + c), |g| the root mean square of an example, so that c means the same at any size.

    The paper has the 2-norm; the factor between them is one of the loss, which the adaptive weight
    takes up.
    """
    norm = jnp.sqrt(jnp.mean(g**2, axis=tuple(range(1, g.ndim)), keepdims=True))
    return g / (norm + c)


def scm_loss(
    velocity: Velocity,
    x: Float[Array, "batch *shape"],
    angle: Float[Array, " batch"],
    slope: Float[Array, "batch *shape"],
    sigma_data: float,
    c: float = 0.1,
    warmup: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """(loss, mean square of g before normalization), of each example.

    |F - sg(F + g / (|g| + c))|^2 a pixel: its value is that of the normalized g whatever the
    network, its gradient that of the consistency loss in the limit of small steps. c infinity, that
    is no normalization, is not offered.
    """
    value, g = jax.lax.stop_gradient(tangent(velocity, x, angle, slope, sigma_data, warmup))
    axes = tuple(range(1, x.ndim))
    difference = velocity(x / sigma_data, angle) - value - normalized(g, c)
    return jnp.mean(difference**2, axis=axes), jnp.mean(g**2, axis=axes)
