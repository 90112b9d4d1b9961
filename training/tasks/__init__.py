"""What differs between the stages that the loop trains: one file each, one line here."""

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

from training.components import build
from training.tasks import (
    autoregressive_prior,
    classifier,
    clip,
    consistency,
    decoder,
    diffusion,
    guidance_distillation,
    meanflow,
    prior,
    progressive,
    regression_prior,
    scm,
    shortcut,
    super_resolution,
)


@runtime_checkable
class Task(Protocol):
    """All that the loop knows of what it trains.

    A task may have more. `teachers`, a dict of `training.teacher.Teacher`: `loss` finds their
    parameters in its state, under these names, and `start(params, frozen)`, where there is one,
    gives the student's first parameters. `average`, a name of `config.ema`: `loss` finds that
    average under 'average'. Both are read only: the state that `loss` returns is without them.
    `embeddings`, a `training.frozen_clip.Embeddings`: their contract is kept with the run. A task
    whose samples are of something gives `sample_condition(indices)`, what the network is told of
    each sample, and `beside(images, indices)`, uint8 pictures that show the samples with it.
    """

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


# Called with the whole config, and the arguments that `config.task` gives.
TASKS = {
    "diffusion": diffusion.DiffusionTask,
    "classifier": classifier.ClassifierTask,
    "clip": clip.CLIPTask,
    "progressive": progressive.ProgressiveTask,
    "guidance_distillation": guidance_distillation.GuidanceDistillationTask,
    "consistency": consistency.ConsistencyTask,
    "scm": scm.SCMTask,
    "meanflow": meanflow.MeanFlowTask,
    "shortcut": shortcut.ShortcutTask,
    "prior": prior.PriorTask,
    "autoregressive_prior": autoregressive_prior.AutoregressivePriorTask,
    "regression_prior": regression_prior.RegressionPriorTask,
    "super_resolution": super_resolution.SuperResolutionTask,
    "decoder": decoder.DecoderTask,
}


def make_task(config: Any) -> Any:
    """The `Task` that `config.task` names."""
    return build(TASKS, config.task, "config.task", config=config)
