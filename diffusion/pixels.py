"""uint8 images to the model's [-1, 1] and back, and to densities over it."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from diffusion.levels import AnyArray
from diffusion.options import check_option

DEQUANTIZATIONS = ("centered", "score_sde", "none")


def to_model(images: UInt8[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """v / 127.5 - 1 in float32."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def to_uint8(x: Float[AnyArray, "*shape"]) -> UInt8[Array, "*shape"]:
    """floor(clip(127.5 x + 128, 0, 255)): the nearest value, and exactly `to_model`'s inverse.

    (x + 1) 127.5 without the half, as in guided-diffusion, would truncate and darken the image.
    """
    return jnp.floor(jnp.clip(127.5 * x + 128.0, 0.0, 255.0)).astype(jnp.uint8)


def dequantize(
    x: Float[AnyArray, "*shape"], uniform: Float[AnyArray, "*shape"], rule: str = "centered"
) -> Float[AnyArray, "*shape"]:
    """Spread each of `to_model`'s 256 values over its bin, by uniform numbers u on [0, 1).

    With bins of width w, P(v) = integral of p over the bin >= w exp(E_u log p(x(u))), so that
    -log2 P(v) <= E_u[-log2 p(x(u))] + `dequantization_bits`.

    'centered'   (v + u - 1/2) / 127.5 - 1, w = 1 / 127.5: the bins around the values that a model
                 is trained on.
    'score_sde'  (v + u) / 128 - 1, w = 1 / 128: Song et al.'s, whose bins fill [-1, 1]. Their
                 centres are not the values: off by 1 / 256 at black and white.
    'none'       x itself: its density.
    """
    check_option("dequantization", rule, DEQUANTIZATIONS)
    if rule == "none":
        return x
    if rule == "score_sde":
        return (127.5 * (x + 1.0) + uniform) / 128.0 - 1.0
    return x + (uniform - 0.5) / 127.5


def dequantization_bits(rule: str = "centered") -> float:
    """-log2 of the width of a bin of `dequantize`, in bits/dim: 6.994, 7 or (density) 0."""
    check_option("dequantization", rule, DEQUANTIZATIONS)
    return {"centered": math.log2(127.5), "score_sde": 7.0, "none": 0.0}[rule]
