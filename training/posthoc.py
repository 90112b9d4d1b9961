"""Power-function averages, and one of any width put together after training (Karras et al. 2024).

A power-function average of exponent gamma, at time t, weights the parameters of time s <= t by
(s / t)^gamma. Its width is the relative standard deviation of that weight, std: the standard
deviation of s divided by t, at most sqrt(1 / 12), that of the plain mean of the run. Two widths
tracked in training and kept at several times span, nearly, the averages of all other widths.

Numpy in float64 only: the checks of a config need it, and no JAX. Times are in steps; as only their
ratios matter, they may be in images as well.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from training import components
from training.components import ConfigError

# Of the plain mean; a wider one would forget the end of the run.
MAX_STD = 12**-0.5
# Above this the reconstructed average is told to be another than the one that was asked for.
LARGE_MISMATCH = 0.05


def exponent(std: float) -> float:
    """gamma of a relative standard deviation (eq. 126): the largest root of a cubic.

    Raises:
        ValueError: std is not in (0, sqrt(1 / 12)].
    """
    if not 0 < std <= MAX_STD:
        raise ValueError(f"std must be above 0 and at most {MAX_STD:.4f}, got {std}")
    inverse = float(std) ** -2
    # (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = std^2 (eq. 123), multiplied out.
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def _inner(
    time: Float[np.ndarray, "*a"],
    power: Float[np.ndarray, "*a"],
    other_time: Float[np.ndarray, "*b"],
    other_power: Float[np.ndarray, "*b"],
) -> Float[np.ndarray, "..."]:
    """Inner products of two profiles, each of integral 1, over s (eq. 151)."""
    shorter = np.minimum(time, other_time)
    longer = np.maximum(time, other_time)
    # Both profiles live on s <= shorter; the longer one has fallen to this at its end.
    faded = (shorter / longer) ** np.where(time > other_time, power, other_power)
    return (power + 1) * (other_power + 1) / (power + other_power + 1) * faded / longer


class Reconstruction:
    """How stored averages add up to the one of width `std` at `time`.

    Attributes:
        weights: of each stored average; they sum to 1.
        mismatch: the distance of the profile that results from the one asked for, over the norm of
            the latter (both in L2). For parameters that move like white noise it is the relative
            error; slower movement is averaged over and gives less.

    Args:
        times: of the stored averages.
        stds: their widths.
        time: of the average that is wanted.
        std: its width.
    """

    def __init__(self, times: Sequence[float], stds: Sequence[float], time: float, std: float):
        stored = np.asarray(times, np.float64), np.array([exponent(s) for s in stds])
        wanted = np.array([time], np.float64), np.array([exponent(std)])
        column = [a[:, None] for a in stored]
        gram, target = _inner(*column, *stored), _inner(*column, *wanted)[:, 0]
        weights = np.linalg.solve(gram, target)
        self.weights = weights / weights.sum()
        norm = float(_inner(*wanted, *wanted)[0])
        square = self.weights @ gram @ self.weights - 2 * self.weights @ target + norm
        self.mismatch = float(np.sqrt(max(square, 0.0) / norm))


def _posthoc(std: float) -> float:
    exponent(std)
    return float(std)


def is_posthoc(name: str) -> bool:
    """Whether `config.sample.ema` asks for a reconstruction; names of averages have no brackets."""
    return name.startswith("posthoc(")


def width(name: str) -> float:
    """std of `'posthoc(std=0.1)'`.

    Raises:
        ConfigError: other arguments, or a std that no average has.
    """
    return components.build({"posthoc": _posthoc}, name, "config.sample.ema")


def tracked(averages: ConfigDict, name: str) -> dict[str, float]:
    """Widths of the power-function averages of `config.ema`, by name.

    Args:
        averages: `config.ema`.
        name: the reconstruction that needs them.

    Raises:
        ConfigError: there are none.
    """
    stds = {}
    for key in averages:
        try:
            call = components.parse(averages[key])
        except ConfigError as error:
            raise ConfigError(f"config.ema.{key} = {error}") from None
        # A second one of the same width says nothing new, and equations of both have no solution.
        if call.name == "power" and call.arguments.get("std") not in (None, *stds.values()):
            stds[key] = call.arguments["std"]
    if not stds:
        raise ConfigError(
            f"config.sample.ema = {name!r}: is made of averages 'power(std=...)', and config.ema "
            "has none; train with two, 'power(std=0.05)' and 'power(std=0.1)', or take one of "
            f"{', '.join([*averages, 'params'])}"
        )
    return stds


def nearest(averages: ConfigDict, name: str) -> str:
    """The tracked average whose width is next to that of a reconstruction."""
    stds, std = tracked(averages, name), width(name)
    return min(stds, key=lambda key: abs(stds[key] - std))
