"""The variational bound of a chain of steps (Ho et al. 2020; Nichol & Dhariwal 2021)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion import vdm
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

VARIANCES = ("auto", "fixed_small", "fixed_large", "learned_range")


class Plan(NamedTuple):
    """The chain, index 0 the step to the data; `prior` is the noisiest level."""

    levels: NoiseLevel
    chain: ReverseChain
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
    draws: terms that are taken of each image. Term 0 is always one of them, the others lie
        one in each of draws - 1 equal parts of t > 0: unbiased for the sum. 0 takes all.
    """

    variance: str = "auto"
    decoder: str = "exact"
    clip: str = "static"
    timesteps: int = 0
    draws: int = 0

    def __post_init__(self):
        check_option("variance", self.variance, VARIANCES)
        check_option("decoder", self.decoder, LIKELIHOODS)
        check_option("clip", self.clip, ("none", "static"))
        if self.timesteps < 0:
            raise ValueError(f"timesteps={self.timesteps}: must be 0 (all) or 1 or more")
        if self.draws != 0 and self.draws < 2:
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
        return Plan(
            levels=NoiseLevel(*(field[:-1][::-1] for field in grid)),
            chain=ReverseChain(*(table[::-1] for table in reverse_chain(grid))),
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
        plan, denoise = cast(plan), clip(denoiser, self.clip)
        indices, weight = self._indices(len(plan.levels.t), keys)

        def term(_, column: tuple[Int[Array, ""], Int[Array, " batch"]]):
            k, t = column
            return None, self.term(denoise, plan, x0, condition, t, normals(keys, k + 1, x0))

        _, terms = jax.lax.scan(term, None, (jnp.arange(len(indices)), indices))
        bits = terms["bits"]
        parts = {
            "prior": vdm.prior_bits(x0, plan.prior),
            "diffusion": weight * jnp.sum(bits[1:], axis=0),
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
        self, length: int, keys: Key[Array, " batch"]
    ) -> tuple[Int[Array, "terms batch"], float]:
        """Which terms are taken, the first row 0, and the weight of those of the other rows."""
        if not self.draws:
            t = jnp.arange(length)
            return jnp.broadcast_to(t[:, None], (length, len(keys))), 1.0
        rows, rest = self.draws - 1, length - 1
        place = (np.arange(rows)[:, None] + uniforms(keys, 0, (rows,)).T) / rows
        t = 1 + jnp.minimum(jnp.floor(rest * place).astype(int), rest - 1)
        return jnp.concatenate([jnp.zeros_like(t[:1]), t]), rest / rows
