"""MeanFlow: the mean velocity over any part of a path, from data alone (Geng et al. 2025)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from diffusion.flow_map import adaptive_loss, meanflow_target, ordered_times
from diffusion.gaussian import q_sample
from diffusion.levels import expand_like
from training.tasks.few_step import FewStepTask, Loss


class MeanFlowTask(FewStepTask):
    """A network of u(x, t, h), trained on the identity u = v - h du/dt.

    mean, std: t and r are logistic functions of such normal draws (table 1d).
    equal: share of the batch with r = t, where the loss is flow matching (the paper: 0.75 on
        ImageNet, 0.25 on CIFAR-10).
    power, c: of the adaptive weight 1 / (|error|^2 + c)^power.
    omega, kappa: guidance trained into the network, v = omega v + kappa u(label) +
        (1 - omega - kappa) u(no label), a scale of omega / (1 - kappa) (eq. 19 to 21). 1 and 0:
        none. Needs label dropout.

    Sampled by flow_map() in any number of steps.
    """

    scalars = ("step",)

    def __init__(
        self,
        config: ConfigDict,
        mean: float = -0.4,
        std: float = 1.0,
        equal: float = 0.75,
        power: float = 1.0,
        c: float = 0.01,
        omega: float = 1.0,
        kappa: float = 0.0,
    ):
        super().__init__(config)
        self.require_flow()
        self.require_forward_derivatives()
        if not (std > 0.0 and 0.0 <= equal <= 1.0 and power >= 0.0 and c > 0.0):
            raise self.error("need std and c above 0, equal in [0, 1], power of 0 or more")
        self.guided = (omega, kappa) != (1.0, 0.0)
        if self.guided and (self.null_label is None or not 0.0 <= kappa < 1.0):
            raise self.error(
                "omega and kappa need config.model.null_class = True, and kappa in [0, 1)"
            )
        self.mean, self.std, self.equal = mean, std, equal
        self.power, self.c, self.omega, self.kappa = power, c, omega, kappa

    def loss(self, params, state: dict, batch: Mapping, rng: Key[Array, ""]) -> Loss:
        """Mean of the adaptively weighted squared error."""
        keys = jax.random.split(rng, 5)
        x0, condition = self.examples(batch, keys[0], keys[1])
        draws = self.mean + self.std * jax.random.normal(keys[2], (2, len(x0)))
        times = jnp.clip(jax.nn.sigmoid(draws), *self.schedule.t_range)
        t, r = ordered_times(*times, self.equal)
        eps = jax.random.normal(keys[3], x0.shape)
        z = q_sample(x0, eps, self.schedule.level(t))
        network = self.applied(params, keys[4])
        u = self.mean_velocity(network, condition)
        v = self._guided(network, condition, z, t, eps - x0)
        target = meanflow_target(u, z, t, r, v)
        loss, square = adaptive_loss(u(z, t, t - r) - target, self.power, self.c)
        return loss.mean(), ({"mse": square.mean()}, {})

    def _guided(self, network, condition, z, t, v):
        """The velocity to learn: v itself where the label was dropped, or without guidance."""
        if not self.guided:
            return v
        label = condition["label"]
        null = condition | {"label": jnp.full_like(label, self.null_label)}
        still = jnp.zeros_like(t)
        free = self.mean_velocity(network, null)(z, t, still)
        guided = self.omega * v + (1.0 - self.omega - self.kappa) * free
        if self.kappa:
            guided += self.kappa * self.mean_velocity(network, condition)(z, t, still)
        return jax.lax.stop_gradient(jnp.where(expand_like(label == self.null_label, z), v, guided))

    def init_state(self) -> dict:
        """Nothing."""
        return {}
