"""Other networks that guidances of a config ask: a weaker one, or a classifier."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from training import checkpoints, guidance, tasks
from training.components import ConfigError, parse
from training.config import flatten
from training.guidance import FIELD
from training.posthoc import is_posthoc
from training.workdir import Workdir

# What the run of another network has to have in common with the one that is sampled.
_SHARED = (
    "data.image_size",
    "data.channels",
    "data.field",
    "data.scale",
    "diffusion.schedule",
    "diffusion.parameterization",
)
# Of its config, all that decides its parameters.
_SECTIONS = ("task", "seed", "data", "model", "diffusion", "train", "optimizer")


@dataclasses.dataclass(frozen=True)
class Companion:
    """The other network of a guidance.

    Attributes:
        task: of its own run.
        params: its parameters.
        bind: `bind(params)`, the denoiser, or (x, level, label) -> log p(label | x).
        identity: what decides its predictions, as JSON values.
    """

    task: Any
    params: Any
    bind: Callable[[Any], Callable[..., Any]]
    identity: dict[str, Any]


def restore(config: Any, workdir: Workdir, mesh: Any) -> tuple[Companion | None, ...]:
    """For each guidance of the config its other network, restored; None where it has none.

    Args:
        config: of the run that is sampled.
        workdir: of that run.
        mesh: over which parameters are laid out.

    Raises:
        ConfigError: no such run or checkpoint, or one that does not fit the sampled one.
    """
    items = guidance.build_all(config.sample.guidance)
    return tuple(
        _restore(name, item, config, workdir, mesh) if item.companion else None
        for name, item in zip(config.sample.guidance, items, strict=True)
    )


def _restore(name: str, item: Any, config: Any, workdir: Workdir, mesh: Any) -> Companion:
    run, where = item.run, f"{FIELD} = {name!r}"
    there = Workdir(run.workdir) if run.workdir else workdir
    try:
        other = there.read_config()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    _check_fits(where, item.companion, config, other, os.fspath(there))
    task = tasks.make_task(other)
    if told := getattr(task, "scalars", ()):
        raise ConfigError(
            f"{where}: the network of {os.fspath(there)} has to be told {', '.join(told)}, too; "
            "take a run of task 'diffusion'"
        )
    ema = run.ema or (other if run.workdir else config).sample.ema
    try:
        params, step = checkpoints.restore_for_sampling(
            there.checkpoints, ema, task.init, mesh, run.checkpoint, averages=other.ema
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    fields = other.to_dict()
    sections = (*_SECTIONS, "init") if other.init.workdir else _SECTIONS
    identity = {"checkpoint": step, "ema": ema} | {name: fields[name] for name in sections}
    if is_posthoc(ema):
        identity["snapshots"] = checkpoints.snapshots(there.checkpoints, step)
    if item.companion == "classifier":
        return Companion(task, params, task.log_prob, identity)
    return Companion(task, params, lambda weights: guidance.denoiser_of(task, weights), identity)


def _check_fits(where: str, kind: str, config: Any, other: Any, path: str) -> None:
    """Refuses another network that could not be asked about the same noisy images."""
    wanted = "classifier" if kind == "classifier" else "a task of denoising"
    if (parse(other.task).name == "classifier") != (kind == "classifier"):
        raise ConfigError(f"{where}: {path} is a run of task {other.task!r}, needed is {wanted}")
    # A classifier predicts no image.
    shared = _SHARED[:-1] if kind == "classifier" else _SHARED
    ours, theirs = flatten(config), flatten(other)
    for field in shared:
        if ours[field] != theirs[field]:
            raise ConfigError(
                f"{where}: {path} has config.{field} = {theirs[field]!r}, and the sampled run "
                f"{ours[field]!r}; both must be the same, take or train a run with that"
            )
    classes, own = other.model.get("num_classes", 0), config.model.get("num_classes", 0)
    # A weaker network without classes, or a classifier beside an unconditional network, is useful.
    free = own == 0 if kind == "classifier" else classes == 0
    if classes != own and not free:
        raise ConfigError(
            f"{where}: {path} has config.model.num_classes = {classes}, and the sampled run {own}; "
            "both must know the same classes, take or train a run with these"
        )
