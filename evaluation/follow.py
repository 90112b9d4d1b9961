"""Evaluation beside a training run: `python main.py --mode=follow`."""

import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from evaluation.job import evaluate
from training import checkpoints
from training.components import ConfigError
from training.config import freeze
from training.processes import on_first
from training.workdir import Workdir

log = logging.getLogger(__name__)
# A process tells the others how many steps it saw, and at most so many of them at a time.
_AT_A_TIME = 64


def follow(config: Any, directory: str | os.PathLike[str]) -> None:
    """Run `evaluation.job.evaluate` on each checkpoint of a run as it is committed, in order.

    Ends when the checkpoint of the run's last step is evaluated; `config.train.steps` is read again
    at each look, as a run may be prolonged. One that is deleted before, or while, it is evaluated
    (`config.checkpoint.keep`) is passed over with a warning.

    Raises:
        ConfigError: the config names checkpoints, which are followed here; what `evaluate` raises
            of a checkpoint that is there; or no new one came for `config.evaluate.patience`
            seconds.
    """
    workdir, settings = Workdir(directory), config.evaluate
    for name in ("checkpoints", "every_checkpoint", "images"):
        if settings[name]:
            raise ConfigError(
                f"config.evaluate.{name} = {settings[name]!r}: --mode=follow takes each checkpoint "
                "as it comes; leave it out, or take --mode=evaluate"
            )
    if not settings.count:
        raise ConfigError(
            "config.evaluate.count = 0: --mode=follow draws samples of each checkpoint; give the "
            "number of samples"
        )
    for step in _arrivals(workdir, settings.poll, settings.patience):
        log.info("evaluating the checkpoint of step %d", step)
        try:
            evaluate(_at(config, step), directory)
        # Orbax and the file system have many ways to say that a file went away.
        except Exception as error:
            if _agreed(step in checkpoints.steps(workdir.checkpoints)):
                raise
            log.warning(
                "the checkpoint of step %d was deleted under its evaluation: %s", step, error
            )


def _at(config: Any, step: int) -> Any:
    other = ConfigDict(config.to_dict())
    other.sample.checkpoint = step
    return freeze(other)


def _arrivals(workdir: Workdir, poll: float, patience: float) -> Iterator[int]:
    """Steps of new checkpoints in order, until that of the run's end."""
    done, since = -1, time.monotonic()
    while True:
        new = _new(workdir, done)
        for step in new:
            yield step
            done = step
        last = workdir.read_config().train.steps
        if _agreed(done >= last):
            return
        now = time.monotonic()
        if new:
            since = now
        elif patience and _agreed(now - since > patience):
            raise ConfigError(
                f"config.evaluate.patience = {patience}: no checkpoint after step {max(done, 0)} "
                f"for so many seconds, and {os.fspath(workdir)} is to have {last} steps; is the "
                "training running?"
            )
        if not new:
            time.sleep(poll)


def _new(workdir: Workdir, done: int) -> list[int]:
    """Steps of complete checkpoints after `done`, the same on all processes."""
    steps = np.full(_AT_A_TIME, -1)
    if jax.process_index() == 0:
        there = [step for step in checkpoints.steps(workdir.checkpoints) if step > done]
        steps[: len(there)] = there[:_AT_A_TIME]
    return [step for step in multihost_utils.broadcast_one_to_all(steps).tolist() if step >= 0]


def _agreed(mine: bool) -> bool:
    """What process 0 says."""
    return on_first(lambda: mine)
