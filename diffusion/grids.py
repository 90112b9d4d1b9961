"""Which noise levels a sampler visits.

A grid maker is a function (schedule, steps, last_step) -> NoiseLevel of float64 numpy [steps + 1],
noisiest first. The network is called at all but the last level: `steps` times by a solver of one
call a step. last_step 'zero' ends on clean data, 'sigma_min' on the least noise that the network
knows, or that the grid names. 'mean' goes to clean data from there: the last step returns the
denoiser's mean (score SDE's "denoise"), as that of 'zero' does from wherever that grid is.
"""

from collections.abc import Callable

import numpy as np

from diffusion.levels import NoiseLevel
from diffusion.options import check_option
from diffusion.schedules import Schedule

LAST_STEPS = ("zero", "sigma_min", "mean")
Grid = Callable[[Schedule, int, str], NoiseLevel]


def respaced() -> Grid:
    """Indices round(i (T - 1) / (N - 1)) of a discrete schedule: iDDPM's respacing "N".

    Both ends are visited; a single step starts from the noisiest index (OpenAI's code, from the
    least noisy one).
    """

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        visited = _indices_to_visit("respaced", schedule, steps, last_step)
        last = schedule.num_timesteps - 1
        stride = last / max(visited - 1, 1)
        # Summed and rounded to even, as the original does: it decides ties such as 499.5.
        t = np.rint(np.cumsum(np.r_[0.0, np.full(visited - 1, stride)])) if visited > 1 else last
        return _grid(schedule, np.atleast_1d(t)[::-1], last_step)

    return grid


def uniform(shift: float = 1.0) -> Grid:
    """Times in equal steps over `schedule.t_range`: Karras' grid on 'edm', fractional on indices.

    Where clean data is time 0 of the schedule itself (rectified flow), 'zero' ends the equal steps
    there; elsewhere it appends clean data. There also shift t / (1 + (shift - 1) t) may take the
    place of t (Stable Diffusion 3, eq. 23), beside a shift that the schedule itself has.
    """
    if not shift > 0.0:
        raise ValueError(f"grid 'uniform': shift={shift} must be positive")

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        visited = _levels_to_visit(steps, last_step)
        low, high = schedule.t_range
        to_zero = schedule.num_timesteps is None and schedule.data.t == 0.0
        if shift != 1.0 and not to_zero:
            raise ValueError(
                f"grid 'uniform': shift={shift} is of the time of a flow, and this schedule's is "
                "another; take shift=1.0"
            )
        if last_step == "zero" and to_zero:
            t = np.linspace(high, 0.0, steps + 1)
            return schedule.level(np.minimum(_shifted(t, shift), high))
        t = np.linspace(high, low, visited)
        return _grid(schedule, np.clip(_shifted(t, shift), low, high), last_step)

    return grid


def ddim_stride() -> Grid:
    """Every i-th index from 0 on, for the first i that gives so many: OpenAI's "ddimN"."""

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        visited = _indices_to_visit("ddim_stride", schedule, steps, last_step)
        total = schedule.num_timesteps
        for stride in range(1, total + 1):
            t = np.arange(0.0, total, stride)
            if len(t) == visited:
                return _grid(schedule, t[::-1], last_step)
        raise ValueError(
            f"grid 'ddim_stride': no whole stride visits {visited} of {total} indices; take "
            "another number of steps, or grid 'respaced'"
        )

    return grid


def quadratic(end: float = 0.8) -> Grid:
    """Indices floor(c i^2), i = 0..N-1, up to end * T: the DDIM authors' grid for CIFAR-10.

    An index that comes twice, which near 0 it does from about 30 steps on, gives way to the next;
    the authors visit it twice, to no effect.
    """
    if not 0.0 < end <= 1.0:
        raise ValueError(f"grid 'quadratic': end={end} must lie in (0, 1]")

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        visited = _indices_to_visit("quadratic", schedule, steps, last_step)
        roots = np.linspace(np.sqrt(end * schedule.num_timesteps), 0.0, visited)[::-1]
        i = np.arange(visited)
        t = i + np.maximum.accumulate(np.floor(roots**2) - i)
        t = np.minimum(t, schedule.num_timesteps - visited + i)
        return _grid(schedule, t[::-1], last_step)

    return grid


def leading(offset: int = 0) -> Grid:
    """Indices offset + i (T // N): diffusers' 'leading'; the noisiest is not visited."""

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        visited = _indices_to_visit("leading", schedule, steps, last_step)
        t = offset + np.arange(float(visited)) * (schedule.num_timesteps // visited)
        if not 0 <= offset <= schedule.num_timesteps - 1 - (t[-1] - offset):
            raise ValueError(
                f"grid 'leading': offset={offset} leads out of indices 0 to "
                f"{schedule.num_timesteps - 1}; offset=0 never does"
            )
        return _grid(schedule, t[::-1], last_step)

    return grid


def linspace() -> Grid:
    """Indices round(i (T - 1) / N), i = N..1, then the end: diffusers' 'linspace' of DPM-Solver.

    Index 0 is visited by none but last_step='sigma_min'. Where it is visited in any case (DDIM,
    Euler) their grid is 'respaced', and without rounding 'uniform'.
    """

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        _indices_to_visit("linspace", schedule, steps, "sigma_min")
        places = steps if last_step == "mean" else steps + 1
        last = schedule.num_timesteps - 1.0
        # From 0 up, as the original: it decides ties such as 499.5.
        t = np.rint(np.linspace(0.0, last, places))[::-1] if places > 1 else np.array([last])
        return _grid(schedule, t[:-1] if last_step == "zero" else t, last_step)

    return grid


def trailing() -> Grid:
    """Indices round(T - i T / N) - 1, i = 0..N-1, then the end: the noisiest is visited.

    Lin et al. 2023: what a schedule of zero terminal SNR needs.
    """

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        visited = _indices_to_visit("trailing", schedule, steps, last_step)
        t = np.rint(np.linspace(schedule.num_timesteps, 0.0, steps, endpoint=False)) - 1.0
        return _grid(schedule, np.append(t, [0.0] * (visited - steps)), last_step)

    return grid


def karras(rho: float = 7.0, sigma_min: float = 0.0, sigma_max: float = 0.0) -> Grid:
    """(sigma / alpha)^(1/rho) in equal steps (Karras et al. 2022, eq. 5), on any schedule.

    A sigma of 0 stands for the end of the schedule's own range.
    """
    if not rho > 0.0:
        raise ValueError(f"grid 'karras': rho={rho} must be positive")

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        visited = _levels_to_visit(steps, last_step)
        ends = _sigma_range("karras", schedule, sigma_min, sigma_max)
        sigma = np.linspace(*(end ** (1.0 / rho) for end in ends), visited) ** rho
        return _sigma_grid(schedule, sigma, last_step)

    return grid


def uniform_logsnr(sigma_min: float = 0.0, sigma_max: float = 0.0) -> Grid:
    """logsnr in equal steps, that is sigma / alpha in equal ratios: k-diffusion's 'exponential'.

    A sigma of 0 stands for the end of the schedule's own range.
    """

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        visited = _levels_to_visit(steps, last_step)
        ends = _sigma_range("uniform_logsnr", schedule, sigma_min, sigma_max)
        return _sigma_grid(schedule, np.geomspace(*ends, visited), last_step)

    return grid


# sigma / alpha of 10 steps, as published by Sabour et al. 2024 on their page of the method.
ALIGN_YOUR_STEPS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def align_your_steps(model: str = "sd15") -> Grid:
    """The levels optimized for a model (Sabour et al. 2024): 'sd15', 'sdxl' or 'svd'.

    Other numbers of steps than 10 by linear interpolation of log sigma; last_step 'zero' ends on
    clean data in place of the last level.
    """
    check_option("align_your_steps: model", model, tuple(ALIGN_YOUR_STEPS))
    known = np.log(ALIGN_YOUR_STEPS[model])

    def grid(schedule: Schedule, steps: int, last_step: str = "zero") -> NoiseLevel:
        _levels_to_visit(steps, last_step)
        visited = steps if last_step == "mean" else steps + 1
        places = np.linspace(0.0, len(known) - 1.0, visited)
        sigma = np.exp(np.interp(places, np.arange(len(known)), known))
        _sigma_range("align_your_steps", schedule, *np.exp(known[[-1, 0]]))
        return _sigma_grid(schedule, sigma[:-1] if last_step == "zero" else sigma, last_step)

    return grid


def _shifted(t: np.ndarray, shift: float) -> np.ndarray:
    return shift * t / (1.0 + (shift - 1.0) * t)


def _levels_to_visit(steps: int, last_step: str) -> int:
    """Levels of the schedule's own range in a grid of `steps` calls; checks the arguments."""
    check_option("last_step", last_step, LAST_STEPS)
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    return steps + 1 if last_step == "sigma_min" else steps


def _grid(schedule: Schedule, t: np.ndarray, last_step: str) -> NoiseLevel:
    """Levels at t, and clean data after them where the last step goes to zero noise."""
    if np.any(np.diff(t) == 0.0):
        raise ValueError(
            f"a grid of {len(t)} levels visits a time twice; take fewer steps, or grid 'respaced'"
        )
    return _ended(schedule, schedule.level(t), last_step)


def _ended(schedule: Schedule, levels: NoiseLevel, last_step: str) -> NoiseLevel:
    if last_step == "sigma_min":
        return levels
    return NoiseLevel(*(np.append(f, end) for f, end in zip(levels, schedule.data, strict=True)))


def _indices_to_visit(name: str, schedule: Schedule, steps: int, last_step: str) -> int:
    """`_levels_to_visit` of a discrete schedule.

    Raises:
        ValueError: the schedule's time is continuous, or it has fewer indices.
    """
    visited = _levels_to_visit(steps, last_step)
    if schedule.num_timesteps is None:
        raise ValueError(
            f"grid {name!r} picks indices of a discrete schedule; this schedule's time is "
            "continuous. Use grid 'uniform'."
        )
    if visited > schedule.num_timesteps:
        raise ValueError(
            f"steps={steps} with last_step={last_step!r} visits {visited} levels; the schedule "
            f"has {schedule.num_timesteps}. Use fewer steps or a schedule of more timesteps."
        )
    return visited


def _sigma_range(
    name: str, schedule: Schedule, sigma_min: float, sigma_max: float
) -> tuple[float, float]:
    """(sigma_max, sigma_min) of sigma / alpha, the schedule's own where 0.

    Raises:
        ValueError: no range, or one beyond what the schedule's network is asked about.
    """
    with np.errstate(over="ignore"):
        low, high = np.exp(-0.5 * schedule.logsnr(np.array(schedule.t_range)))
    ends = sigma_max or high, sigma_min or low
    # Published values are rounded to 4 digits.
    if not low * (1 - 1e-3) <= ends[1] < ends[0] <= high * (1 + 1e-3):
        raise ValueError(
            f"grid {name!r}: sigma from {ends[0]:.5g} down to {ends[1]:.5g} does not lie in the "
            f"schedule's {high:.5g} to {low:.5g}; give sigma_min and sigma_max inside of it, or "
            "take another schedule"
        )
    if not np.isfinite(ends[0]):
        raise ValueError(
            f"grid {name!r}: the schedule starts from pure noise; give a finite sigma_max, or take "
            "grid 'trailing' or 'uniform'"
        )
    return float(ends[0]), float(ends[1])


def _sigma_grid(schedule: Schedule, sigma: np.ndarray, last_step: str) -> NoiseLevel:
    """Levels at sigma / alpha, and clean data where the last step goes to zero noise."""
    levels = schedule.level_of_logsnr(-2.0 * np.log(sigma))
    return _ended(schedule, levels, last_step)
