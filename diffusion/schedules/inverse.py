"""The time at which a schedule reaches a logsnr, where no formula gives it."""

from collections.abc import Callable

import jax
import numpy as np
from jax.typing import ArrayLike

from diffusion.levels import namespace

# Halvings that leave of an interval of length 1 less than a unit in the last place at 1.
_HALVINGS = {np.float64: 53, np.float32: 24}


def bisect(
    falling: Callable[[ArrayLike], ArrayLike], target: ArrayLike, low: ArrayLike, high: ArrayLike
) -> ArrayLike:
    """t in [low, high] with falling(t) = target, elementwise; the nearest end where there is none.

    Not differentiable: the gradient of t is cut.
    """
    xp = namespace(target)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        before = falling(middle) > target
        return xp.where(before, middle, low), xp.where(before, high, middle)

    bracket = xp.zeros_like(target) + low, xp.zeros_like(target) + high
    halvings = _HALVINGS.get(target.dtype.type, 53)
    if xp is np:
        for step in range(halvings):
            bracket = halve(step, bracket)
    else:
        target = jax.lax.stop_gradient(target)
        bracket = jax.lax.fori_loop(0, halvings, halve, jax.lax.stop_gradient(bracket))
    return 0.5 * (bracket[0] + bracket[1])
