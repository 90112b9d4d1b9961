"""Training losses: the weighted squared error, and the variational bound on discrete chains."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

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
from diffusion.time_samplers import TimeSampler
from diffusion.weightings import Weighting

LOSSES = ("simple", "hybrid", "vlb")
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
    'hybrid' and 'vlb' train a learned variance, and only they do: both need
    variance='learned_range' and a discrete vp schedule, and 'learned_range' needs one of them.
    The time sampler's weight multiplies the whole loss.
    """

    schedule: Schedule
    parameterization: Parameterization
    weighting: Weighting
    time_sampler: TimeSampler
    loss: str = "simple"
    variance: str = "fixed"
    likelihood: str = "exact"

    def __post_init__(self):
        check_option("loss", self.loss, LOSSES)
        check_option("variance", self.variance, VARIANCES)
        check_option("likelihood", self.likelihood, LIKELIHOODS)
        if (self.loss == "simple") != (self.variance == "fixed"):
            raise ValueError(
                f"loss={self.loss!r} with variance={self.variance!r}: 'simple' trains no variance "
                "(use variance='fixed'), 'hybrid' and 'vlb' train one (use 'learned_range')"
            )
        discrete_vp = self.schedule.num_timesteps is not None and self.schedule.scaling == "vp"
        if self.loss != "simple" and not discrete_vp:
            raise ValueError(
                f"loss={self.loss!r} is a bound over a discrete vp chain; this schedule has "
                f"scaling={self.schedule.scaling!r}, num_timesteps={self.schedule.num_timesteps}. "
                "Use loss='simple', or a schedule such as 'linear' or 'cosine'."
            )

    @functools.cached_property
    def _chain(self) -> ReverseChain:
        return full_chain(self.schedule)

    def log_x0_weight(self, level: NoiseLevel) -> ArrayLike:
        """log of the weight that `weighting` puts on |x0 - x0_hat|^2 (numpy in, numpy out)."""
        return self.weighting(level.logsnr, self.parameterization.log_x0_weight(level))

    def raw_weight(self, level: NoiseLevel) -> ArrayLike:
        """The weight on the raw squared error; exactly 1 under 'constant'."""
        log_raw = self.parameterization.log_x0_weight(level)
        return namespace(level.logsnr).exp(self.weighting(level.logsnr, log_raw) - log_raw)

    def __call__(
        self,
        network: Network,
        x0: Float[Array, "batch *shape"],
        condition: Condition,
        rng: PRNGKeyArray,
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """(loss [batch], metrics [batch]) at random times and noise.

        x0 is in [-1, 1]. Metrics: 'mse', the unweighted squared error of the raw output; with a
        learned variance 'vlb_bits', T times the bound's term: an estimate of the whole bound in
        bits/dim without the prior's KL.
        """
        key_t, key_eps = jax.random.split(rng)
        t, sampler_weight = self.time_sampler(key_t, len(x0), self.schedule)
        eps = jax.random.normal(key_eps, x0.shape)
        loss, metrics = self.loss_at(network, x0, condition, t, eps)
        return sampler_weight * loss, metrics

    def loss_at(
        self,
        network: Network,
        x0: Float[Array, "batch *shape"],
        condition: Condition,
        t: Array,
        eps: Float[Array, "batch *shape"],
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """(loss [batch], metrics [batch]) at times t [batch] and noise eps."""
        level = self.schedule.level(t)
        z = q_sample(x0, eps, level)
        raw, fraction = call_network(
            network,
            self.schedule,
            self.parameterization,
            z,
            level,
            condition,
            self.variance == "learned_range",
        )
        target = self.parameterization.target(x0, eps, level)
        mse = mean_per_example((target - raw) ** 2)
        metrics = {"mse": mse}
        simple = self.raw_weight(level) * mse
        if self.loss == "simple":
            return simple, metrics

        mean = jax.lax.stop_gradient(raw) if self.loss == "hybrid" else raw
        x0_hat, _ = self.parameterization.prediction(mean, z, level)
        rows = rows_at(self._chain, t, x0)
        log_variance = learned_range_log_variance(fraction, rows.log_small, rows.log_large)
        term = vlb_term(x0, x0_hat, log_variance, t, self._chain, self.likelihood)
        vlb = self.schedule.num_timesteps * term
        metrics["vlb_bits"] = vlb
        return (simple + vlb / 1000.0 if self.loss == "hybrid" else vlb), metrics
