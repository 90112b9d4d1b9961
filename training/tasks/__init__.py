"""What differs between the stages that the loop trains: one file each, one line here."""

from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

from training.tasks import diffusion


@runtime_checkable
class Task(Protocol):
    """All that the loop knows of what it trains."""

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Fields of a global batch, with shapes and types."""

    def init(self, rng: Key[Array, ""]) -> dict:
        """Fresh parameters."""

    def init_state(self) -> dict:
        """What the task keeps from step to step beside the parameters; empty where nothing."""

    def loss(
        self, params, state: dict, batch, rng
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], dict]]:
        """(mean loss over the batch, (metrics to log, what to keep))."""

    def preview(self, params, rng) -> Float[Array, "count height width channels"]:
        """Images in [-1, 1] that show how far the training is."""


# Called with the whole config.
TASKS = {"diffusion": diffusion.DiffusionTask}
