"""uint8 images to the model's [-1, 1] and back."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from diffusion.levels import AnyArray


def to_model(images: UInt8[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """v / 127.5 - 1 in float32."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def to_uint8(x: Float[AnyArray, "*shape"]) -> UInt8[Array, "*shape"]:
    """floor(clip(127.5 x + 128, 0, 255)): the nearest value, and exactly `to_model`'s inverse.

    (x + 1) 127.5 without the half, as in guided-diffusion, would truncate and darken the image.
    """
    return jnp.floor(jnp.clip(127.5 * x + 128.0, 0.0, 255.0)).astype(jnp.uint8)
