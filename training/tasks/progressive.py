"""Progressive distillation: half of the teacher's steps (Salimans and Ho 2022)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

import diffusion
from diffusion.denoiser import call_network
from diffusion.distillation import halving_levels, two_step_target
from diffusion.gaussian import q_sample
from diffusion.objective import mean_per_example
from training.tasks.few_step import FewStepTask, Loss


class ProgressiveTask(FewStepTask):
    """A student whose N DDIM steps lead where 2N of the teacher do.

    teacher: the work directory of a diffusion model, or of a student of 2N steps: the runs of
        8, 4, 2 and 1 steps are a chain.
    steps: N.
    guidance: scale of the teacher's guidance, for the first of a chain; it is distilled with it.

    The error is weighted as config.diffusion.weighting says ('truncated_snr' in the paper).
    """

    def __init__(self, config: ConfigDict, teacher: str, steps: int, guidance: float = 1.0):
        super().__init__(config, teacher, guidance)
        self.steps = steps
        if steps < 1:
            raise self.error(f"steps={steps} must be at least 1")
        try:
            levels = halving_levels(self.schedule, steps)
        except ValueError as error:
            raise self.error(str(error)) from error
        self.levels = diffusion.NoiseLevel(*(field.astype("float32") for field in levels))

    def check_teacher(self, teacher: Any) -> None:
        """A teacher that is a student itself has twice the steps."""
        super().check_teacher(teacher)
        if isinstance(teacher.task, ProgressiveTask) and teacher.task.steps != 2 * self.steps:
            raise self.error(
                f"steps={self.steps} must be half of the teacher's, which was trained to take "
                f"{teacher.task.steps}"
            )

    def loss(self, params, state: dict, batch: Mapping, rng: Key[Array, ""]) -> Loss:
        """Mean squared error of the raw output to the two-step target, weighted."""
        keys = jax.random.split(rng, 5)
        x0, condition = self.examples(batch, keys[0], keys[1])
        index = 2 * jax.random.randint(keys[2], x0.shape[:1], 1, self.steps + 1)
        now, middle, after = (
            diffusion.NoiseLevel(*(jnp.asarray(field)[index - k] for field in self.levels))
            for k in range(3)
        )
        z = q_sample(x0, jax.random.normal(keys[3], x0.shape), now)
        told = two_step_target(self.teacher(state), z, now, middle, after, condition)
        target = jax.lax.stop_gradient(self.parameterization.target(*told, now))
        raw, _ = call_network(
            self.applied(params, keys[4]),
            self.schedule,
            self.parameterization,
            z,
            now,
            condition,
            learned_variance=False,
        )
        mse = mean_per_example((raw - target) ** 2)
        loss = self.objective.raw_weight(now) * mse
        return loss.mean(), ({"mse": mse.mean()}, {})

    def init_state(self) -> dict:
        """Nothing: the levels are the task's own."""
        return {}
