"""Ancestral sampling (DDPM) and its family with less noise (DDIM)."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.denoiser import Prediction
from diffusion.gaussian import learned_range_log_variance, posterior, reverse_chain
from diffusion.levels import AnyArray, NoiseLevel, namespace
from diffusion.options import check_option
from diffusion.schedules import Schedule
from diffusion.solvers import analytic
from diffusion.solvers.base import Bound, Solver, Table, pairs

VARIANCES = ("fixed_small", "fixed_large", "learned_range", "analytic")


class DDPMPlan(NamedTuple):
    """mean = x0_coef x0 + z_coef x; noise_scale is 0 in a step to clean data and 1 elsewhere.

    log_low and log_high are the ends of a learned log variance; a fixed one is both of them.
    """

    now: NoiseLevel
    next: NoiseLevel
    x0_coef: Table
    z_coef: Table
    log_low: Table
    log_high: Table
    noise_scale: Table


@dataclasses.dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling: the posterior's mean at the predicted x0 (DDPM, algorithm 2)."""

    variance: str
    estimates: str

    def __post_init__(self):
        check_option("ddpm: variance", self.variance, VARIANCES)
        if (self.variance == "analytic") != bool(self.estimates):
            raise ValueError(
                f"ddpm: variance={self.variance!r} with estimates={self.estimates!r}: 'analytic' "
                "needs the file that solvers.analytic.estimate(...).save wrote, others none"
            )

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    def plan(self, grid: NoiseLevel, schedule: Schedule) -> DDPMPlan:
        """Chain over the visited levels: its betas are those of the respaced process."""
        now, after = pairs(grid, "ddpm", stochastic=True)
        chain = reverse_chain(grid)
        clean = after.sigma == 0.0
        low, high = chain.log_small, chain.log_large
        if self.variance == "fixed_small":
            high = low
        elif self.variance == "fixed_large":
            # OpenAI's rule "for a better decoder likelihood"; no noise is added there anyway.
            low = high = np.where(clean, low, high)
        elif self.variance == "analytic":
            unknown = analytic.load(self.estimates).x0_variance(now.logsnr)
            low = high = np.log(np.exp(low) + chain.x0_coef**2 * unknown)
        noise_scale = np.where(clean, 0.0, 1.0)
        return DDPMPlan(now, after, chain.x0_coef, chain.z_coef, low, high, noise_scale)

    def log_variance(self, prediction: Prediction, plan: DDPMPlan) -> ArrayLike:
        """log variance of p(z_next | z_now) before `noise_scale`."""
        if self.variance != "learned_range":
            return plan.log_low
        if prediction.variance_fraction is None:
            raise ValueError(
                "ddpm(variance='learned_range') needs a network with a learned variance, and this "
                "one predicts none. Use 'fixed_small' or 'fixed_large', or train with "
                "diffusion.variance='learned_range'."
            )
        return learned_range_log_variance(prediction.variance_fraction, plan.log_low, plan.log_high)

    def step(
        self,
        state: Float[AnyArray, "batch *shape"],
        denoiser: Bound,
        plan: DDPMPlan,
        noise: Float[AnyArray, "batch *shape"],
    ) -> Float[AnyArray, "batch *shape"]:
        """A draw from p(z_next | z_now)."""
        prediction = denoiser(state, plan.now)
        mean = plan.x0_coef * prediction.x0 + plan.z_coef * state
        std = namespace(state).exp(0.5 * self.log_variance(prediction, plan))
        return mean + plan.noise_scale * std * noise


def ddpm(variance: str = "fixed_small", estimates: str = "") -> DDPM:
    """Ancestral sampling with variance 'fixed_small', 'fixed_large' (beta) or 'learned_range'.

    Or 'analytic', that of Bao et al. 2022, with the path of its `analytic.EpsEstimates`.
    """
    return DDPM(variance, estimates)


class DDIMPlan(NamedTuple):
    """x_next = x0_coef x0 + eps_coef eps + noise_std noise."""

    now: NoiseLevel
    next: NoiseLevel
    x0_coef: Table
    eps_coef: Table
    noise_std: Table


@dataclasses.dataclass(frozen=True)
class DDIM(Solver):
    """Song et al. 2021, eq. 12, with the noise eta times that of the posterior (eq. 16)."""

    eta: float

    def __post_init__(self):
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"ddim: eta={self.eta} must lie in [0, 1]")

    @property
    def stochastic(self) -> bool:
        """For eta above 0."""
        return self.eta > 0.0

    def plan(self, grid: NoiseLevel, schedule: Schedule) -> DDIMPlan:
        """eps_coef^2 + noise_std^2 = sigma_next^2."""
        now, after = pairs(grid, f"ddim(eta={self.eta})", self.stochastic)
        if not self.stochastic:
            return DDIMPlan(now, after, after.alpha, after.sigma, np.zeros_like(after.sigma))
        eta2 = self.eta**2
        # sigma_next^2 - eta^2 (posterior variance), without the difference.
        ratio = (1.0 - eta2) + eta2 * np.exp(now.logsnr - after.logsnr)
        noise_std = self.eta * np.sqrt(posterior(now, after).variance)
        return DDIMPlan(now, after, after.alpha, after.sigma * np.sqrt(ratio), noise_std)

    def step(
        self,
        state: Float[AnyArray, "batch *shape"],
        denoiser: Bound,
        plan: DDIMPlan,
        noise: Float[AnyArray, "batch *shape"],
    ) -> Float[AnyArray, "batch *shape"]:
        """The predicted image, noised again to the next level."""
        prediction = denoiser(state, plan.now)
        return (
            plan.x0_coef * prediction.x0 + plan.eps_coef * prediction.eps + plan.noise_std * noise
        )


def ddim(eta: float = 0.0) -> DDIM:
    """Deterministic at eta = 0; at eta = 1 ancestral sampling with the posterior's variance."""
    return DDIM(eta)


def euler_ancestral(eta: float = 1.0) -> DDIM:
    """k-diffusion's name of `ddim`: its Euler step down and noise up are the same numbers."""
    return DDIM(eta)
