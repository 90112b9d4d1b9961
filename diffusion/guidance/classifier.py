"""Guidance by the gradient of a classifier of noisy images (Dhariwal and Nichol 2021)."""

import math
from typing import ClassVar

import jax

from diffusion.denoiser import Prediction
from diffusion.guidance.base import Guidance, Number, Run, Seen, inside, register, static
from diffusion.guidance.contrast import checked_interval


@register
class Classifier(Guidance):
    """eps - sigma scale grad_x log p(label | x), and the x0 that goes with it (algorithm 2).

    At scale 1 and with the exact classifier it is the exact conditional prediction, whatever the
    solver: E[x0 | x, label] = E[x0 | x] + (sigma^2 / alpha) grad log p(label | x).
    """

    scale: Number
    interval: tuple[Number, Number]
    run: Run = static()
    companion: ClassVar[str] = "classifier"

    def apply(self, guided: Prediction, seen: Seen) -> Prediction:
        """The gradient is taken at x, and not through the denoiser."""
        label = seen.condition["label"]
        gradient = jax.grad(lambda x: seen.companion(x, seen.level, label).sum())(seen.x)
        level = seen.level.like(seen.x)
        step = inside(seen.level, self.interval, seen.x) * self.scale * level.sigma * gradient
        return guided._replace(
            x0=guided.x0 + level.sigma / level.alpha * step, eps=guided.eps - step
        )


def classifier(
    scale: float, workdir: str, ema: str = "", checkpoint: int = -1, interval: tuple | None = None
) -> Classifier:
    """Classifier guidance; 0 is off.

    Args:
        scale: of the gradient; 1 is Bayes' rule, more sharpens the classes.
        workdir: of the run of task 'classifier'.
        ema: its average; '': that of its own config.sample.ema.
        checkpoint: its step; -1: the newest.
        interval: as of `classifier_free`.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale}: must be finite")
    return Classifier(float(scale), checked_interval(interval), Run(workdir, ema, checkpoint))
