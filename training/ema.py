"""Exponential moving averages of the parameters.

Each is a rate: how much of the parameters enters at a step, 1 - decay. The rate and not the decay,
which is near 1: in float32 that would leave the rate few digits (at a decay of 1 - 1e-6, one and a
half).
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from training import components, posthoc

# step (counted from 1 at the first update) -> 1 - decay.
Rate = Callable[[Int[Array, ""]], Float[Array, ""]]


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")


def constant(decay: float = 0.9999) -> Rate:
    """The same decay from the first step on, starting at the initial parameters (DDPM)."""
    _check_decay(decay)
    return lambda step: jnp.float32(1 - decay)


def warmup(decay: float = 0.9999, power: float = 2 / 3, inv_gamma: float = 1.0) -> Rate:
    """min(decay, 1 - (1 + n / inv_gamma)^-power) after n updates (k-diffusion).

    The first update copies the parameters.
    """
    _check_decay(decay)
    if not (power > 0 and inv_gamma > 0):
        raise ValueError(f"power and inv_gamma must be above 0, got {power} and {inv_gamma}")
    return lambda step: jnp.maximum((1 + (step - 1) / inv_gamma) ** -power, 1 - decay)


def warmup_ratio(decay: float = 0.9999) -> Rate:
    """min(decay, (1 + n) / (10 + n)) after n updates (TensorFlow's; diffusers without its warm-up).

    The first update copies the parameters, as with diffusers.
    """
    _check_decay(decay)

    def rate(step):
        n = step - 1
        return jnp.where(n > 0, jnp.maximum(9 / (10 + n), 1 - decay), 1.0)

    return rate


def halflife(images: int = 500_000, rampup: float | None = 0.05, *, batch_size: int) -> Rate:
    """Half of the weight lies on the last `images` images, or on `rampup` of all until then (EDM).

    The first update copies the parameters. `rampup` None: the same half-life from the first on.
    """
    if images <= 0 or (rampup is not None and rampup <= 0):
        raise ValueError(f"images and rampup must be above 0, got {images} and {rampup}")

    def rate(step):
        seen = (step - 1) * jnp.float32(batch_size)
        life = images if rampup is None else jnp.minimum(images, seen * rampup)
        return -jnp.expm1(-math.log(2) * batch_size / jnp.maximum(life, 1e-8))

    return rate


def power(std: float) -> Rate:
    """Width `std` of the training time so far, whatever that is (EDM2, eq. 127).

    The parameters of step s weigh (s / step)^gamma. Averages like this can be turned into one of
    another width after training (`training.posthoc`). The first update copies the parameters.
    """
    gamma = posthoc.exponent(std)
    # 1 - (1 - 1 / step)^(gamma + 1)
    return lambda step: -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(step, jnp.float32)))


EMAS = {
    "constant": constant,
    "warmup": warmup,
    "warmup_ratio": warmup_ratio,
    "halflife": halflife,
    "power": power,
}


def make_emas(config: ConfigDict, batch_size: int) -> dict[str, Rate]:
    """The averages of `config.ema`, by name; `batch_size` examples are a step."""
    return {
        name: components.build(EMAS, config[name], f"config.ema.{name}", batch_size=batch_size)
        for name in config
    }


def update(averages: Mapping, params, rates: Mapping[str, Rate], step: Int[Array, ""]) -> dict:
    """One step of every average: average + rate * (params - average)."""

    def one(name):
        rate = rates[name](step)
        return jax.tree.map(lambda a, p: a + rate * (p - a), averages[name], params)

    return {name: one(name) for name in averages}
