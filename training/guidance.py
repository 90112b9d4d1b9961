"""Guidances of a config: built, and checked against network and solver."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

import diffusion
from diffusion.guidance import CFGPlusPlus, classifier_free
from training.components import ConfigError, build, parse

FIELD = "config.sample.guidance"


def build_all(names: Sequence[str]) -> tuple[diffusion.Guidance, ...]:
    """The guidances of `config.sample.guidance`, in order."""
    return tuple(build(diffusion.GUIDANCES, name, FIELD) for name in names)


def as_array(number: float | int) -> np.ndarray:
    """A number of a guidance as the program takes it: labels whole, all else float32."""
    return np.asarray(number, np.int32 if isinstance(number, int) else np.float32)


def denoiser_of(task: Any, params: Any) -> Callable[..., diffusion.Prediction]:
    """The denoiser of a task at its parameters; a network without classes is told no label."""
    weights, learned = task.split(params)

    def network(x, time, condition):
        if not task.num_classes and condition is not None:
            condition = {k: v for k, v in condition.items() if k != "label"} or None
        return task.network.apply(weights, x, time, condition)

    schedule = task.schedule.bind(learned.get("schedule", {}))
    return diffusion.denoiser(network, schedule, task.parameterization, task.learned_variance)


def told_scale(guidances: Sequence[diffusion.Guidance]) -> ArrayLike:
    """The scale that a network is told which was distilled from a guided one; 1 is unguided."""
    return 1.0 + guidances[0].extra if guidances else np.float32(1.0)


def check(config: Any, task: Any, solver: Any, plan: Any) -> None:
    """Refuses guidances that the sampled network or the solver cannot serve.

    Raises:
        ConfigError: one line with the guidance, the reason and the remedy.
    """
    settings, items = config.sample, build_all(config.sample.guidance)
    if "guidance" in getattr(task, "scalars", ()) and not only_a_scale(items):
        raise ConfigError(
            f"{FIELD} = {settings.guidance}: this network is told the scale and guides itself; "
            "give one classifier_free(scale=...) with nothing else, or ()"
        )
    for name, item in zip(settings.guidance, items, strict=True):
        where = f"{FIELD} = {name!r}"
        negative = getattr(item, "negative", None)
        if item.needs_null and not task.num_classes and task.null is None:
            raise ConfigError(
                f"{where}: guidance needs a network that knows labels and 'no label' "
                "(config.model.num_classes, null_class = True in training), and this one knows "
                "none; () samples without"
            )
        if item.needs_null and negative is None and task.null is None:
            raise ConfigError(
                f"{where}: guidance needs a network that knows 'no label' "
                "(config.model.null_class = True in training); () samples without, negative=... "
                "compares with another label"
            )
        if negative is not None and not 0 <= negative < task.num_classes:
            allowed = (
                f"a label from 0 to {task.num_classes - 1}" if task.num_classes else "left out"
            )
            raise ConfigError(f"{where}: negative = {negative} must be {allowed}")
        there = getattr(task.network, "attention", ())
        if missing := set(getattr(item, "places", ())) - set(there):
            has = f"the network has it at {there}" if there else "this network has none to replace"
            raise ConfigError(
                f"{where}: places = {item.places} asks for self-attention at "
                f"{', '.join(map(str, sorted(missing)))}; {has}"
            )
        if item.companion == "classifier" and np.min(plan.now.alpha) == 0.0:
            raise ConfigError(
                f"{where}: a shift of x0 by (sigma^2 / alpha) grad log p has no value at pure "
                "noise (alpha = 0); take config.sample.grid or config.diffusion.schedule without"
            )
        if isinstance(item, CFGPlusPlus):
            _check_cfg_plus_plus(where, settings, solver)


def only_a_scale(items: Sequence[diffusion.Guidance]) -> bool:
    """Whether one number says it all: no guidance, or a plain classifier-free one."""
    plain = classifier_free(w=0.0)
    return not items or (
        len(items) == 1
        and type(items[0]) is type(plain)
        and dataclasses.replace(items[0], extra=0.0) == plain
    )


def _check_cfg_plus_plus(where: str, settings: Any, solver: Any) -> None:
    if len(settings.guidance) > 1:
        raise ConfigError(f"{where}: stands alone, it replaces both x0 and eps; leave out the rest")
    if not isinstance(solver, diffusion.solvers.DDIM):
        raise ConfigError(
            f"{where}: needs a solver that takes x0 and eps each for itself, 'ddim(eta=0.0)', not "
            f"config.sample.solver = {settings.solver!r}"
        )
    if parse(settings.clip).name != "none" and settings.eps_after_clip == "rederive":
        raise ConfigError(
            f"{where}: renoises with the unconditional eps, which config.sample.eps_after_clip = "
            "'rederive' would change; take 'raw', or config.sample.clip = 'none'"
        )


def part_of_name(names: Sequence[str]) -> str:
    """What a directory of samples is called after: the guidances without paths of other runs."""
    parts = []
    for name in names:
        call = parse(name)
        values = [f"{k}{v}" for k, v in call.arguments.items() if k not in ("workdir", "interval")]
        parts.append("_".join([call.name, *values]))
    return "+".join(parts)[:80] or "unguided"
