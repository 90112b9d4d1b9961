"""From a config to everything that training needs: task, mesh, state and step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from training import ema, init_from, mesh, optimizer, state, step, tasks
from training.components import ConfigError


@dataclasses.dataclass(frozen=True)
class Run:
    """One experiment, built but not started; nothing is compiled or allocated yet."""

    task: tasks.Task
    mesh: Mesh
    abstract_state: state.TrainState
    init_state: Callable[[], state.TrainState]
    # The other run that its parameters start from; only `init_state` reads it.
    start: init_from.Start | None
    batch_spec: dict[str, jax.ShapeDtypeStruct]
    # Loads what the task only reads (`TrainState.frozen`); {} for most.
    frozen: Callable[[], dict]
    # (state, batch) -> state, jitted, the state donated.
    train_step: Callable

    def batch_sharding(self) -> NamedSharding:
        """How batches lie on the mesh."""
        return mesh.batch_sharding(self.mesh)

    def batch_share(self) -> tuple[int, int]:
        """(index, count): which part of each batch this process loads."""
        return mesh.batch_share(self.mesh)


def build(
    config: ConfigDict, devices=None, teacher_configs: Mapping[str, Any] | None = None
) -> Run:
    """Builds the run of a config.

    Args:
        config: checked by `training.config.validate`.
        devices: of the mesh; all devices when None.
        teacher_configs: of teachers by name, which are then not looked for: such a run can be
            compiled and not started.
    """
    device_mesh = mesh.make_mesh(**config.mesh, devices=devices)
    ways = mesh.batch_ways(device_mesh)
    micro = config.train.batch_size // config.train.accumulate
    if micro % ways:
        raise ConfigError(
            f"config.train.batch_size: {config.train.batch_size} over config.train.accumulate = "
            f"{config.train.accumulate} is {micro} examples, which {ways} devices (data x fsdp) "
            "cannot share evenly; take a multiple"
        )
    task = tasks.make_task(config)
    teachers = getattr(task, "teachers", {})
    if config.init.workdir and teachers and hasattr(task, "start"):
        raise ConfigError(
            f"config.init.workdir = {config.init.workdir!r}: config.task = {config.task!r} starts "
            "from its teacher; leave config.init.workdir empty, or take a task without one"
        )
    abstract_frozen = {}
    for name, teacher in teachers.items():
        if name in (teacher_configs or {}):
            teacher.config = teacher_configs[name]
        else:
            teacher.check(task)
        shapes = teacher.abstract
        abstract_frozen[name] = mesh.with_sharding(shapes, mesh.state_sharding(shapes, device_mesh))

    def frozen() -> dict:
        return {name: teacher.load(device_mesh) for name, teacher in teachers.items()}

    rate = optimizer.learning_rate(config.optimizer, config.train.steps)
    transform = optimizer.make_optimizer(config.optimizer, rate)
    ema_rates = ema.make_emas(config.ema, config.train.batch_size)
    spec = {
        name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=mesh.batch_sharding(device_mesh))
        for name, s in task.batch_spec(config.train.batch_size).items()
    }
    init = functools.partial(
        state.initial_state,
        task,
        transform,
        tuple(ema_rates),
        step.metric_names(task, spec, abstract_frozen),
        config.seed,
    )
    abstract, init_state = state.sharded_init(init, device_mesh, abstract_frozen)
    start = init_from.Start(config.init, abstract.params) if config.init.workdir else None
    train_step = step.make_train_step(
        task,
        transform,
        rate,
        ema_rates,
        device_mesh,
        accumulate=config.train.accumulate,
        log_every=config.log.every,
        max_bad_steps=config.train.max_bad_steps,
        sam_rho=config.optimizer.sam_rho,
    )
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return Run(
        task=task,
        mesh=device_mesh,
        abstract_state=abstract,
        init_state=lambda: init_state(frozen(), start.load(device_mesh) if start else {}),
        start=start,
        frozen=frozen,
        batch_spec=spec,
        train_step=jax.jit(
            train_step,
            in_shardings=(placed, mesh.batch_sharding(device_mesh)),
            out_shardings=placed,
            donate_argnums=0,
        ),
    )
