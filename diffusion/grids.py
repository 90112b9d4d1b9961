"""Which noise levels a sampler visits.

A grid maker is a function (schedule, steps, last_step) -> NoiseLevel of float64 numpy [steps + 1],
noisiest first. The network is called at all but the last level, so `steps` calls. last_step
'zero' ends on clean data, 'sigma_min' on the least noise that the network knows.
"""

from collections.abc import Callable

import numpy as np

from diffusion.levels import NoiseLevel
from diffusion.options import check_option
from diffusion.schedules import Schedule

LAST_STEPS = ("zero", "sigma_min")
Grid = Callable[[Schedule, int, str], NoiseLevel]


def respaced() -> Grid:
    """Indices round(i (T - 1) / (N - 1)) of a discrete schedule: iDDPM's respacing "N".

    Both ends are visited; a single step starts from the noisiest index (OpenAI's code, from the
    least noisy one).
    """

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        visited = _levels_to_visit(steps, last_step)
        if schedule.num_timesteps is None:
            raise ValueError(
                "grid 'respaced' picks indices of a discrete schedule; this schedule's time is "
                "continuous. Use grid 'uniform'."
            )
        last = schedule.num_timesteps - 1
        if visited > last + 1:
            raise ValueError(
                f"steps={steps} with last_step={last_step!r} visits {visited} levels; the schedule "
                f"has {last + 1}. Use fewer steps or a schedule of more timesteps."
            )
        stride = last / max(visited - 1, 1)
        # Summed and rounded to even, as the original does: it decides ties such as 499.5.
        t = np.rint(np.cumsum(np.r_[0.0, np.full(visited - 1, stride)])) if visited > 1 else last
        return _grid(schedule, np.atleast_1d(t)[::-1], last_step)

    return grid


def uniform() -> Grid:
    """Times in equal steps over `schedule.t_range`: Karras' grid on 'edm', fractional on indices.

    Where clean data is time 0 of the schedule itself (rectified flow), 'zero' ends the equal steps
    there; elsewhere it appends clean data.
    """

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        visited = _levels_to_visit(steps, last_step)
        low, high = schedule.t_range
        if last_step == "zero" and schedule.num_timesteps is None and schedule.data.t == 0.0:
            return schedule.level(np.linspace(high, 0.0, steps + 1))
        return _grid(schedule, np.linspace(high, low, visited), last_step)

    return grid


def _levels_to_visit(steps: int, last_step: str) -> int:
    """Levels of the schedule's own range in a grid of `steps` calls; checks the arguments."""
    check_option("last_step", last_step, LAST_STEPS)
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    return steps if last_step == "zero" else steps + 1


def _grid(schedule: Schedule, t: np.ndarray, last_step: str) -> NoiseLevel:
    """Levels at t, and clean data after them where the last step goes to zero noise."""
    levels = schedule.level(t)
    if last_step == "sigma_min":
        return levels
    return NoiseLevel(*(np.append(f, end) for f, end in zip(levels, schedule.data, strict=True)))
