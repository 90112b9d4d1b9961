"""A trained run that another one learns from."""

import functools
import os
from typing import Any

import jax
from jax.sharding import Mesh

from training import checkpoints
from training.components import ConfigError
from training.config import freeze
from training.workdir import Workdir


class Teacher:
    """The network of a work directory at its newest checkpoint: the average that it samples with.

    Nothing is read before the training asks, so that a student can be sampled without its teacher.
    """

    # The argument of a task that names it.
    argument = "teacher"

    def __init__(self, directory: str):
        self.directory = directory

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"config.task: {self.argument}={self.directory!r}: {message}")

    @functools.cached_property
    def config(self) -> Any:
        """Of the teacher's run."""
        try:
            return freeze(Workdir(self.directory).read_config())
        except ConfigError as error:
            raise self._error(str(error)) from error

    @functools.cached_property
    def task(self) -> Any:
        """What the teacher was trained for."""
        from training import tasks  # here alone: tasks have teachers

        return tasks.make_task(self.config)

    @functools.cached_property
    def abstract(self) -> Any:
        """Shapes of its parameters, those of the objective included."""
        return jax.eval_shape(self.task.init, jax.random.key(0))

    def check(self, student: Any) -> None:
        """Refuses a teacher that the student cannot learn from.

        Raises:
            ConfigError: no run, no checkpoint, or a field that must be the same is another.
        """
        if not hasattr(self.task, "scalars"):
            raise self._error(f"is a run of task {self.config.task!r}, which predicts no images")
        ours, theirs = student.config, self.config
        for section, field in (
            ("data", "image_size"),
            ("data", "channels"),
            ("data", "field"),
            ("diffusion", "schedule"),
            ("diffusion", "parameterization"),
            ("diffusion", "variance"),
            ("model", "num_classes"),
        ):
            mine, its = ours[section].get(field), theirs[section].get(field)
            if mine != its:
                raise self._error(
                    f"config.{section}.{field} is {its!r} there and {mine!r} here; the student "
                    "needs the same"
                )
        self._require_checkpoint()
        student.check_teacher(self)

    def _require_checkpoint(self) -> None:
        directory = Workdir(self.directory).checkpoints
        if not checkpoints.steps(directory):
            raise self._error(f"no complete checkpoint in {os.fspath(directory)}; train it first")

    def load(self, mesh: Mesh) -> Any:
        """Its parameters on the mesh."""
        workdir = Workdir(self.directory)
        params, _ = checkpoints.restore_for_sampling(
            workdir.checkpoints,
            self.config.sample.ema,
            self.task.init,
            mesh,
            averages=workdir.read_config().ema,
        )
        return params
