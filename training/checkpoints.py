"""Checkpoints of a run, by Orbax: written in the background, atomic, one directory a step.

Each holds separate items (`training.checkpoint_layout`), so that a sampler reads one set of
parameters and nothing else.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from training import checkpoint_layout as layout
from training import damage, posthoc
from training import mesh as meshes
from training.components import ConfigError
from training.exit_codes import TryAgain
from training.fingerprint import fingerprints
from training.state import TrainState

log = logging.getLogger(__name__)

# Seconds between two tries to write at the most.
_LONGEST_PAUSE = 300.0


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint that cannot be written (a full disk, a directory that is gone) is told of and tried
    again, see `due`; what was written before stays. With several processes the run ends instead
    (TryAgain), as the others would wait for the one that failed.

    Args:
        directory: where they are; made when missing.
        keep: how many of the newest stay.
        keep_every: besides, each step divisible by it stays for good (0: none).
        pause: seconds before the first new try; each further one waits twice as long.
        patience: seconds that `save_now` tries for.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        keep: int = 3,
        keep_every: int = 0,
        pause: float = 5.0,
        patience: float = 3600.0,
    ):
        self.directory = epath.Path(directory)
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=True
        )
        self._first_pause, self._patience = pause, patience
        self._pause, self._retry_at = pause, None
        self._writing: int | None = None
        damage.quiet_orbax()
        self._open()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(steps(self.directory), default=None)

    def save(self, step: int, state: TrainState, data: Mapping) -> None:
        """Starts to write a checkpoint; returns once the state may be changed (donated) again."""
        self._wait()
        items = layout.as_items(state)
        meta = {"format": layout.FORMAT, "step": step, "arrays": fingerprints(items)}
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args = ocp.args.Composite(
            **arrays, data=ocp.args.JsonSave(dict(data)), meta=ocp.args.JsonSave(meta)
        )
        self._writing = step
        try:
            if self._manager is None:
                self._open()
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # Orbax and tensorstore raise many types
            self._failed(error)

    def due(self) -> bool:
        """Whether a checkpoint failed and another is to be saved now; to be asked every step."""
        self._poll()
        return self._retry_at is not None and time.monotonic() >= self._retry_at

    def save_now(self, step: int, state: TrainState, data: Mapping) -> None:
        """Saves and waits until it is written, trying again where it fails.

        Raises:
            TryAgain: it failed for `patience` seconds.
        """
        end = time.monotonic() + self._patience
        while True:
            self.save(step, state, data)
            self._wait()
            if self._retry_at is None:
                return
            if self._retry_at > end:
                raise TryAgain(
                    f"the checkpoint of step {step} could not be written to {self.directory} for "
                    f"{self._patience:.0f} s; {self._newest()}"
                )
            time.sleep(max(0.0, self._retry_at - time.monotonic()))

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, dict]:
        """The state, without `frozen`, and the loader's position, laid out as `abstract` says.

        Args:
            abstract: of `jax.ShapeDtypeStruct` with shardings; these may be of another number of
                devices than the one that saved.
            step: one of the directory's steps.

        Raises:
            ConfigError: it holds other arrays than `abstract`.
            damage.Damaged: what was read is not what was written.
        """
        self._wait()
        stored = self._read(abstract, step)
        layout.check_bits(stored)
        return layout.train_state(stored), stored.data

    def restore_newest(self, abstract: TrainState) -> tuple[TrainState, dict, int] | None:
        """(state, loader's position, step) of the newest whole checkpoint; None without any.

        Damaged ones that are newer are renamed to <step>.damaged, with a warning.

        Raises:
            ConfigError: all checkpoints are damaged; or one holds other arrays than `abstract`.
            TryAgain: a checkpoint cannot be read just now.
        """
        self._wait()
        there = damage.agreed_steps(steps(self.directory))
        broken: dict[int, str] = {}
        for step in reversed(there):
            stored, problem = damage.attempt(
                lambda step=step: self._read(abstract, step), layout.check_bits
            )
            if problem is None:
                for newer, what in broken.items():
                    damage.set_aside(self.directory / str(newer), what, step)
                self._manager.reload()
                return layout.train_state(stored), stored.data, step
            broken[step] = problem
        if broken:
            listed = "; ".join(f"step {step}: {what}" for step, what in broken.items())
            raise ConfigError(
                f"{self.directory}: no checkpoint can be read ({listed}); to train from step 0 "
                "again move them away, or take a new work directory"
            )
        return None

    def close(self) -> None:
        """Waits until what was started is written."""
        self._wait()
        if self._manager is not None:
            self._manager.close()

    def _open(self) -> None:
        if jax.process_index() == 0 and self.directory.exists():
            # What a killed process left half written.
            for rest in self.directory.glob("*.orbax-checkpoint-tmp*"):
                rest.rmtree()
        self._manager = ocp.CheckpointManager(self.directory.resolve(), options=self._options)

    def _read(self, abstract: TrainState, step: int) -> layout.Stored:
        path = (self.directory / str(step)).resolve()
        items = layout.as_items(abstract)
        arrays = layout.read_meta(path).get("arrays")
        layout.check_same_arrays(items, arrays, path)
        read = {name: layout.read_item(path, name, tree) for name, tree in items.items()}
        return layout.Stored(path, read, arrays, layout.read_json(path / "data"))

    def _poll(self) -> None:
        """Notes a failure of what is written in the background, if there is one by now."""
        if self._writing is None:
            return
        try:
            self._manager.check_for_errors()
        except Exception as error:
            self._failed(error)
        else:
            if not self._manager.is_saving_in_progress():
                self._succeeded()

    def _wait(self) -> None:
        if self._writing is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            self._failed(error)
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        self._writing, self._retry_at, self._pause = None, None, self._first_pause

    def _failed(self, error: Exception) -> None:
        step, self._writing = self._writing, None
        said = f"the checkpoint of step {step} could not be written ({damage.reason(error)})"
        if jax.process_count() > 1:
            raise TryAgain(f"{said}; {self._newest()}") from error
        self._drop_manager()
        log.warning("%s; %s; trying again in %.0f s", said, self._newest(), self._pause)
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _drop_manager(self) -> None:
        """A failed manager raises its error again, or completes what had failed; take a new one.

        That is opened after the pause, when threads that still write have come to their end, and
        clears what they wrote.
        """
        failed, self._manager = self._manager, None
        if failed is None:
            return
        for end in (failed.wait_until_finished, failed.wait_until_finished, failed.close):
            with contextlib.suppress(Exception):
                end()

    def _newest(self) -> str:
        there = steps(self.directory)
        return f"the newest one is of step {there[-1]}" if there else "there is none before it"


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

    def read() -> layout.Stored:
        arrays = layout.read_meta(path).get("arrays")
        return layout.Stored(path, {item: layout.read_item(path, item, abstract)}, arrays)

    stored, problem = damage.attempt(read, layout.check_bits)
    if problem is not None:
        raise ConfigError(
            f"{path} cannot be read ({problem}); take another with config.sample.checkpoint, there "
            f"are {', '.join(map(str, steps(directory)))}"
        )
    return stored.items[item]


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
