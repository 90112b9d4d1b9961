"""A run that starts from another run's parameters: `config.init`."""

import functools
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from training import checkpoint_layout, checkpoints, posthoc, tasks
from training import mesh as meshes
from training.components import ConfigError, nearest
from training.config import load, validate
from training.init_plan import Plan, make_plan
from training.state import by_path
from training.workdir import Workdir

log = logging.getLogger(__name__)

# Names in a log line.
_NAMED = 20


class Start:
    """The beginning of a run at the parameters of another run.

    Nothing is read before `check` or `load`, so that a run can be resumed without the other one.

    Args:
        settings: `config.init`, with a work directory.
        params: shapes of this run's parameters.
    """

    def __init__(self, settings: ConfigDict, params: Any):
        self._settings = settings
        self._ours = _shapes(params)
        self._workdir = Workdir(settings.workdir)

    def check(self) -> None:
        """Refuses what cannot be started from.

        Raises:
            ConfigError: no such run, checkpoint or average, or parameters that do not fit.
        """
        _ = self._config, self._plan

    def load(self, mesh: Mesh) -> dict[str, jax.Array]:
        """Values by the path of ours, each laid out over the mesh as its shape says."""
        plan = self._plan
        target = meshes.with_sharding(self._theirs, meshes.state_sharding(self._theirs, mesh))
        try:
            params, _ = checkpoints.restore_params(
                self._workdir.checkpoints, self._average, target, self._step, self._config.ema
            )
        except ConfigError as error:
            raise self._error(str(error).replace("config.sample.", "config.init.")) from error
        log.info(
            "parameters of %s, step %d, %r: %s",
            self._settings.workdir,
            self._step,
            self._average,
            "; ".join(_told(plan)),
        )
        values = by_path(params)
        return {path: values[source] for path, source in plan.sources.items()}

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"config.init.workdir = {self._settings.workdir!r}: {message}")

    @functools.cached_property
    def _config(self) -> ConfigDict:
        """Of the other run."""
        try:
            return self._workdir.read_config()
        except ConfigError as error:
            raise self._error(str(error)) from error

    @functools.cached_property
    def _average(self) -> str:
        return self._settings.ema or self._config.sample.ema

    @functools.cached_property
    def _step(self) -> int:
        """Of the checkpoint, the same on each process, also where the other run still goes on."""
        step, directory = self._settings.checkpoint, self._workdir.checkpoints
        there = checkpoints.steps(directory)
        if not there:
            raise self._error(f"no complete checkpoint in {directory}; train it first")
        if step != -1 and step not in there:
            raise self._error(
                f"config.init.checkpoint = {step}: there are {', '.join(map(str, there))} "
                "(-1 takes the newest)"
            )
        step = there[-1] if step == -1 else step
        if jax.process_count() == 1:
            return step
        return int(multihost_utils.broadcast_one_to_all(np.int32(step)))

    @functools.cached_property
    def _theirs(self) -> Any:
        """Shapes and types of the other run's parameters, as they are stored."""
        path, name = self._workdir.checkpoints / str(self._step), self._average
        if posthoc.is_posthoc(name):
            name = self._tracked(name)
        items = [item.name for item in path.iterdir()]
        names = ["params", *(item[4:] for item in items if item.startswith("ema."))]
        if name not in names:
            raise self._error(f"config.init.ema = {name!r}: {nearest(name, names)}")
        item = name if name == "params" else f"ema.{name}"
        stored = ocp.StandardCheckpointHandler().metadata(epath.Path(path / item).resolve()).tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored)

    def _tracked(self, name: str) -> str:
        """An average that the reconstruction `name` is made of, and has the shapes of."""
        try:
            tracked = posthoc.tracked(self._config.ema, name)
        except ConfigError as error:
            raise self._error(str(error).replace("config.sample.", "config.init.")) from error
        if len(checkpoints.snapshots(self._workdir.checkpoints, self._step)) < 2:
            raise self._error(
                f"config.init.ema = {name!r}: needs checkpoints of several steps up to "
                f"{self._step}; that run has one"
            )
        return next(iter(tracked))

    @functools.cached_property
    def _plan(self) -> Plan:
        return make_plan(self._settings, self._ours, _shapes(self._theirs))


def store(directory: str | os.PathLike[str], config: ConfigDict, params: Any) -> None:
    """Makes a work directory of parameters from elsewhere, such as published weights.

    It can be sampled, evaluated and started from, as a run that was trained to step 0.

    Args:
        directory: where there is no run yet.
        config: of which `params` are the parameters; its `sample.ema` is stored as 'params'.
        params: as a reader of `models.pretrained` gives them.

    Raises:
        ConfigError: the parameters are not those of the config, or there is a run.
    """
    workdir = Workdir(directory)
    if workdir.config.exists():
        raise ConfigError(f"{os.fspath(workdir)} holds a run; give a new directory")
    config = load(config.to_dict())
    config.sample.ema = "params"
    validate(config)
    needed = jax.eval_shape(tasks.make_task(config).init, jax.random.key(0))
    wanted, given = _shapes(needed).items(), _shapes(params).items()
    if other := sorted(wanted ^ given):
        path, shape = other[0]
        raise ConfigError(
            f"the parameters are not those of the config: {path} {shape} is "
            + ("missing" if other[0] in wanted else "not of its network")
        )
    workdir.start(config, sys.argv)
    with ocp.CheckpointManager(workdir.checkpoints.resolve()) as manager:
        arrays = jax.tree.map(lambda have, want: np.asarray(have, want.dtype), params, needed)
        meta = ocp.args.JsonSave({"format": checkpoint_layout.FORMAT, "step": 0})
        items = ocp.args.Composite(params=ocp.args.StandardSave(arrays), meta=meta)
        manager.save(0, args=items)


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in by_path(params).items()}


def _told(plan: Plan) -> Iterator[str]:
    """What a log line says of a plan."""
    yield f"{len(plan.sources) - len(plan.padded)} taken"
    for paths, what in (
        (plan.padded, "padded with zeros"),
        (plan.fresh, "fresh"),
        (plan.unused, "there are not used"),
    ):
        more = f", and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
        named = f" ({', '.join(paths[:_NAMED])}{more})" if paths else ""
        yield f"{len(paths)} {what}{named}"
