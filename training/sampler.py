"""The sampling program of a config, shared by previews and the sampling job."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

import diffusion
from training.components import ConfigError, build


class Inputs(NamedTuple):
    """What may change without a new program, as long as the number of steps stays."""

    # Coefficients of every step, float32.
    plan: Any
    guidance: np.float32


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws images; `sampler(params, seed, indices, labels)` runs it.

    Attributes:
        draw: `(params, inputs, seed, indices, labels) -> images` in [-1, 1], to be traced into a
            larger program; pass `inputs` as an argument of that program.
        plan: `plan(params)`, the coefficients of every step; they depend on the parameters where
            the schedule is learned.
        guidance: of the configured sampler.
        calls_per_image: evaluations of the network that one image takes.
    """

    draw: Callable[..., Float[Array, "batch height width channels"]]
    plan: Callable[[Any], Any]
    guidance: float
    calls_per_image: int

    def inputs(self, params: Any) -> Inputs:
        """What `draw` is given beside the parameters, made on the host."""
        return Inputs(self.plan(params), np.float32(self.guidance))

    @functools.cached_property
    def _program(self) -> Callable[..., Any]:
        return jax.jit(self.draw)

    def __call__(
        self,
        params: Any,
        seed: Key[Array, ""],
        indices: Int[Array | np.ndarray, " batch"],
        labels: Int[Array | np.ndarray, " batch"],
    ) -> Float[Array, "batch height width channels"]:
        """Images of the given sample indices: each depends on seed and its own index and label."""
        return self._program(params, self.inputs(params), seed, indices, labels)


def build_sampler(config: Any, task: Any) -> Sampler:
    """The sampler that `config.sample` describes.

    Args:
        config: the whole config.
        task: gives `network`, `schedule`, `parameterization`, `learned_variance`, `image_shape`,
            `num_classes`, `null_label` (None without one) and `split(params)`, as
            `training.tasks.diffusion`.

    Raises:
        ConfigError: the sampler asks for what the network cannot give.
    """
    settings = config.sample
    guided = settings.guidance != 1.0
    if guided and task.null_label is None:
        raise ConfigError(
            f"config.sample.guidance = {settings.guidance}: guidance needs a network that knows "
            "'no label' (config.model.null_class = True in training); 1.0 samples without"
        )
    solver = build(diffusion.SOLVERS, settings.solver, "config.sample.solver")
    if getattr(solver, "variance", None) == "learned_range" and not task.learned_variance:
        raise ConfigError(
            f"config.sample.solver = {settings.solver!r}: the network has no learned variance "
            "(config.diffusion.variance = 'learned_range' in training); take variance='fixed_small'"
        )
    make_grid = build(diffusion.GRIDS, settings.grid, "config.sample.grid")

    def plan_of(schedule: diffusion.Schedule) -> Any:
        try:
            plan = solver.plan(make_grid(schedule, settings.steps, settings.last_step))
        except ValueError as error:
            raise ConfigError(f"config.sample: {error}") from error
        return jax.tree.map(np.float32, plan)

    fixed = plan_of(task.schedule)

    def plan(params: Any) -> Any:
        learned = task.split(params)[1].get("schedule")
        return plan_of(task.schedule.bind(jax.device_get(learned))) if learned else fixed

    def draw(
        params: Any,
        inputs: Inputs,
        seed: Key[Array, ""],
        indices: Int[Array, " batch"],
        labels: Int[Array, " batch"],
    ) -> Float[Array, "batch height width channels"]:
        weights, learned = task.split(params)

        def network(x, time, condition):
            return task.network.apply(weights, x, time, condition)

        schedule = task.schedule.bind(learned.get("schedule", {}))
        denoiser = diffusion.denoiser(
            network, schedule, task.parameterization, task.learned_variance
        )
        if guided:
            null = {"label": np.int32(task.null_label)}
            denoiser = diffusion.classifier_free(denoiser, null, inputs.guidance)
        denoiser = diffusion.clip(denoiser, settings.clip, settings.eps_after_clip)
        condition = {"label": labels} if task.num_classes else None
        keys = diffusion.sample_keys(seed, indices)
        return diffusion.sample(denoiser, solver, inputs.plan, keys, task.image_shape, condition)

    calls = settings.steps * _calls_per_step(solver, fixed) * (2 if guided else 1)
    return Sampler(draw, plan, settings.guidance, calls)


def sample_labels(
    rule: str, num_classes: int, indices: Int[np.ndarray, " batch"]
) -> Int[np.ndarray, " batch"]:
    """Labels of samples by `config.sample.labels`: 'cycle' or one class; zeros without classes.

    Raises:
        ConfigError: neither 'cycle' nor a class of the model.
    """
    if rule == "cycle":
        return (indices % max(num_classes, 1)).astype(np.int32)
    if rule.isdecimal() and int(rule) < num_classes:
        return np.full(indices.shape, int(rule), np.int32)
    classes = f"or '0' to '{num_classes - 1}'" if num_classes else "for a model without classes"
    raise ConfigError(f"config.sample.labels = {rule!r}: must be 'cycle' {classes}")


def _calls_per_step(solver: diffusion.Solver, plan: Any) -> int:
    """How often one step asks the denoiser, found by tracing one with a denoiser that counts."""
    calls = 0

    def denoiser(x, level):
        nonlocal calls
        calls += 1
        return diffusion.Prediction(x, x, x)

    def step(x, row):
        return solver.step(solver.init(x), denoiser, row, x)

    jax.eval_shape(step, np.zeros((1, 1), np.float32), jax.tree.map(lambda leaf: leaf[0], plan))
    return calls
