"""The variational bound in continuous time (Kingma et al. 2021), for every path."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion import vdm
from diffusion.denoiser import Condition, Denoiser
from diffusion.gaussian import q_sample
from diffusion.levels import NoiseLevel
from diffusion.likelihood.base import Method, Result, cast, ends, normalized, normals, uniforms
from diffusion.objective import mean_per_example
from diffusion.options import check_option
from diffusion.schedules import Schedule

VARIABLES = ("logsnr", "t")


class Plan(NamedTuple):
    """The schedule's ends, and the noisy one scaled for the prior."""

    first: NoiseLevel
    last: NoiseLevel
    prior: NoiseLevel


@dataclasses.dataclass(frozen=True)
class VDM(Method):
    """-log2 P(image) <= prior + diffusion + reconstruction, in expectation over the noise.

    diffusion       1/2 integral over logsnr of |eps - eps_hat|^2 (eq. 17, 18): it depends on the
                    schedule's ends alone, so the bound holds for all scalings.
    reconstruction  -log2 P(x | z_0), a categorical over the 256 values (section 3.3).

    draws: levels of each image, one in each of so many equal parts of the range.
    variable: what is drawn evenly. 'logsnr' has the lower variance; 't' is the paper's, with the
        derivative of logsnr as the weight.
    """

    draws: int = 32
    variable: str = "logsnr"

    def __post_init__(self):
        check_option("variable", self.variable, VARIABLES)
        if self.draws < 1:
            raise ValueError(f"draws={self.draws}: must be 1 or more")

    def plan(self, schedule: Schedule, learned_variance: bool) -> Plan:
        """The ends.

        Raises:
            ValueError: a discrete schedule, or one that ends in pure noise.
        """
        if schedule.num_timesteps is not None:
            raise ValueError(
                f"vdm is the bound of continuous time, and this schedule has "
                f"{schedule.num_timesteps} steps: take vlb"
            )
        first, last = ends(schedule)
        if not (np.isfinite(first.logsnr) and np.isfinite(last.logsnr)):
            raise ValueError(
                f"vdm needs a schedule of finite ends; this one has logsnr {first.logsnr:g} to "
                f"{last.logsnr:g}: take vlb(timesteps=1000)"
            )
        return Plan(first, last, normalized(last))

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        plan: Plan,
        x0: Float[Array, "batch *shape"],
        condition: Condition,
        keys: Key[Array, " batch"],
    ) -> Result:
        """Terms have logsnr, bits/dim, and the mean squared errors of x0 and eps."""
        plan, offset = cast(plan), uniforms(keys, 0)

        def term(_, k: Int[Array, ""]):
            level, slope = self._level(schedule, plan, (k + offset) / self.draws)
            eps = normals(keys, k + 2, x0)
            prediction = denoiser(q_sample(x0, eps, level), level, condition)
            return None, {
                "logsnr": level.logsnr,
                "bits": vdm.diffusion_bits(eps, prediction.eps, slope),
                "x0_mse": mean_per_example((prediction.x0 - x0) ** 2),
                "eps_mse": mean_per_example((prediction.eps - eps) ** 2),
            }

        _, terms = jax.lax.scan(term, None, jnp.arange(self.draws))
        parts = {
            "prior": vdm.prior_bits(x0, plan.prior),
            "diffusion": jnp.mean(terms["bits"], axis=0),
            "reconstruction": vdm.reconstruction_bits(x0, normals(keys, 1, x0), plan.first),
        }
        counts = {"network_calls": jnp.full(len(x0), float(self.draws))}
        return Result(parts, {name: value.T for name, value in terms.items()}, counts)

    def _level(
        self, schedule: Schedule, plan: Plan, u: Float[Array, " batch"]
    ) -> tuple[NoiseLevel, Float[Array, " batch"]]:
        """The level at u on [0, 1], and -d logsnr / du there."""
        if self.variable == "logsnr":
            span = plan.first.logsnr - plan.last.logsnr
            logsnr = plan.first.logsnr - span * u
            return schedule.level_of_logsnr(logsnr), jnp.broadcast_to(span, u.shape)
        low, high = schedule.t_range
        t = low + (high - low) * u
        return schedule.level(t), (high - low) * vdm.gamma_slope(schedule, t)
