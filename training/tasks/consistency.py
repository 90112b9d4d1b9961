"""Consistency training and distillation in discrete time, with the improved settings."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from diffusion.consistency import (
    Curriculum,
    Discretization,
    heun_step,
    level_of_sigma,
    pair_loss,
)
from diffusion.gaussian import q_sample
from training.tasks.few_step import FewStepTask, Loss


class ConsistencyTask(FewStepTask):
    """Equal clean images from neighbouring levels of a path (Song and Dhariwal 2023).

    teacher: a work directory; the lower point is then one step of Heun's rule along its ODE
        (distillation, Song et al. 2023). '': the same data and noise at both (training).
    start, end, double_every: intervals between levels, doubled every so many steps until `end`
        (the paper: each eighth of the training); 0: `end` from the first step on.
    mean, std: of ln sigma, the normal law that picks the interval.
    huber: c of the pseudo-Huber distance is this times the root of the dimension.
    sigma_min, sigma_max: ends of sigma / alpha; 0: those of the schedule.
    guidance: scale of the teacher's guidance.

    Sampled by consistency() on a grid within the same sigmas.
    """

    def __init__(
        self,
        config: ConfigDict,
        teacher: str = "",
        start: int = 10,
        end: int = 1280,
        double_every: int = 50_000,
        mean: float = -1.1,
        std: float = 2.0,
        huber: float = 0.00054,
        rho: float = 7.0,
        sigma_min: float = 0.0,
        sigma_max: float = 0.0,
        guidance: float = 1.0,
    ):
        super().__init__(config, teacher, guidance)
        self.curriculum = Curriculum(start, end, double_every)
        low, high = self.sigma_range()
        low, high = max(sigma_min, low), min(sigma_max or high, high)
        if not (0.0 < low < high and rho > 0.0 and std > 0.0 and huber > 0.0):
            raise self.error(
                f"need sigma_min below sigma_max inside of the schedule's, {self.sigma_range()}, "
                "and rho, std and huber above 0"
            )
        if guidance != 1.0 and not teacher:
            raise self.error("guidance needs a teacher")
        self.levels = Discretization(low, high, rho)
        self.mean, self.std, self.huber = mean, std, huber

    def init_state(self) -> dict:
        """Calls so far: the curriculum's clock."""
        return {"calls": jnp.int32(0)}

    def loss(self, params, state: dict, batch: Mapping, rng: Key[Array, ""]) -> Loss:
        """Mean of the weighted distance between f at the two ends of an interval."""
        keys = jax.random.split(rng, 5)
        x0, condition = self.examples(batch, keys[0], keys[1])
        intervals = self.curriculum.intervals(self.steps_done(state))
        u = jax.random.uniform(keys[2], x0.shape[:1])
        index = self.levels.draw(u, intervals, self.mean, self.std)
        high, low = (
            level_of_sigma(self.schedule, self.levels.sigma(index + above, intervals))
            for above in (1, 0)
        )
        eps = jax.random.normal(keys[3], x0.shape)
        x_high = q_sample(x0, eps, high)
        if self.teachers:
            x_low = heun_step(self.teacher(state), x_high, high, low, condition)
        else:
            x_low = q_sample(x0, eps, low)
        # Both calls have the same dropout.
        denoise = self.student(params, keys[4])
        c = self.huber * float(x0[0].size) ** 0.5
        loss, square = pair_loss(
            lambda x, level: denoise(x, level, condition).x0,
            x_high,
            x_low,
            high,
            low,
            index == 0,
            c,
        )
        metrics = {"mse": square.mean(), "intervals": intervals.astype(jnp.float32)}
        return loss.mean(), (metrics, {"calls": state["calls"] + 1})
