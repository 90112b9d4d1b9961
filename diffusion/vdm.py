"""The variational bound in continuous time (Kingma et al. 2021, "Variational diffusion models")."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.gaussian import normal_kl, q_sample
from diffusion.levels import NoiseLevel
from diffusion.schedules import Schedule


def gamma_slope(schedule: Schedule, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """d gamma / dt at t, gamma = -logsnr, differentiable in the schedule's parameters."""
    _, slope = jax.jvp(lambda t: -schedule.logsnr(t), (t,), (jnp.ones_like(t),))
    return slope


def diffusion_bits(
    eps: Float[Array, "batch *shape"],
    eps_hat: Float[Array, "batch *shape"],
    slope: Float[Array, " batch"],
) -> Float[Array, " batch"]:
    """gamma'(t) / 2 |eps - eps_hat|^2 in bits/dim, one draw of eq. 17, for t uniform on [0, 1]."""
    return 0.5 * slope * _mean((eps - eps_hat) ** 2) / math.log(2.0)


def prior_bits(x0: Float[Array, "batch *shape"], last: NoiseLevel) -> Float[Array, " batch"]:
    """KL(q(z_1 | x) || N(0, 1)) in bits/dim; `last` is the noisiest level (of scalars)."""
    return _mean(normal_kl(last.alpha * x0, 2.0 * jnp.log(last.sigma), 0.0, 0.0)) / math.log(2.0)


def reconstruction_bits(
    x0: Float[Array, "batch *shape"], eps: Float[Array, "batch *shape"], first: NoiseLevel
) -> Float[Array, " batch"]:
    """-log p(x | z_0) in bits/dim, z_0 at the least noisy level `first` (of scalars).

    p(x | z_0) is proportional to q(z_0 | x) over the 256 values of a pixel (section 3.3): exact,
    without cumulative distribution functions. Values are v / 127.5 - 1, as in `pixels.to_model`.
    """
    z = q_sample(x0, eps, first) / first.alpha
    values = jnp.arange(256) / 127.5 - 1.0
    logits = -0.5 * jnp.exp(first.logsnr) * (z[..., None] - values) ** 2
    index = jnp.round((x0 + 1.0) * 127.5).astype(jnp.int32)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), index[..., None], axis=-1)
    return -_mean(picked[..., 0]) / math.log(2.0)


def _mean(x: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))
