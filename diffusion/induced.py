"""What a schedule, a time sampler and a weighting make together: the weight of each noise level."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from diffusion.objective import Objective
from diffusion.schedules import Schedule

Curve = Float64[np.ndarray, " points"]


class Path(NamedTuple):
    """A schedule over t, evenly over its range (its indices, where it is discrete)."""

    t: Curve
    logsnr: Curve
    alpha: Curve
    sigma: Curve


class Induced(NamedTuple):
    """Over logsnr, rising: the density in training and logs of weights, as the objective has them.

    `log_x0`, `log_eps` and `log_raw` are the weight of the squared error of x0, of eps and of the
    network's own output. `log_total` is log_eps + log_density, the weight of the eps-loss in the
    measure d logsnr: all that the expected loss depends on, but for a constant.
    `draws` are the levels of one batch, all of them; `mean_raw` is the mean of exp(log_raw) over
    it.
    """

    logsnr: Curve
    log_density: Curve
    log_x0: Curve
    log_eps: Curve
    log_raw: Curve
    log_total: Curve
    draws: Float64[np.ndarray, " draws"]
    mean_raw: float


def _bound(objective: Objective, params: dict | None) -> Schedule:
    return objective.schedule.bind((params or {}).get("schedule", {}))


def path(objective: Objective, params: dict | None = None, points: int = 512) -> Path:
    """The objective's schedule, at learned parameters where it has any."""
    schedule = _bound(objective, params)
    low, high = schedule.t_range
    count = schedule.num_timesteps
    t = np.linspace(low, high, points) if count is None else np.arange(count, dtype=np.float64)
    return Path(*(np.asarray(field, np.float64) for field in schedule.level(t)))


def induced(
    objective: Objective, params: dict | None = None, draws: int = 20_000, seed: int = 0
) -> Induced:
    """Weights at levels drawn as in training, before the time sampler has learned anything.

    Levels of no noise or no signal at all (logsnr +-inf) have a weight but no place on the axis
    and are left out.
    """
    schedule = _bound(objective, params)
    state = objective.init_state()
    drawn = objective.time_sampler.draw(jax.random.key(seed), draws, schedule, state)
    kept = np.isfinite(np.asarray(drawn.level.logsnr))
    log_density = jnp.broadcast_to(jnp.asarray(drawn.log_density), kept.shape)
    log_x0 = objective.log_x0_weight(drawn.level, log_density)
    log_raw = log_x0 - objective.parameterization.log_x0_weight(drawn.level)
    levels = np.asarray(drawn.level.logsnr, np.float64)[kept]
    logsnr, first = np.unique(levels, return_index=True)
    density, x0, raw = (
        np.asarray(curve, np.float64)[kept][first] for curve in (log_density, log_x0, log_raw)
    )
    eps = x0 - logsnr
    mean_raw = float(np.mean(np.exp(np.asarray(log_raw, np.float64)[kept])))
    return Induced(logsnr, density, x0, eps, raw, eps + density, levels, mean_raw)
