"""Training losses: the weighted squared error, and the variational bounds."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from diffusion import vdm
from diffusion.denoiser import Condition, Network, call_network
from diffusion.gaussian import (
    LIKELIHOODS,
    ReverseChain,
    discretized_log_likelihood,
    full_chain,
    learned_range_log_variance,
    normal_kl,
    q_sample,
)
from diffusion.levels import NoiseLevel, expand_like, namespace
from diffusion.options import check_option
from diffusion.parameterization import Parameterization
from diffusion.schedules import Schedule
from diffusion.time_samplers import Draw, TimeSampler
from diffusion.uncertainty import Uncertainty
from diffusion.weightings import Point, Weighting

LOSSES = ("simple", "hybrid", "vlb", "vdm")
VARIANCES = ("fixed", "learned_range")


def mean_per_example(x: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    """Mean over all axes but the first."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def rows_at(chain: ReverseChain, t: Int[Array, " batch"], x: Float[Array, "batch *shape"]):
    """The chain's tables at t, shaped to multiply x."""
    return ReverseChain(*(expand_like(jnp.asarray(table, x.dtype)[t], x) for table in chain))


def vlb_term(
    x0: Float[Array, "batch *shape"],
    x0_hat: Float[Array, "batch *shape"],
    log_variance: Float[Array, "batch *#shape"],
    t: Int[Array, " batch"],
    chain: ReverseChain,
    likelihood: str = "exact",
) -> Float[Array, " batch"]:
    """L_{t-1} of the variational bound in bits/dim for a model that predicts x0_hat.

    t > 0: KL(q(z_{t-1} | z_t, x0) || p(z_{t-1} | z_t)); t = 0: -log p(x0 | z_0) of the 8-bit image.
    Summed over t, and with the KL of the prior, it bounds -log2 p(x0) per dimension (DDPM eq. 5).
    chain: `gaussian.full_chain` of the schedule.
    """
    rows = rows_at(chain, t, x0)
    # The two means share z_coef z, which the KL does not see.
    kl = normal_kl(rows.x0_coef * x0, rows.log_small, rows.x0_coef * x0_hat, log_variance)
    # The step to the data has mean x0_hat. Away from it this branch is not used, and harmless
    # arguments keep its gradient finite.
    first = expand_like(t == 0, x0)
    mean = jnp.where(first, x0_hat, x0)
    log_std = jnp.where(first, 0.5 * log_variance, 0.0)
    nll = -discretized_log_likelihood(x0, mean, log_std, likelihood)
    return mean_per_example(jnp.where(first, nll, kl)) / math.log(2.0)


class Loss(NamedTuple):
    """Of each example: the loss, what to log, and the time sampler's memory after the batch."""

    loss: Float[Array, " batch"]
    metrics: dict[str, Float[Array, " batch"]]
    state: dict


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a network on clean images, per example.

    loss:
      'simple'  weight(level) mean((target - raw)^2), the mean over pixels and channels.
      'hybrid'  simple + T / 1000 times one random term of the bound in bits/dim (iDDPM eq. 16 as
                its code has it: in expectation lambda L_vlb with lambda = 1 / 1000, L_vlb in
                bits/dim without the prior's KL). The bound trains the variance alone: the
                network's mean is detached in it.
      'vlb'     T times that term, mean attached; the weighting is not used.
      'vdm'     the bound of continuous time in bits/dim, whole (`diffusion.vdm`); it trains the
                schedule too, where that is learned. The weighting is not used.
    'hybrid' and 'vlb' train a learned variance, and only they do: both need
    variance='learned_range' and a discrete vp schedule, and 'learned_range' needs one of them.
    'vdm' needs a vp schedule of continuous time.

    uncertainty: the loss becomes loss / e^u + u with a learned u of the level.

    What is learned beside the network (schedule, uncertainty) has its parameters from `init`, the
    time sampler its memory from `init_state`; both are empty where there is nothing.
    """

    schedule: Schedule
    parameterization: Parameterization
    weighting: Weighting
    time_sampler: TimeSampler
    loss: str = "simple"
    variance: str = "fixed"
    likelihood: str = "exact"
    uncertainty: Uncertainty | None = None

    def __post_init__(self):
        check_option("loss", self.loss, LOSSES)
        check_option("variance", self.variance, VARIANCES)
        check_option("likelihood", self.likelihood, LIKELIHOODS)
        chain = self.loss in ("hybrid", "vlb")
        if chain != (self.variance == "learned_range"):
            raise ValueError(
                f"loss={self.loss!r} with variance={self.variance!r}: 'simple' and 'vdm' train no "
                "variance (use variance='fixed'), 'hybrid' and 'vlb' train one (use "
                "'learned_range')"
            )
        vp, discrete = self.schedule.scaling == "vp", self.schedule.num_timesteps is not None
        seen = (
            f"this schedule has scaling={self.schedule.scaling!r}, "
            f"num_timesteps={self.schedule.num_timesteps}"
        )
        if chain and not (vp and discrete):
            raise ValueError(
                f"loss={self.loss!r} is a bound over a discrete vp chain; {seen}. "
                "Use loss='simple', or a schedule such as 'linear' or 'cosine'."
            )
        if self.loss == "vdm" and (discrete or not vp):
            raise ValueError(
                f"loss='vdm' is the bound of continuous time on a vp path; {seen}. "
                "Use loss='vlb', or a schedule such as 'vdm'."
            )
        if self.loss != "simple" and not self.time_sampler.uniform:
            raise ValueError(
                f"loss={self.loss!r} is a bound, a mean over times drawn uniformly; this "
                "time_sampler draws others. Use 'uniform', 'low_discrepancy' or, for a discrete "
                "schedule, 'loss_second_moment'."
            )
        self._check_terminal()
        self.time_sampler.init(self.schedule)

    def _check_terminal(self) -> None:
        """Refuses what has no value at zero terminal SNR, where logsnr is -inf."""
        last = self.schedule.level(np.float64(self.schedule.t_range[1]))
        if last.alpha > 0.0:
            return
        with np.errstate(divide="ignore"):
            lost = np.isneginf(self.parameterization.log_x0_weight(last))
        _, time = self.parameterization.network_input(np.zeros(1), last, self.schedule)
        if lost or not np.isfinite(time):
            says = "says nothing of x0" if lost else "tells the network an infinite time"
            raise ValueError(
                f"parameterization {type(self.parameterization).__name__!r} {says} where the "
                "schedule ends in pure noise (zero terminal SNR); take v, x0 or flow"
            )
        if self.uncertainty is not None:
            raise ValueError(
                "the uncertainty is a function of logsnr, which is -inf where the schedule ends in "
                "pure noise (zero terminal SNR); take uncertainty_channels=0 or another schedule"
            )

    @functools.cached_property
    def _chain(self) -> ReverseChain:
        return full_chain(self.schedule)

    def init(self, key: Key[Array, ""]) -> dict:
        """Parameters that are learned beside the network's: 'schedule' and 'uncertainty'."""
        keys = jax.random.split(key)
        params = {"schedule": self.schedule.init(keys[0])}
        if self.uncertainty is not None:
            params["uncertainty"] = self.uncertainty.init(keys[1])
        return {name: value for name, value in params.items() if value}

    def init_state(self) -> dict:
        """The time sampler's memory before the first step."""
        return self.time_sampler.init(self.schedule)

    def log_x0_weight(self, level: NoiseLevel, log_density: ArrayLike = 0.0) -> ArrayLike:
        """log of the weight that `weighting` puts on |x0 - x0_hat|^2 (numpy in, numpy out)."""
        log_raw = self.parameterization.log_x0_weight(level)
        return self.weighting(Point(level.logsnr, log_raw, log_density))

    def raw_weight(self, level: NoiseLevel, log_density: ArrayLike = 0.0) -> ArrayLike:
        """The weight on the raw squared error; exactly 1 under 'constant'."""
        log_raw = self.parameterization.log_x0_weight(level)
        return namespace(level.logsnr).exp(self.log_x0_weight(level, log_density) - log_raw)

    def __call__(
        self,
        network: Network,
        x0: Float[Array, "batch *shape"],
        condition: Condition,
        rng: Key[Array, ""],
        params: dict | None = None,
        state: dict | None = None,
    ) -> Loss:
        """The loss at random times and noise.

        x0 is in [-1, 1]; params and state as `init` and `init_state` give them. Metrics: 'mse', the
        unweighted squared error of the raw output; with a learned variance 'vlb_bits', T times the
        bound's term: an estimate of the whole bound in bits/dim without the prior's KL; for 'vdm'
        the three parts of the bound. All are multiplied by the draw's weight, as the loss is: under
        importance sampling, too, their means are those of uniform time.
        """
        state = {} if state is None else state
        schedule = self._schedule(params)
        key_t, key_eps = jax.random.split(rng)
        drawn = self.time_sampler.draw(key_t, len(x0), schedule, state)
        eps = jax.random.normal(key_eps, x0.shape)
        loss, metrics = self.loss_at(network, x0, condition, drawn, eps, params)
        metrics = {name: drawn.weight * value for name, value in metrics.items()}
        return Loss(drawn.weight * loss, metrics, self.time_sampler.update(state, drawn, loss))

    def loss_at(
        self,
        network: Network,
        x0: Float[Array, "batch *shape"],
        condition: Condition,
        drawn: Draw,
        eps: Float[Array, "batch *shape"],
        params: dict | None = None,
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """(loss [batch], metrics [batch]) at drawn levels and noise eps, before `drawn.weight`."""
        schedule, level = self._schedule(params), drawn.level
        z = q_sample(x0, eps, level)
        raw, fraction = call_network(
            network,
            schedule,
            self.parameterization,
            z,
            level,
            condition,
            self.variance == "learned_range",
        )
        target = self.parameterization.target(x0, eps, level)
        mse = mean_per_example((target - raw) ** 2)
        metrics = {"mse": mse}
        if self.loss == "vdm":
            _, eps_hat = self.parameterization.prediction(raw, z, level)
            bits = self._vdm(schedule, x0, eps, eps_hat, level)
            loss, metrics = sum(bits.values()), metrics | bits
        else:
            loss = self.raw_weight(level, drawn.log_density) * mse
        if fraction is not None:
            mean = jax.lax.stop_gradient(raw) if self.loss == "hybrid" else raw
            x0_hat, _ = self.parameterization.prediction(mean, z, level)
            t = level.t.astype(jnp.int32)
            rows = rows_at(self._chain, t, x0)
            log_variance = learned_range_log_variance(fraction, rows.log_small, rows.log_large)
            term = vlb_term(x0, x0_hat, log_variance, t, self._chain, self.likelihood)
            vlb = self.schedule.num_timesteps * term
            metrics["vlb_bits"] = vlb
            loss = loss + vlb / 1000.0 if self.loss == "hybrid" else vlb
        if self.uncertainty is not None:
            u = self.uncertainty(params["uncertainty"], level.logsnr)
            loss = loss * jnp.exp(-u) + u
        return loss, metrics

    def _schedule(self, params: dict | None) -> Schedule:
        return self.schedule.bind((params or {}).get("schedule", {}))

    def _vdm(self, schedule: Schedule, x0, eps, eps_hat, level: NoiseLevel) -> dict[str, Array]:
        """The parts of the bound. eps serves z_t and z_0: each part alone is unbiased."""
        first, last = (schedule.level(jnp.float32(t)) for t in schedule.t_range)
        slope = vdm.gamma_slope(schedule, level.t)
        return {
            "diffusion_bits": vdm.diffusion_bits(eps, eps_hat, slope),
            "prior_bits": vdm.prior_bits(x0, last),
            "reconstruction_bits": vdm.reconstruction_bits(x0, eps, first),
        }
