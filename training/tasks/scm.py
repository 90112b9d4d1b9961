"""Consistency training and distillation in continuous time, simplified (sCM)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from diffusion.consistency import level_of_sigma
from diffusion.denoiser import call_network
from diffusion.gaussian import q_sample
from diffusion.levels import expand_like
from diffusion.parameterization import EDM
from diffusion.trigflow import angle_of_level, level_of_angle, scm_loss
from training.tasks.diffusion import OBJECTIVE
from training.tasks.few_step import FewStepTask, Loss


class SCMTask(FewStepTask):
    """The derivative of f along the path is driven to zero (Lu and Song 2024).

    teacher: a work directory whose ODE is the path (distillation); '': data and noise (training).
    mean, std: of ln sigma, sigma that of sigma / alpha, cut at the schedule's ends.
    warmup: steps in which the part of the tangent that needs the network's derivative grows to
        its full size; 0: full from the start.
    c: of the tangent's normalization g / (|g| + c).
    guidance: scale of the teacher's guidance.

    config.diffusion.uncertainty_channels > 0 is the adaptive weight. The parameterization is 'edm',
    which is TrigFlow's on every schedule. Sampled by consistency().
    """

    takes_uncertainty = True

    def __init__(
        self,
        config: ConfigDict,
        teacher: str = "",
        mean: float = -1.0,
        std: float = 1.4,
        warmup: int = 10_000,
        c: float = 0.1,
        guidance: float = 1.0,
    ):
        super().__init__(config, teacher, guidance)
        self.require_forward_derivatives()
        if not isinstance(self.parameterization, EDM):
            raise self.error(
                "needs config.diffusion.parameterization = 'edm(sigma_data=...)', not "
                f"{config.diffusion.parameterization!r}"
            )
        if std <= 0.0 or warmup < 0 or c <= 0.0:
            raise self.error("std and c must be above 0, warmup 0 or more")
        if guidance != 1.0 and not teacher:
            raise self.error("guidance needs a teacher")
        self.mean, self.std, self.warmup, self.c = mean, std, warmup, c
        self.sigma_data = self.parameterization.sigma_data

    def init_state(self) -> dict:
        """Calls so far: the warm-up's clock."""
        return {"calls": jnp.int32(0)}

    def loss(self, params, state: dict, batch: Mapping, rng: Key[Array, ""]) -> Loss:
        """Mean of |F - sg(F + g)|^2 a pixel, over e^u and plus u where u is learned."""
        keys = jax.random.split(rng, 5)
        x0, condition = self.examples(batch, keys[0], keys[1])
        spread = self.std * jax.random.normal(keys[2], x0.shape[:1])
        sigma = jnp.clip(jnp.exp(self.mean + spread), *self.sigma_range())
        level = level_of_sigma(self.schedule, sigma)
        angle = angle_of_level(level, self.sigma_data)
        eps = jax.random.normal(keys[3], x0.shape)
        x = q_sample(x0, eps, level)
        clean, noise = x0, eps
        if self.teachers:
            clean, noise, _ = self.teacher(state)(x, level, condition)
        cos, sin = expand_like(jnp.cos(angle), x), expand_like(jnp.sin(angle), x)
        network = self.applied(params, keys[4])

        def velocity(x_scaled, angle):
            at = level_of_angle(angle, self.schedule, self.sigma_data)
            norm = jnp.sqrt(at.sigma**2 + (at.alpha * self.sigma_data) ** 2)
            raw, _ = call_network(
                network,
                self.schedule,
                self.parameterization,
                expand_like(norm, x_scaled) * x_scaled,
                at,
                condition,
                learned_variance=False,
            )
            return -raw

        warm = jnp.minimum(1.0, self.steps_done(state) / self.warmup) if self.warmup else 1.0
        loss, size = scm_loss(
            velocity,
            cos * x0 + sin * self.sigma_data * eps,
            angle,
            jax.lax.stop_gradient(cos * self.sigma_data * noise - sin * clean),
            self.sigma_data,
            self.c,
            warm,
        )
        if self.objective.uncertainty is not None:
            weight = self.objective.uncertainty(params[OBJECTIVE]["uncertainty"], level.logsnr)
            loss = loss * jnp.exp(-weight) + weight
        metrics = {"tangent": jnp.sqrt(size).mean()}
        return loss.mean(), (metrics, {"calls": state["calls"] + 1})
