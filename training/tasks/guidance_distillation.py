"""Guidance distillation: guided samples at one call a step (Meng et al. 2023, stage one)."""

from collections.abc import Mapping

import jax
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from diffusion.denoiser import call_network
from diffusion.gaussian import q_sample
from diffusion.objective import mean_per_example
from training.tasks.few_step import FewStepTask, Loss


class GuidanceDistillationTask(FewStepTask):
    """A student that is told the guidance scale and predicts what the guided teacher predicts.

    The scale (1 + their w; 1: none) is uniform in [low, high] in training; in sampling it is that
    of config.sample.guidance = ('classifier_free(scale=...)',), at the cost of one call a step.
    Levels and weights are those of config.diffusion.
    """

    scalars = ("guidance",)

    def __init__(self, config: ConfigDict, teacher: str, low: float = 1.0, high: float = 4.0):
        if not low < high:
            raise ValueError(f"low={low} must be below high={high}")
        # Any scale but 1 asks of the teacher that it can be guided.
        super().__init__(config, teacher, guidance=high)
        self.low, self.high = low, high

    def loss(self, params, state: dict, batch: Mapping, rng: Key[Array, ""]) -> Loss:
        """Mean squared error of the raw output to the guided teacher's, weighted."""
        keys = jax.random.split(rng, 6)
        x0, condition = self.examples(batch, keys[0], keys[1])
        memory = {name: value for name, value in state.items() if name != "teacher"}
        drawn = self.objective.time_sampler.draw(keys[2], len(x0), self.schedule, memory)
        scale = jax.random.uniform(keys[3], x0.shape[:1], minval=self.low, maxval=self.high)
        z = q_sample(x0, jax.random.normal(keys[4], x0.shape), drawn.level)
        guided = self.teacher(state, scale)(z, drawn.level, condition)
        target = self.parameterization.target(guided.x0, guided.eps, drawn.level)
        raw, _ = call_network(
            self.applied(params, keys[5]),
            self.schedule,
            self.parameterization,
            z,
            drawn.level,
            (condition or {}) | {"guidance": scale},
            learned_variance=False,
        )
        mse = mean_per_example((raw - jax.lax.stop_gradient(target)) ** 2)
        loss = self.objective.raw_weight(drawn.level, drawn.log_density) * mse
        memory = self.objective.time_sampler.update(memory, drawn, loss)
        return (drawn.weight * loss).mean(), ({"mse": mse.mean()}, memory)
