"""The training loop: `python main.py --mode=train`. It knows tasks only by their interface."""

import contextlib
import logging
import math

import jax
import numpy as np
from ml_collections import ConfigDict

import diffusion
import input_pipeline
from training import components, flops, images
from training import run as runs
from training.checkpoints import Checkpoints
from training.clock import Clock
from training.components import ConfigError
from training.metrics import MetricsWriter
from training.workdir import Workdir

log = logging.getLogger(__name__)


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says since which step and what is safe."""


def make_source(config: ConfigDict):
    """The training examples of a config, checked against the network's conditioning."""
    source = components.build(input_pipeline.SOURCES, config.data.source, "config.data.source")
    classes = config.model.get("num_classes", 0)
    if classes and source.num_classes != classes:
        raise ConfigError(
            f"config.model.num_classes: {classes}, but {config.data.source} has "
            f"{source.num_classes} classes"
        )
    return source


def make_loader(config: ConfigDict, source, fields):
    """The stream of training batches of a config."""
    return input_pipeline.make_loader(
        source,
        image_size=config.data.image_size,
        channels=config.data.channels,
        batch_size=config.train.batch_size,
        seed=config.seed,
        augmentations=tuple(config.data.augmentations),
        fields=tuple(fields),
        workers=config.data.workers,
        on_bad_image=config.data.on_bad_image,
    )


def compile_step(config: ConfigDict, run: runs.Run):
    """The training step as an executable, and the FLOPs of one call."""
    lowered = run.train_step.lower(run.abstract_state, run.batch_spec)
    return lowered.compile(), flops.count(lowered, repeats=config.train.accumulate)


def _restore_or_init(run: runs.Run, checkpoints: Checkpoints, loader, writer: MetricsWriter):
    """State of the newest checkpoint with data and metrics put back to it, or a fresh state."""
    latest = checkpoints.latest()
    if latest is None:
        return run.init_state(), 0
    state, position = checkpoints.restore(run.abstract_state, latest)
    loader.restore(position)
    writer.rewind(latest)
    log.info("resuming from the checkpoint of step %d", latest)
    return state, latest


def _stop_if_halted(config: ConfigDict, state, checkpoints: Checkpoints) -> None:
    """Raises once `max_bad_steps` steps in a row were skipped."""
    if int(state.bad_streak) < config.train.max_bad_steps:
        return
    latest = checkpoints.latest()
    safe = "no checkpoint yet" if latest is None else f"last good checkpoint: step {latest}"
    raise TrainingFailed(
        f"loss or gradient was NaN or infinite in every step from {int(state.bad_since)} on, "
        f"{int(state.bad_streak)} in a row (config.train.max_bad_steps); {safe}, in "
        f"{checkpoints.directory}. Lower config.optimizer.learning_rate or "
        "config.optimizer.clip_norm, or look at the data of that step, and start again"
    )


def _mean_metrics(state) -> dict[str, float]:
    """Means over the window that ends with this state, NaN where every step of it was skipped."""
    sums, window, bad_steps = jax.device_get((state.metrics, state.window, state.bad_steps))
    means = {name: float(s) / window if window else math.nan for name, s in sums.items()}
    return means | {"bad_steps": int(bad_steps)}


def _preview(config: ConfigDict, run: runs.Run, state) -> np.ndarray:
    name = config.sample.ema
    params = state.params if name == "params" else state.ema[name]
    pictures = run.task.preview(params, jax.random.key(config.sample.seed))
    return images.grid(np.asarray(diffusion.to_uint8(pictures)))


def train(config: ConfigDict, directory: str) -> None:
    """Trains to `config.train.steps`, from the newest checkpoint of the work directory if any."""
    source = make_source(config)
    run = runs.build(config)
    workdir = Workdir(directory)
    workdir.start(config)
    steps, every = config.train.steps, config.log.every

    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(
            contextlib.closing(MetricsWriter(workdir, tensorboard=config.log.tensorboard))
        )
        checkpoints = stack.enter_context(
            contextlib.closing(
                Checkpoints(
                    workdir.checkpoints, config.checkpoint.keep, config.checkpoint.keep_every
                )
            )
        )
        loader = stack.enter_context(contextlib.closing(make_loader(config, source, run.batch_spec)))
        clock = Clock()
        with clock("compile"):
            state, first = _restore_or_init(run, checkpoints, loader, writer)
            train_step, step_flops = compile_step(config, run)
        batches = stack.enter_context(
            contextlib.closing(
                input_pipeline.device_batches(
                    loader, run.batch_sharding(), depth=config.data.prefetch
                )
            )
        )

        for step in range(first + 1, steps + 1):
            with clock("data"):
                batch, position = next(batches)
            with clock("step"):
                state = train_step(state, batch)
            if step % every == 0 or step == steps:
                # The only place where the host waits for the device.
                with clock("step"):
                    jax.block_until_ready(state)
                _stop_if_halted(config, state, checkpoints)
                writer.scalars(step, _mean_metrics(state))
            if step % config.checkpoint.every == 0 or step == steps:
                with clock("checkpoint"):
                    _stop_if_halted(config, state, checkpoints)
                    checkpoints.save(step, state, position)
            if config.log.preview_every and step % config.log.preview_every == 0:
                with clock("preview"):
                    writer.images(step, _preview(config, run, state))
