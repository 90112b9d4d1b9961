"""Sinusoidal embedding of time."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num


def sinusoidal(
    time: Num[Array, " batch"], channels: int, order: str
) -> Float[Array, "batch channels"]:
    """Sines and cosines of time at geometric frequencies from 1 to about 1 / 10000; float32.

    order: 'ddpm' is [sin, cos] with frequencies 10000^(-i / (half - 1)) (Ho et al., 2020), 'adm'
        [cos, sin] with 10000^(-i / half) (Nichol and Dhariwal, 2021). half = channels // 2.

    float32 always: bfloat16 cannot tell half of the integers below 1000 apart.
    """
    half = channels // 2
    if order not in ("ddpm", "adm"):
        raise ValueError(f"order={order!r}: allowed are 'ddpm' and 'adm'")
    steps = half - 1 if order == "ddpm" else half
    frequencies = np.exp(-math.log(10_000) * np.arange(half) / steps).astype(np.float32)
    angle = time.astype(jnp.float32)[:, None] * frequencies
    waves = (jnp.sin(angle), jnp.cos(angle))
    return jnp.concatenate(waves if order == "ddpm" else waves[::-1], axis=-1)
