"""A learned weight of the loss over noise levels: homoscedastic uncertainty."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """u(logsnr) in loss / e^u + u, which evens out the size of all levels' losses (EDM2, eq. 14).

    u is linear in Fourier features of c_noise = -logsnr / 8. At its best e^u is the mean loss of
    the level, so the gradients of all levels have one size. Its weights have unit norm, as all of
    EDM2's; frequencies and phases are drawn once and stay. It says nothing in sampling.
    """

    channels: int

    def init(self, key: Key[Array, ""]) -> dict:
        """Parameters: `frequencies` and `phases` (constant) [channels], `kernel` [channels, 1]."""
        keys = jax.random.split(key, 3)
        shape = (self.channels,)
        return {
            "frequencies": 2.0 * jnp.pi * jax.random.normal(keys[0], shape),
            "phases": 2.0 * jnp.pi * jax.random.uniform(keys[1], shape),
            "kernel": jax.random.normal(keys[2], (self.channels, 1)),
        }

    def __call__(self, params: dict, logsnr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """u at each level."""
        frequencies, phases = map(jax.lax.stop_gradient, (params["frequencies"], params["phases"]))
        angle = -0.125 * logsnr[:, None] * frequencies + phases
        kernel = params["kernel"]
        norm = 1e-4 + jnp.linalg.norm(kernel) / self.channels**0.5
        features = jnp.sqrt(2.0) * jnp.cos(angle)
        return (features @ (kernel / norm) / self.channels**0.5)[:, 0]
