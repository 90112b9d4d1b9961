"""Classifier-free guidance that stays nearer to the data: CFG++ and adaptive projection."""

from typing import ClassVar

import numpy as np

from diffusion.denoiser import Condition, Prediction
from diffusion.guidance.base import Conditions, Guidance, Number, Seen, inside, register
from diffusion.guidance.contrast import checked_interval, negated
from diffusion.levels import namespace


@register
class CFGPlusPlus(Guidance):
    """x0 between null and conditional, eps of null: for a solver that takes each for itself."""

    share: Number
    negative: Number | None
    needs_null: ClassVar[bool] = True

    def conditions(self, condition: Condition, null: Condition, batch: int) -> Conditions:
        """No label, or the negative one."""
        return (negated(condition, null, self.negative),)

    def apply(self, guided: Prediction, seen: Seen) -> Prediction:
        """x = alpha x0 + sigma eps does not hold for what this gives, unless the share is 0."""
        (null,) = seen.others
        x0 = (1.0 - self.share) * null.x0 + self.share * seen.conditional.x0
        return guided._replace(x0=x0, eps=null.eps)


def cfg_plus_plus(scale: float, negative: int | None = None) -> CFGPlusPlus:
    """CFG++ (Chung et al. 2024, algorithm 2): x0 from the guided noise, renoised with the null's.

    Args:
        scale: their lambda, from 0 (unconditional) to 1.
        negative: as of `classifier_free`.
    """
    if not 0.0 <= scale <= 1.0:
        raise ValueError(
            f"scale={scale}: must be from 0 to 1; it interpolates, and 0.6 is about as strong as "
            "classifier_free(scale=7.5)"
        )
    return CFGPlusPlus(float(scale), negative)


@register
class AdaptiveProjected(Guidance):
    """Moves x0 by extra times the difference's part across the conditional x0, and less along it.

    The difference's norm over each image is cut to `threshold` before, and its part along the
    conditional x0 is weighted by `parallel`.
    """

    extra: Number
    parallel: Number
    threshold: Number
    interval: tuple[Number, Number]
    negative: Number | None
    needs_null: ClassVar[bool] = True

    def conditions(self, condition: Condition, null: Condition, batch: int) -> Conditions:
        """No label, or the negative one."""
        return (negated(condition, null, self.negative),)

    def apply(self, guided: Prediction, seen: Seen) -> Prediction:
        """See the class; eps follows x0."""
        xp, along = namespace(seen.x), seen.conditional.x0
        difference = along - seen.others[0].x0
        axes = tuple(range(1, along.ndim))
        tiny = np.finfo(np.float32).tiny

        def inner(a, b):
            return xp.sum(a * b, axis=axes, keepdims=True)

        norm = xp.sqrt(inner(difference, difference))
        difference = difference * xp.minimum(1.0, self.threshold / xp.maximum(norm, tiny))
        onto = inner(difference, along) / xp.maximum(inner(along, along), tiny) * along
        extra = xp.where(inside(seen.level, self.interval, seen.x), self.extra, 0.0)
        step = extra * (difference - (1.0 - self.parallel) * onto)
        level = seen.level.like(seen.x)
        return guided._replace(
            x0=guided.x0 + step, eps=guided.eps - level.alpha / level.sigma * step
        )


def adaptive_projected(
    scale: float,
    parallel: float = 0.0,
    threshold: float = float("inf"),
    interval: tuple | None = None,
    negative: int | None = None,
) -> AdaptiveProjected:
    """Adaptive projected guidance (Sadat et al. 2024) without its momentum over steps.

    Args:
        scale: as of `classifier_free`, 1 is off.
        parallel: their eta; 1 with no threshold is `classifier_free`.
        threshold: their r, the largest norm of the difference of x0 over an image.
        interval: as of `classifier_free`.
        negative: as of `classifier_free`.
    """
    if not threshold > 0.0:
        raise ValueError(f"threshold={threshold}: must be above 0")
    if not (np.isfinite(scale) and np.isfinite(parallel)):
        raise ValueError(f"scale={scale}, parallel={parallel}: must be finite")
    ends = checked_interval(interval)
    return AdaptiveProjected(float(scale) - 1.0, float(parallel), float(threshold), ends, negative)
