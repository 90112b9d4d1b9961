"""Guidance: denoisers made from denoisers."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from diffusion.denoiser import Condition, Denoiser, Prediction
from diffusion.levels import NoiseLevel, expand_like


def classifier_free(denoiser: Denoiser, null_condition: Condition, scale: ArrayLike) -> Denoiser:
    """eps = eps_null + scale (eps_label - eps_null) (Ho & Salimans 2022, scale = 1 + their w).

    scale is a number, a traced scalar or [batch]; the number 1 turns guidance off (and saves the
    second half of the batch). Leaves of null_condition broadcast to those of the condition.
    x0 takes the same combination as eps: at one x and level each is an affine function of the
    other, so both say the same as long as nothing was clipped. The learned variance is that of
    the conditional half. Both halves are one call of the network.
    """
    if isinstance(scale, int | float) and scale == 1:
        return denoiser

    def denoise(
        x: Float[Array, "batch *shape"], level: NoiseLevel, condition: Condition
    ) -> Prediction:
        if condition is None:
            raise ValueError("classifier_free: condition is None; guidance needs a condition")
        null = jax.tree.map(lambda c, n: jnp.broadcast_to(n, c.shape), condition, null_condition)
        both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, null)
        levels = NoiseLevel(*(jnp.tile(f, 2) if jnp.ndim(f) else f for f in level))
        out = denoiser(jnp.concatenate([x, x]), levels, both)
        strength = expand_like(scale, x)

        def guide(pair: Float[Array, "both *shape"]) -> Float[Array, "batch *shape"]:
            conditional, unconditional = jnp.split(pair, 2)
            return unconditional + strength * (conditional - unconditional)

        fraction = out.variance_fraction
        return Prediction(
            guide(out.x0), guide(out.eps), None if fraction is None else fraction[: len(x)]
        )

    return denoise
