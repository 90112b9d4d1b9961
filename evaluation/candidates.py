"""The settings that an evaluation compares: all combinations of the lists in `config.evaluate`."""

import itertools
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from training import checkpoints, components
from training.components import ConfigError
from training.config import freeze
from training.workdir import Workdir

# Lists of `config.evaluate` and the field of `config.sample` that each is of.
_LISTS = {
    "checkpoints": "checkpoint",
    "emas": "ema",
    "solvers": "solver",
    "steps": "steps",
    "guidances": "guidance",
    "seeds": "seed",
}
_TYPES = {"checkpoints": int, "steps": int, "seeds": int}


def check(config: Any) -> None:
    """Refuses lists that would not be used, and values of the wrong kind.

    Raises:
        ConfigError: the field, what it has and what to do.
    """
    settings = config.evaluate
    given = [name for name in _LISTS if settings[name]]
    if settings.every_checkpoint:
        if settings.checkpoints:
            raise ConfigError(
                f"config.evaluate.checkpoints = {settings.checkpoints}: every_checkpoint = True "
                "takes all; leave one of the two out"
            )
        given.append("every_checkpoint")
    if given and (settings.images or not settings.count):
        reason = (
            f"images = {settings.images!r} are measured as they are"
            if settings.images
            else "count = 0 draws no samples; give the number to draw"
        )
        raise ConfigError(f"config.evaluate.{given[0]} has no effect: config.evaluate.{reason}")
    for name in _LISTS:
        wanted = _TYPES.get(name, str)
        for value in settings[name]:
            if type(value) is not wanted:
                raise ConfigError(
                    f"config.evaluate.{name} = {settings[name]}: {value!r} must be "
                    f"{'a whole number' if wanted is int else 'a string'}"
                )


def candidates(config: FrozenConfigDict, workdir: Workdir) -> Iterator[FrozenConfigDict]:
    """A config for each combination, checked; checkpoints vary slowest, in order.

    Raises:
        ConfigError: a setting that no config may have; all are looked at before the first is given.
    """
    settings = config.evaluate
    values = {field: settings[name] or (None,) for name, field in _LISTS.items()}
    if settings.every_checkpoint:
        values["checkpoint"] = checkpoints.steps(workdir.checkpoints)
        if not values["checkpoint"]:
            checkpoints.which(workdir.checkpoints)
    changed = []
    for chosen in itertools.product(*values.values()):
        other = ConfigDict(config.to_dict())
        for field, value in zip(values, chosen, strict=True):
            if value is not None:
                other.sample[field] = guidances(value) if field == "guidance" else value
        other.sample.count = settings.count
        changed.append(freeze(other))
        components.check(changed[-1])
    yield from changed


def guidances(joined: str) -> tuple[str, ...]:
    """The guidances of one entry of `config.evaluate.guidances`."""
    return tuple(part.strip() for part in joined.split(" + ")) if joined else ()
