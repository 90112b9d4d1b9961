"""Exponential moving averages of the parameters."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from training import components

# step (counted from 1 at the first update) -> how much of the old average stays.
Decay = Callable[[Int[Array, ""]], Float[Array, ""]]


def constant(decay: float = 0.9999) -> Decay:
    """The same decay from the first step on, starting at the initial parameters (DDPM)."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")
    return lambda step: jnp.float32(decay)


EMAS = {"constant": constant}


def make_emas(config: ConfigDict) -> dict[str, Decay]:
    """The decays of `config.ema`, by name."""
    return {name: components.build(EMAS, config[name], f"config.ema.{name}") for name in config}


def update(averages: Mapping, params, decays: Mapping[str, Decay], step: Int[Array, ""]) -> dict:
    """One step of every average: decay * average + (1 - decay) * params."""

    def one(name):
        rate = 1 - decays[name](step)
        return jax.tree.map(lambda a, p: a + rate * (p - a), averages[name], params)

    return {name: one(name) for name in averages}
