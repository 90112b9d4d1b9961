"""The variational bound of a chain of steps (Ho et al. 2020; Nichol & Dhariwal 2021)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Key

from diffusion import clipping, vdm
from diffusion.denoiser import Condition, Denoiser, Prediction, clip
from diffusion.gaussian import (
    LIKELIHOODS,
    ReverseChain,
    learned_range_log_variance,
    q_sample,
    reverse_chain,
)
from diffusion.grids import respaced, uniform
from diffusion.levels import NoiseLevel, expand_like
from diffusion.likelihood.base import Method, Result, cast, normalized, normals, uniforms
from diffusion.objective import mean_per_example, rows_at, vlb_term
from diffusion.options import check_option
from diffusion.schedules import Schedule

CLIPS = {"none": clipping.none, "static": clipping.static}
VARIANCES = ("auto", "fixed_small", "fixed_large", "learned_range")


class Plan(NamedTuple):
    """The chain, index 0 the step to the data.

    share: how likely a draw is each term. prior: the noisiest level.
    """

    levels: NoiseLevel
    chain: ReverseChain
    share: Float64[np.ndarray, " steps"]
    prior: NoiseLevel


@dataclasses.dataclass(frozen=True)
class VLB(Method):
    """-log2 P(image) <= prior + diffusion + decoder, in expectation over the noise (DDPM eq. 5).

    prior      KL of the noisiest level from the prior.
    diffusion  sum over t > 0 of KL(q(z_{t-1} | z_t, x) || p(z_{t-1} | z_t)).
    decoder    -log2 of the mass that p(x | z_0) gives to the bin of each 8-bit value.

    variance: of p(z_{t-1} | z_t). 'auto' is the learned one, 'fixed_small' where there is none.
    decoder: 'exact' or 'tanh', OpenAI's approximation (`gaussian.discretized_log_likelihood`).
    clip: of the predicted image, as in sampling: 'static' is what OpenAI's figures have.
    timesteps: length of the chain, which is another model for each length; 0 takes all steps of a
        discrete schedule.
    draws: terms that are taken of each image: term 0 and draws - 1 others, spread evenly over
        logsnr and weighted: unbiased for the sum. 0 takes all.
    """

    variance: str = "auto"
    decoder: str = "exact"
    clip: str = "static"
    timesteps: int = 0
    draws: int = 0

    def __post_init__(self):
        check_option("variance", self.variance, VARIANCES)
        check_option("decoder", self.decoder, LIKELIHOODS)
        check_option("clip", self.clip, tuple(CLIPS))
        if self.timesteps < 0:
            raise ValueError(f"timesteps={self.timesteps}: must be 0 (all) or 1 or more")
        if self.draws == 1 or self.draws < 0:
            raise ValueError(f"draws={self.draws}: must be 0 (all terms) or 2 or more")

    def plan(self, schedule: Schedule, learned_variance: bool) -> Plan:
        """The chain's levels and tables.

        Raises:
            ValueError: continuous time without `timesteps`; fewer steps than asked for.
        """
        steps = self.timesteps or schedule.num_timesteps
        if steps is None:
            raise ValueError(
                "vlb is the bound of a chain of steps, and this schedule has continuous time: "
                "give the number of steps, vlb(timesteps=1000), or take vdm"
            )
        if self.variance == "learned_range" and not learned_variance:
            raise ValueError(
                "variance='learned_range': this network has no learned variance; take "
                "'fixed_small' or 'fixed_large'"
            )
        if self.draws > steps:
            raise ValueError(f"draws={self.draws}: must be at most the chain's {steps} steps")
        make_grid = uniform() if schedule.num_timesteps is None else respaced()
        grid = make_grid(schedule, steps, "zero")
        levels = NoiseLevel(*(field[:-1][::-1] for field in grid))
        return Plan(
            levels=levels,
            chain=ReverseChain(*(table[::-1] for table in reverse_chain(grid))),
            share=_share(levels.logsnr),
            prior=normalized(NoiseLevel(*(field[0] for field in grid))),
        )

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        plan: Plan,
        x0: Float[Array, "batch *shape"],
        condition: Condition,
        keys: Key[Array, " batch"],
    ) -> Result:
        """Terms have t (the index in the chain), logsnr, bits/dim, squared errors of x0 and eps.

        One network call a term; memory is that of one call.
        """
        plan, denoise = cast(plan), clip(denoiser, CLIPS[self.clip]())
        indices, weight = self._indices(plan.share, keys)

        def term(_, column: tuple[Int[Array, ""], Int[Array, " batch"]]):
            k, t = column
            return None, self.term(denoise, plan, x0, condition, t, normals(keys, k + 1, x0))

        _, terms = jax.lax.scan(term, None, (jnp.arange(len(indices)), indices))
        bits = terms["bits"]
        parts = {
            "prior": vdm.prior_bits(x0, plan.prior),
            "diffusion": jnp.sum((weight * bits)[1:], axis=0),
            "decoder": bits[0],
        }
        columns = {"t": indices.astype(x0.dtype), "logsnr": plan.levels.logsnr[indices]} | terms
        counts = {"network_calls": jnp.full(len(x0), float(len(indices)))}
        return Result(parts, {name: value.T for name, value in columns.items()}, counts)

    def term(
        self,
        denoiser: Denoiser,
        plan: Plan,
        x0: Float[Array, "batch *shape"],
        condition: Condition,
        t: Int[Array, " batch"],
        eps: Float[Array, "batch *shape"],
    ) -> dict[str, Float[Array, " batch"]]:
        """Term t of the bound in bits/dim with noise eps, and squared errors of x0 and eps."""
        level = NoiseLevel(*(jnp.asarray(field, x0.dtype)[t] for field in plan.levels))
        prediction = denoiser(q_sample(x0, eps, level), level, condition)
        log_variance = self._log_variance(prediction, plan.chain, t, x0)
        return {
            "bits": vlb_term(x0, prediction.x0, log_variance, t, plan.chain, self.decoder),
            "x0_mse": mean_per_example((prediction.x0 - x0) ** 2),
            "eps_mse": mean_per_example((prediction.eps - eps) ** 2),
        }

    def _log_variance(
        self,
        prediction: Prediction,
        chain: ReverseChain,
        t: Int[Array, " batch"],
        x0: Float[Array, "batch *shape"],
    ) -> Float[Array, "batch *#shape"]:
        rows, fraction = rows_at(chain, t, x0), prediction.variance_fraction
        if self.variance == "fixed_large":
            # The step to the data has no noise to be large: OpenAI gives it log_small's.
            return jnp.where(expand_like(t == 0, x0), rows.log_small, rows.log_large)
        if self.variance == "fixed_small" or fraction is None:
            return rows.log_small
        return learned_range_log_variance(fraction, rows.log_small, rows.log_large)

    def _indices(
        self, share: Float[Array, " steps"], keys: Key[Array, " batch"]
    ) -> tuple[Int[Array, "terms batch"], Float[Array, "terms batch"]]:
        """Which terms are taken, the first row 0, and their weights in the sum."""
        length, batch = len(share), len(keys)
        if not self.draws:
            t = jnp.broadcast_to(jnp.arange(length)[:, None], (length, batch))
            return t, jnp.ones(t.shape, share.dtype)
        rows = self.draws - 1
        place = (np.arange(rows)[:, None] + uniforms(keys, 0, (rows,)).T) / rows
        t = jnp.searchsorted(jnp.cumsum(share), place, side="right")
        t = jnp.clip(t, 1, length - 1)
        first = jnp.zeros((1, batch), t.dtype)
        weight = jnp.concatenate([jnp.ones((1, batch), share.dtype), 1.0 / (rows * share[t])])
        return jnp.concatenate([first, t]), weight


def _share(logsnr: Float64[np.ndarray, " steps"]) -> Float64[np.ndarray, " steps"]:
    """How likely a draw is each term; 0 of term 0, which is always taken.

    A term is about half its step in logsnr times the squared error of eps, which is below 1: drawn
    in proportion to the step the terms weigh alike. A tenth goes to all alike, as that is rough.
    """
    if len(logsnr) == 1:
        return np.ones(1)
    step = -np.diff(np.maximum(logsnr, -20.0))
    return np.append(0.0, 0.9 * step / step.sum() + 0.1 / len(step))
