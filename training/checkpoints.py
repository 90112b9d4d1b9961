"""Checkpoints of a run, by Orbax: written in the background, atomic, one directory a step.

Each holds separate items, so that a sampler reads one set of parameters and nothing else:
`params`, one `ema.<name>` for each average, `training` (the rest of the train state), `data` (the
loader's position) and `meta`.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from training import mesh as meshes
from training import posthoc
from training.components import ConfigError
from training.state import TrainState

log = logging.getLogger(__name__)

# Of the layout above; a reader refuses what it does not know.
FORMAT = 1


def _items(state: TrainState) -> dict:
    """The state as checkpoint items."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    params, averages = fields.pop("params"), fields.pop("ema")
    # It is another run's, and comes from there.
    del fields["frozen"]
    if not fields["task"]:
        # Checkpoints of tasks without a state look as they did before there were any with one.
        del fields["task"]
    items = {f"ema.{name}": tree for name, tree in averages.items()}
    return {"params": params, **items, "training": fields}


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: where they are; made when missing.
        keep: how many of the newest stay.
        keep_every: besides, each step divisible by it stays for good (0: none).
    """

    def __init__(self, directory: epath.PathLike, keep: int = 3, keep_every: int = 0):
        self.directory = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.directory.resolve(), options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: Mapping) -> None:
        """Starts to write a checkpoint; returns once the state may be changed (donated) again."""
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **arrays,
                data=ocp.args.JsonSave(dict(data)),
                meta=ocp.args.JsonSave({"format": FORMAT, "step": step}),
            ),
            force=True,
        )

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, dict]:
        """The state, without `frozen`, and the loader's position, laid out as `abstract` says.

        Args:
            abstract: of `jax.ShapeDtypeStruct` with shardings; these may be of another number of
                devices than the one that saved.
            step: one of the directory's steps.
        """
        arrays = {name: ocp.args.StandardRestore(tree) for name, tree in _items(abstract).items()}
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **arrays, data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore()
            ),
        )
        _check_format(restored["meta"], self.directory / str(step))
        averages = {name: restored[f"ema.{name}"] for name in abstract.ema}
        training = {"task": {}} | restored["training"]
        state = TrainState(params=restored["params"], ema=averages, **training)
        return state, restored["data"]

    def close(self) -> None:
        """Waits until what was started is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _check_format(meta: Mapping, path: epath.Path) -> None:
    if meta["format"] != FORMAT:
        raise ConfigError(
            f"{path}: a checkpoint of format {meta['format']}; this code reads format {FORMAT}"
        )


def steps(directory: epath.PathLike) -> list[int]:
    """Steps that have a complete checkpoint, in order."""
    directory = epath.Path(directory)
    if not directory.exists():
        return []
    return sorted(ocp.utils.checkpoint_steps(directory.resolve()))


def which(directory: epath.PathLike, step: int = -1) -> int:
    """The step that `step` means: itself, or for -1 that of the newest checkpoint.

    Raises:
        ConfigError: the newest is asked for, and there is none.
    """
    if step != -1:
        return step
    if there := steps(directory):
        return there[-1]
    raise ConfigError(f"{directory}: no complete checkpoint; train first (--mode=train)")


def restore_params(
    directory: epath.PathLike,
    name: str,
    abstract,
    step: int = -1,
    averages: ConfigDict | None = None,
):
    """One set of parameters of a checkpoint, without the rest of the train state.

    Args:
        directory: of the checkpoints.
        name: 'params', the name of an average, or 'posthoc(std=...)', an average that was not
            tracked, made of those that are kept up to `step` (`training.posthoc`).
        abstract: the network's parameters, with shardings (`training.mesh.with_sharding`).
        step: of the checkpoint; -1: the newest.
        averages: `config.ema` of the run; only a reconstruction needs it.

    Returns:
        (parameters, step).
    """
    directory = epath.Path(directory)
    step, there = which(directory, step), steps(directory)
    if step not in there:
        raise ConfigError(
            f"config.sample.checkpoint: no checkpoint of step {step} in {directory}; there are "
            f"{', '.join(map(str, there)) or 'none'} (-1 takes the newest)"
        )
    if posthoc.is_posthoc(name):
        return _reconstruct(directory, name, abstract, step, averages or ConfigDict()), step
    return _read(directory, name, abstract, step), step


def _read(directory: epath.Path, name: str, abstract, step: int):
    path = (directory / str(step)).resolve()
    items = [p.name for p in path.iterdir()]
    item = name if name == "params" else f"ema.{name}"
    if item not in items:
        names = [i.removeprefix("ema.") for i in items if i == "params" or i.startswith("ema.")]
        raise ConfigError(
            f"config.sample.ema: {name!r} is not in {path}; there are {', '.join(sorted(names))}"
        )
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        _check_format(reader.restore(path / "meta"), path)
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(path / item, abstract)


def snapshots(directory: epath.PathLike, step: int) -> list[int]:
    """The checkpoints that a reconstruction at `step` is made of."""
    return [there for there in steps(directory) if 0 < there <= step]


@functools.partial(jax.jit, donate_argnums=0)
def _add(total, tree, weight):
    return jax.tree.map(lambda t, x: t + weight * x, total, tree)


def _reconstruct(directory: epath.Path, name: str, abstract, step: int, averages):
    """The weighted sum of stored averages; two trees are in memory at a time."""
    stds, kept = posthoc.tracked(averages, name), snapshots(directory, step)
    if len(kept) < 2:
        raise ConfigError(
            f"config.sample.ema = {name!r}: needs checkpoints of several steps up to {step}, and "
            f"{directory} has {len(kept)}; train with config.checkpoint.keep_every > 0, which "
            "keeps one for good each so many steps"
        )
    stored = [(at, key) for at in kept for key in stds]
    plan = posthoc.Reconstruction(
        [at for at, _ in stored], [stds[key] for _, key in stored], step, posthoc.width(name)
    )
    level = logging.WARNING if plan.mismatch > posthoc.LARGE_MISMATCH else logging.INFO
    log.log(
        level,
        "%s at step %d from %d averages (%s of steps %s): profile off by %.2g of its norm",
        name,
        step,
        len(stored),
        ", ".join(stds),
        ", ".join(map(str, kept)),
        plan.mismatch,
    )
    total = None
    for (at, key), weight in zip(stored, plan.weights.astype(np.float32), strict=True):
        tree = _read(directory, key, abstract, at)
        if total is None:
            total = jax.tree.map(jnp.zeros_like, tree)
        total = _add(total, tree, weight)
    return total


def restore_for_sampling(directory, name: str, init, mesh, step: int = -1, averages=None):
    """`restore_params` of what `init(key)` makes, laid out over the mesh."""
    abstract = jax.eval_shape(init, jax.random.key(0))
    target = meshes.with_sharding(abstract, meshes.state_sharding(abstract, mesh))
    return restore_params(directory, name, target, step, averages)
