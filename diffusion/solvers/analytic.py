"""The best variance of an ancestral step, estimated from data (Analytic-DPM, Bao et al. 2022).

p(z_s | z_t) has the posterior's variance, and that of x0 given z_t times x0_coef^2 (theorem 1).
Averaged over pixels and data the latter follows from how large the predicted noise is,

    E Var(x0 | z_t) = (sigma / alpha)^2 (1 - E |eps_hat|^2 / d)

and one table of E |eps_hat|^2 / d over logsnr serves every grid. Where that is lost in the noise of
the estimate, at low SNR, it is held below E |x0|^2 / d: it is no larger for any data. (The authors
bound it by the square of half the range of the data, theorem 2.)
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from diffusion.denoiser import Condition, Denoiser
from diffusion.gaussian import q_sample
from diffusion.levels import NoiseLevel


class EpsEstimates(NamedTuple):
    """Means over data of |eps_hat|^2 / d at levels of rising logsnr, and of |x0|^2 / d."""

    logsnr: Float64[np.ndarray, " levels"]
    eps_square: Float64[np.ndarray, " levels"]
    data_square: float

    def x0_variance(self, logsnr: Float64[np.ndarray, " steps"]) -> Float64[np.ndarray, " steps"]:
        """Mean of Var(x0 | z), interpolated; that of pure noise is that of the noisiest level.

        Raises:
            ValueError: less noise than was estimated, or more, other than pure noise.
        """
        low, high = self.logsnr[[0, -1]]
        # As far as neighbours of a discrete schedule lie apart at its ends.
        asked = logsnr[np.isfinite(logsnr)]
        if len(asked) and (asked.min() < low - 1e-3 or asked.max() > high + 1e-3):
            raise ValueError(
                f"ddpm(variance='analytic'): the grid has logsnr from {asked.min():.4g} to "
                f"{asked.max():.4g}, the estimates {low:.4g} to {high:.4g}; estimate at the levels "
                "of the grid"
            )
        variance = np.exp(-self.logsnr) * (1.0 - self.eps_square)
        return np.interp(logsnr, self.logsnr, np.clip(variance, 0.0, self.data_square))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the numbers as JSON."""
        numbers = {name: np.asarray(value).tolist() for name, value in self._asdict().items()}
        Path(path).write_text(json.dumps(numbers))


def load(path: str | os.PathLike[str]) -> EpsEstimates:
    """What `EpsEstimates.save` wrote.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        numbers = json.loads(Path(path).read_text())
        logsnr, square = (np.array(numbers[name], np.float64) for name in EpsEstimates._fields[:2])
        estimates = EpsEstimates(logsnr, square, float(numbers["data_square"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"ddpm(variance='analytic'): estimates={str(path)!r} cannot be read: {error!r}; write "
            "it by solvers.analytic.estimate(...).save(path)"
        ) from error
    if logsnr.ndim != 1 or logsnr.shape != square.shape or not np.all(np.diff(logsnr) > 0):
        raise ValueError(
            f"ddpm(variance='analytic'): estimates={str(path)!r} must have as many eps_square as "
            "logsnr, which must rise"
        )
    return estimates


def estimate(
    make_denoiser: Callable[[Any], Denoiser],
    params: Any,
    batches: Iterable[tuple[Float[Array, "batch *shape"], Condition]],
    levels: NoiseLevel,
    key: PRNGKeyArray,
) -> EpsEstimates:
    """Monte Carlo over (images, condition) of `batches`, one noise each, at finite levels [N].

    make_denoiser(params) is the unclipped denoiser. One program for batches of one shape; N calls
    each. Batch k has the noises of fold_in(key, k).

    Raises:
        ValueError: a level of clean data or pure noise, or no batch.
    """
    if not np.all(np.isfinite(levels.logsnr)):
        raise ValueError("analytic.estimate: clean data and pure noise have nothing to estimate")
    rising = np.argsort(levels.logsnr)
    levels = NoiseLevel(*(field[rising] for field in levels))

    @jax.jit
    def means(params, levels, x0, condition, key):
        def mean(at):
            level, key = at
            z = q_sample(x0, jax.random.normal(key, x0.shape, x0.dtype), level)
            return jnp.mean(make_denoiser(params)(z, level, condition).eps ** 2)

        keys = jax.random.split(key, len(levels.t))
        return jax.lax.map(mean, (levels, keys)), jnp.mean(x0**2)

    arguments = jax.tree.map(lambda field: jnp.asarray(field, jnp.float32), levels)
    found = [
        jax.device_get(means(params, arguments, x0, condition, jax.random.fold_in(key, k)))
        for k, (x0, condition) in enumerate(batches)
    ]
    if not found:
        raise ValueError("analytic.estimate: no batch of data")
    eps, data = (np.mean(np.array(part, np.float64), 0) for part in zip(*found, strict=True))
    return EpsEstimates(levels.logsnr, eps, float(data))
