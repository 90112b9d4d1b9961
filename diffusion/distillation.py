"""Targets that a teacher sets: progressive distillation and guidance distillation."""

import numpy as np
from jaxtyping import Float

from diffusion.denoiser import Condition, Denoiser
from diffusion.levels import AnyArray, NoiseLevel
from diffusion.schedules import Schedule


def halving_levels(schedule: Schedule, steps: int) -> NoiseLevel:
    """Levels of 2 N teacher steps, clean data first; the student's are the even ones. float64.

    Times in equal steps up to the noisiest: i / 2N of time (Salimans and Ho 2022, algorithm 2). The
    grids that visit every second of them are 'uniform' where time is continuous and 'trailing'
    where it is an index.

    Raises:
        ValueError: a discrete schedule cannot be parted into so many steps.
    """
    low, high = schedule.t_range
    clean = schedule.data.t
    if schedule.num_timesteps is not None:
        if schedule.num_timesteps % (2 * steps):
            raise ValueError(
                f"steps={steps}: twice as many must divide the schedule's {schedule.num_timesteps} "
                "timesteps"
            )
        first = -1.0
    else:
        first = 0.0 if clean == 0.0 else low
    levels = schedule.level(np.linspace(first, high, 2 * steps + 1))
    return NoiseLevel(
        *(np.r_[end, field[1:]] for end, field in zip(schedule.data, levels, strict=True))
    )


def ddim_step(
    x0: Float[AnyArray, "batch *shape"], eps: Float[AnyArray, "batch *shape"], after: NoiseLevel
) -> Float[AnyArray, "batch *shape"]:
    """The deterministic step to another level."""
    after = after.like(x0)
    return after.alpha * x0 + after.sigma * eps


def two_step_target(
    teacher: Denoiser,
    x: Float[AnyArray, "batch *shape"],
    now: NoiseLevel,
    middle: NoiseLevel,
    after: NoiseLevel,
    condition: Condition = None,
) -> tuple[Float[AnyArray, "batch *shape"], Float[AnyArray, "batch *shape"]]:
    """(x0, eps) from which one DDIM step leads where two of the teacher lead.

    Salimans and Ho 2022, appendix G; alpha x0 + sigma eps = x, as of any prediction.
    """
    first = teacher(x, now, condition)
    between = ddim_step(first.x0, first.eps, middle)
    second = teacher(between, middle, condition)
    end = ddim_step(second.x0, second.eps, after)
    now, after = now.like(x), after.like(x)
    ratio = after.sigma / now.sigma
    x0 = (end - ratio * x) / (after.alpha - ratio * now.alpha)
    return x0, (x - now.alpha * x0) / now.sigma
