"""Guidance away from a weaker prediction: prediction + extra (conditional - weaker)."""

import math
from typing import ClassVar

import numpy as np

from diffusion.denoiser import Condition, Prediction
from diffusion.guidance.base import (
    Conditions,
    Guidance,
    Number,
    Run,
    Seen,
    inside,
    register,
    replaced,
    static,
)
from diffusion.levels import NoiseLevel, expand_like, namespace
from diffusion.parameterization import Parameterization

Interval = tuple[float, float]


@register
class Contrast(Guidance):
    """Adds extra (conditional - weaker) within an interval of sigma / alpha, then rescales.

    extra: 0 is off. x0 and eps take the same combination: at one x and level each is an affine
        function of the other, so both say the same as long as nothing was clipped.
    rescale: 0 is off; 1 gives the network's guided output the standard deviation, over each whole
        image, of the conditional one (Lin et al. 2023, eq. 15 and 16).
    interval: outside of (low, high] extra is 0 (Kynkaanniemi et al. 2024).
    """

    extra: Number
    rescale: Number
    interval: tuple[Number, Number]

    def weaker(self, seen: Seen) -> Prediction:
        """What is moved away from."""
        return seen.others[0]

    def apply(self, guided: Prediction, seen: Seen) -> Prediction:
        """See the class."""
        strong, weak = seen.conditional, self.weaker(seen)
        xp = namespace(seen.x)
        extra = xp.where(
            inside(seen.level, self.interval, seen.x), expand_like(self.extra, seen.x), 0.0
        )
        moved = guided._replace(
            x0=guided.x0 + extra * (strong.x0 - weak.x0),
            eps=guided.eps + extra * (strong.eps - weak.eps),
        )
        return rescaled(moved, strong, self.rescale, seen.level, seen.parameterization)


def rescaled(
    guided: Prediction,
    conditional: Prediction,
    share: Number,
    level: NoiseLevel,
    parameterization: Parameterization,
) -> Prediction:
    """The network's output times share std(conditional) / std(guided) + 1 - share."""
    raw = parameterization.target(guided.x0, guided.eps, level)
    reference = parameterization.target(conditional.x0, conditional.eps, level)
    xp = namespace(raw)
    axes = tuple(range(1, raw.ndim))
    spread, wanted = (xp.std(a, axis=axes, keepdims=True) for a in (raw, reference))
    ratio = wanted / xp.maximum(spread, np.finfo(np.float32).tiny)
    # At one x the prediction is linear in the output: the change alone, exactly 0 where it is off.
    change = parameterization.prediction(share * (ratio - 1.0) * raw, xp.zeros_like(raw), level)
    return guided._replace(x0=guided.x0 + change[0], eps=guided.eps + change[1])


@register
class ClassifierFree(Contrast):
    """Away from the prediction of no label, or of another label."""

    negative: Number | None
    needs_null: ClassVar[bool] = True

    def conditions(self, condition: Condition, null: Condition, batch: int) -> Conditions:
        """No label, or the negative one."""
        return (negated(condition, null, self.negative),)


def negated(condition: Condition, null: Condition, negative: Number | None) -> Condition:
    """The condition that is moved away from: `null`, or the label `negative`."""
    return replaced(condition, null if negative is None else {"label": negative})


def classifier_free(
    scale: float | None = None,
    w: float | None = None,
    rescale: float = 0.0,
    interval: tuple | None = None,
    negative: int | None = None,
) -> ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022): null + scale (conditional - null).

    Args:
        scale: 1 is off (Imagen, GLIDE, EDM2).
        w: the paper's own, 0 is off: scale = 1 + w. One of the two has to be given.
        rescale: share of the output that is rescaled, 0 to 1 (0.7 in Lin et al.).
        interval: (low, high) of sigma / alpha, EDM's sigma; None: everywhere.
        negative: a label to move away from instead of no label.
    """
    if (scale is None) == (w is None):
        raise ValueError("give one of scale=... (1 is off) and w=... (0 is off)")
    extra = float(scale) - 1.0 if w is None else float(w)
    return ClassifierFree(extra, *_common("scale or w", extra, rescale, interval), negative)


@register
class Autoguidance(Contrast):
    """Away from the prediction of a weaker network of the same task."""

    run: Run = static()
    companion: ClassVar[str] = "denoiser"

    def weaker(self, seen: Seen) -> Prediction:
        """The other network's prediction, under the same condition."""
        return seen.companion(seen.x, seen.level, seen.condition)


def autoguidance(
    scale: float,
    workdir: str = "",
    ema: str = "",
    checkpoint: int = -1,
    rescale: float = 0.0,
    interval: tuple | None = None,
) -> Autoguidance:
    """Autoguidance (Karras et al. 2024): weak + scale (strong - weak); scale 1 is off.

    Args:
        scale: the paper's w.
        workdir: of the weaker network's run; '': the run that is sampled.
        ema: its average; '': that of config.sample.ema.
        checkpoint: its step; -1: the newest.
        rescale: as of `classifier_free`.
        interval: as of `classifier_free`.
    """
    if not (workdir or ema or checkpoint != -1):
        raise ValueError(
            "the weaker network would be the sampled one itself; give workdir, ema or checkpoint"
        )
    extra = float(scale) - 1.0
    common = _common("scale", extra, rescale, interval)
    return Autoguidance(extra, *common, Run(workdir, ema, checkpoint))


@register
class PerturbedAttention(Contrast):
    """Away from the prediction of the same network with self-attention replaced by identity."""

    places: tuple[int, ...] = static()

    def conditions(self, condition: Condition, null: Condition, batch: int) -> Conditions:
        """The same, with the flag that networks read (`models.attention`)."""
        on = np.ones(batch, bool)
        return ((condition or {}) | {"identity_attention": dict.fromkeys(self.places, on)},)


def perturbed_attention(
    scale: float, places: tuple, rescale: float = 0.0, interval: tuple | None = None
) -> PerturbedAttention:
    """Perturbed-attention guidance (Ahn et al. 2024): adds scale (prediction - perturbed).

    Args:
        scale: 0 is off; it adds to what stands before it, such as `classifier_free`.
        places: where values pass by instead of being attended to: resolutions in pixels of a U-Net,
            block numbers of a DiT.
        rescale: as of `classifier_free`.
        interval: as of `classifier_free`.
    """
    whole = all(isinstance(place, int) and place >= 0 for place in places)
    if not places or not whole:
        raise ValueError(f"places={places}: must be a tuple of whole numbers, such as (8,)")
    extra = float(scale)
    return PerturbedAttention(extra, *_common("scale", extra, rescale, interval), tuple(places))


def _common(
    name: str, extra: float, rescale: float, interval: tuple | None
) -> tuple[float, Interval]:
    """(rescale, interval), checked."""
    if not math.isfinite(extra):
        raise ValueError(f"{name} must be finite")
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale={rescale}: must be from 0 (off) to 1")
    return float(rescale), checked_interval(interval)


def checked_interval(interval: tuple | None) -> Interval:
    """(low, high) as floats; everywhere where it is None."""
    if interval is None:
        return -1.0, math.inf
    numbers = len(interval) == 2 and all(isinstance(end, int | float) for end in interval)
    if not (numbers and 0 <= interval[0] < interval[1]):
        raise ValueError(
            f"interval={interval}: must be (low, high) of sigma / alpha with 0 <= low < high"
        )
    return float(interval[0]), float(interval[1])
