"""Importance sampling of time steps by the size of their loss."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion.schedules import Schedule
from diffusion.time_samplers import Draw, TimeSampler, uniform


@dataclasses.dataclass(frozen=True)
class LossSecondMoment(TimeSampler):
    """p(t) in proportion to sqrt(E[L_t^2]) over the last losses of each t (iDDPM, eq. 18).

    Uniform until every t has its whole history. The expected loss stays that of uniform sampling.
    """

    history: int
    uniform_share: float
    uniform: ClassVar[bool] = True

    def __post_init__(self):
        if self.history < 1:
            raise ValueError(f"loss_second_moment: history={self.history} must be at least 1")
        if not 0.0 <= self.uniform_share <= 1.0:
            raise ValueError(
                f"loss_second_moment: uniform_share={self.uniform_share} must lie in [0, 1]"
            )

    def init(self, schedule: Schedule) -> dict:
        """`losses` [T, history], a ring for each t, and `seen` [T], how many each t has had."""
        if schedule.num_timesteps is None:
            raise ValueError(
                "loss_second_moment keeps a history of each index of a discrete schedule; this "
                "schedule's time is continuous. Use time_sampler 'low_discrepancy'."
            )
        shape = schedule.num_timesteps, self.history
        return {"losses": jnp.zeros(shape), "seen": jnp.zeros(shape[:1], jnp.int32)}

    def probabilities(self, state: dict) -> Float[Array, " timesteps"]:
        """p(t), which sums to 1."""
        root = jnp.sqrt(jnp.mean(jnp.square(state["losses"]), axis=-1))
        count = root.size
        share = self.uniform_share
        learned = (1.0 - share) * root / jnp.maximum(root.sum(), 1e-30) + share / count
        warm = jnp.all(state["seen"] >= self.history) & (root.sum() > 0.0)
        return jnp.where(warm, learned, 1.0 / count)

    def draw(self, key: Key[Array, ""], batch_size: int, schedule: Schedule, state: dict) -> Draw:
        """Indices by p(t), of weight 1 / (T p(t))."""
        probability = self.probabilities(state)
        count = schedule.num_timesteps
        t = jax.random.choice(key, count, (batch_size,), p=probability)
        level, log_density = uniform().at((t + 0.5) / count, schedule)
        return Draw(level, 1.0 / (count * probability[t]), log_density)

    def update(self, state: dict, drawn: Draw, loss: Float[Array, " batch"]) -> dict:
        """The batch's losses, in order, into the rings; of those of one t only the last fit."""
        t = drawn.level.t.astype(jnp.int32)
        loss = jax.lax.stop_gradient(loss)
        rows = jnp.arange(len(t))
        # How many rows before this one, and in the whole batch, are of the same t.
        same = t[:, None] == t[None, :]
        rank = jnp.sum(same & (rows[None, :] < rows[:, None]), axis=1)
        total = jnp.sum(same, axis=1)
        # A row that later ones of its t overwrite goes out of range, where a scatter drops it.
        kept = jnp.where(rank >= total - self.history, t, len(state["seen"]))
        slot = (state["seen"][t] + rank) % self.history
        return {
            "losses": state["losses"].at[kept, slot].set(loss, mode="drop"),
            "seen": state["seen"].at[t].add(1),
        }


def loss_second_moment(history: int = 10, uniform_share: float = 0.001) -> LossSecondMoment:
    """Importance sampling for the variational bound (iDDPM, section 3.3), on discrete schedules."""
    return LossSecondMoment(history, uniform_share)
