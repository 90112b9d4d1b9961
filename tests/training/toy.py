"""A task small enough to reason about: linear regression on rows of noise."""

import jax
import jax.numpy as jnp


class ToyTask:
    """Fits `w` to images' mean; the loss has noise from the step's rng, as diffusion's has."""

    def __init__(self, noise=0.1):
        self.noise = noise

    def batch_spec(self, batch_size):
        return {"image": jax.ShapeDtypeStruct((batch_size, 4, 4, 1), jnp.float32)}

    def init(self, rng):
        return {"w": jax.random.normal(rng, (128, 128)), "b": jnp.zeros((3,))}

    def init_state(self):
        return {}

    def loss(self, params, state, batch, rng):
        x = batch["image"]
        noise = self.noise * jax.random.normal(rng, x.shape)
        error = (params["w"].mean() + params["b"].sum() - (x + noise)) ** 2
        return error.mean(), ({"mse": error.mean()}, state)
