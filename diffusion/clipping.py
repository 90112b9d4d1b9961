"""Rules that keep the predicted clean image within the range of images; `diffusion.CLIPS`."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from diffusion.levels import AnyArray, namespace

# Predicted x0 [batch ...] -> x0.
Clip = Callable[[AnyArray], AnyArray]


def keep(x0: Float[AnyArray, "batch *shape"]) -> Float[AnyArray, "batch *shape"]:
    """x0 itself."""
    return x0


def none() -> Clip:
    """No rule: latents, or a sampler that is measured as a solver of its ODE."""
    return keep


def static() -> Clip:
    """To [-1, 1] (DDPM)."""

    def clip(x0: Float[AnyArray, "batch *shape"]) -> Float[AnyArray, "batch *shape"]:
        return namespace(x0).clip(x0, -1.0, 1.0)

    return clip


def dynamic(percentile: float = 0.995, maximum: float = math.inf) -> Clip:
    """To [-s, s], then divided by s >= 1, the percentile of |x0| in each sample (Imagen, 2.3).

    maximum bounds s. diffusers' is 1 unless set, which is 'static'.
    """
    if not 0.0 < percentile <= 1.0:
        raise ValueError(f"clip 'dynamic': percentile={percentile} must lie in (0, 1]")
    if not maximum >= 1.0:
        raise ValueError(f"clip 'dynamic': maximum={maximum} must be at least 1")

    def clip(x0: Float[AnyArray, "batch *shape"]) -> Float[AnyArray, "batch *shape"]:
        xp, axes = namespace(x0), tuple(range(1, np.ndim(x0)))
        s = xp.quantile(abs(x0), percentile, axis=axes, keepdims=True)
        s = xp.clip(s, 1.0, maximum)
        return xp.clip(x0, -s, s) / s

    return clip
