"""The sampling program of a config, shared by previews and the sampling job."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

import diffusion
from training import guidance
from training.components import ConfigError, build, parse


class Inputs(NamedTuple):
    """What may change without a new program, as long as the number of steps stays."""

    # Coefficients of every step, float32.
    plan: Any
    # The guidances, whose numbers are leaves.
    guidances: tuple[diffusion.Guidance, ...]
    # Parameters of the other network of each guidance, None where it has none.
    companions: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws images; `sampler(params, seed, indices, labels)` runs it.

    Attributes:
        draw: `(params, inputs, seed, indices, labels, told) -> images` in [-1, 1], to be traced
            into a larger program; pass `inputs` as an argument of that program.
        plan: `plan(params)`, the coefficients of every step; they depend on the parameters where
            the schedule is learned.
        guidances: of the configured sampler.
        companions: parameters of their other networks.
        num_classes: classes that can be asked for, by the network or by a classifier; 0: none.
        calls_per_image: evaluations of denoising networks that one image takes.
    """

    draw: Callable[..., Float[Array, "batch height width channels"]]
    plan: Callable[[Any], Any]
    guidances: tuple[diffusion.Guidance, ...]
    companions: tuple[Any, ...]
    num_classes: int
    calls_per_image: int

    def inputs(self, params: Any, guidances: Sequence[diffusion.Guidance] | None = None) -> Inputs:
        """What `draw` is given beside the parameters, made on the host.

        guidances: in place of the configured ones, the same but for their numbers.
        """
        chosen = self.guidances if guidances is None else guidances
        return Inputs(self.plan(params), tuple(chosen), self.companions)

    @functools.cached_property
    def _program(self) -> Callable[..., Any]:
        return jax.jit(self.draw)

    def __call__(
        self,
        params: Any,
        seed: Key[Array, ""],
        indices: Int[Array | np.ndarray, " batch"],
        labels: Int[Array | np.ndarray, " batch"],
        told: Mapping[str, Any] | None = None,
        guidances: Sequence[diffusion.Guidance] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Images of the given sample indices: each depends on seed and its own index and label.

        `told` is what a task's `sample_condition(indices)` says beside the labels; `guidances` as
        of `inputs`.
        """
        return self._program(params, self.inputs(params, guidances), seed, indices, labels, told)


def build_sampler(config: Any, task: Any, companions: Sequence[Any] = ()) -> Sampler:
    """The sampler that `config.sample` describes.

    Args:
        config: the whole config.
        task: gives `network`, `schedule`, `parameterization`, `learned_variance`, `image_shape`,
            `num_classes`, `null` (the condition that says nothing, or None) and `split(params)`,
            as `training.tasks.diffusion`.
        companions: for each guidance its other network (`training.companions`), or None; without
            them, as in previews, the guidances that need one are left out.

    Raises:
        ConfigError: the sampler asks for what the network cannot give.
    """
    settings = config.sample
    guidances = guidance.build_all(settings.guidance)
    companions = tuple(companions) or (None,) * len(guidances)
    kept = [
        (item, other)
        for item, other in zip(guidances, companions, strict=True)
        if other is not None or not item.companion
    ]
    guidances, companions = (tuple(part) for part in zip(*kept, strict=True)) if kept else ((), ())
    scalars = getattr(task, "scalars", ())
    guides_itself, leaps = "guidance" in scalars, "step" in scalars
    solver = build(diffusion.SOLVERS, settings.solver, "config.sample.solver")
    if getattr(solver, "variance", None) == "learned_range" and not task.learned_variance:
        raise ConfigError(
            f"config.sample.solver = {settings.solver!r}: the network has no learned variance "
            "(config.diffusion.variance = 'learned_range' in training); take variance='fixed_small'"
        )
    _check_leaps(settings, solver, leaps)
    make_grid = build(diffusion.GRIDS, settings.grid, "config.sample.grid")
    clip = build(diffusion.CLIPS, settings.clip, "config.sample.clip")

    def plan_of(schedule: diffusion.Schedule) -> Any:
        try:
            plan = solver.plan(make_grid(schedule, settings.steps, settings.last_step), schedule)
        except ValueError as error:
            raise ConfigError(f"config.sample: {error}") from error
        return jax.tree.map(np.float32, plan)

    fixed = plan_of(task.schedule)
    guidance.check(config, task, solver, fixed)

    def plan(params: Any) -> Any:
        learned = task.split(params)[1].get("schedule")
        return plan_of(task.schedule.bind(jax.device_get(learned))) if learned else fixed

    null = task.null
    classes = [task.num_classes, *(c.task.num_classes for c in companions if c is not None)]

    def draw(
        params: Any,
        inputs: Inputs,
        seed: Key[Array, ""],
        indices: Int[Array, " batch"],
        labels: Int[Array, " batch"],
        told: Mapping[str, Any] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        condition = ({"label": labels} if max(classes) else {}) | dict(told or {})
        denoiser = guidance.denoiser_of(task, params)
        if guides_itself:
            scale = guidance.told_scale(inputs.guidances)
            condition["guidance"] = jnp.broadcast_to(scale, labels.shape)
        else:
            others = [
                other and other.bind(weights)
                for other, weights in zip(companions, inputs.companions, strict=True)
            ]
            denoiser = diffusion.guide(
                denoiser, inputs.guidances, task.parameterization, null, others
            )
        denoiser = diffusion.clip(denoiser, clip, settings.eps_after_clip)
        keys = diffusion.sample_keys(seed, indices)
        shape = task.image_shape
        return diffusion.sample(denoiser, solver, inputs.plan, keys, shape, condition or None)

    return Sampler(
        draw,
        plan,
        jax.tree.map(guidance.as_array, guidances),
        tuple(other and other.params for other in companions),
        max(classes),
        # A row of the plan is one call.
        calls_per_image=len(fixed.now.t)
        * diffusion.guidance.calls(() if guides_itself else guidances, null),
    )


def _check_leaps(settings: Any, solver: diffusion.Solver, leaps: bool) -> None:
    """Refuses settings that do not go with a network that is told the length of a step."""
    name = f"config.sample.solver = {settings.solver!r}"
    if leaps != isinstance(solver, diffusion.solvers.FlowMap):
        wanted = "is told each step's length: take flow_map()" if leaps else "is no flow map"
        raise ConfigError(f"{name}: this task's network {wanted}")
    if leaps and (parse(settings.clip).name != "none" or settings.guidance):
        raise ConfigError(
            f"{name}: its network says a mean velocity, no clean image: config.sample.clip must be "
            f"'none', not {settings.clip!r}, and config.sample.guidance (), not "
            f"{settings.guidance} (guidance is trained into it)"
        )


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
