"""The training loop: `python main.py --mode=train`. It knows tasks only by their interface."""

import contextlib
import dataclasses
import logging
import math
import sys

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

import diffusion
import input_pipeline
from training import clock, components, contract, flops, images, posthoc, processes, tokens
from training import run as runs
from training.checkpoints import Checkpoints
from training.checkpoints import steps as steps_of
from training.clock import Clock, Progress
from training.components import ConfigError
from training.config import check_resumable
from training.exit_codes import Preempted, TrainingFailed
from training.files import atomic_write
from training.metrics import MetricsWriter
from training.preemption import Preemption
from training.watchdog import Watchdog
from training.workdir import Workdir

log = logging.getLogger(__name__)


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


def make_loader(config: ConfigDict, source, fields, tokenizer=None, share=(None, None)):
    """The stream of training batches of a config; `share` is `mesh.batch_share`."""
    augmentations = tuple(
        components.build(input_pipeline.AUGMENTATIONS, item, "config.data.augmentations")
        for item in config.data.augmentations
    )
    try:
        return input_pipeline.make_loader(
            source,
            image_size=config.data.image_size,
            channels=config.data.channels,
            batch_size=config.train.batch_size,
            seed=config.seed,
            augmentations=augmentations,
            fields=tuple(fields),
            workers=config.data.workers,
            process_index=share[0],
            process_count=share[1],
            on_bad_image=config.data.on_bad_image,
            tokenizer=tokenizer,
        )
    except ValueError as error:
        raise ConfigError(f"config.data: {error}") from error


def _restore_or_init(
    run: runs.Run, checkpoints: Checkpoints, loader, writer: MetricsWriter, timer: Clock
):
    """State of the newest checkpoint with data and metrics put back to it, or a fresh state."""
    restored = checkpoints.restore_newest(run.abstract_state)
    if restored is None:
        writer.rewind(0)
        with timer("compile"):
            return run.init_state(), 0
    state, position, step = restored
    writer.rewind(step)
    state = dataclasses.replace(state, frozen=run.frozen())
    loader.restore(position)
    log.info("resuming from the checkpoint of step %d", step)
    return state, step


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
    if posthoc.is_posthoc(name):
        # What it is made of is not there yet; the tracked average that is most like it.
        name = posthoc.nearest(config.ema, name)
    params = state.params if name == "params" else state.ema[name]
    pictures = run.task.preview(params, jax.random.key(config.sample.seed))
    return images.grid(np.asarray(diffusion.to_uint8(pictures)))


def _describe(run: runs.Run, workdir: Workdir) -> None:
    """The table of parameters, and a line on what runs where."""
    params = run.abstract_state.params
    table = parameter_overview.get_parameter_overview(params, include_stats="sharding")
    if jax.process_index() == 0:
        atomic_write(workdir.parameters, (table + "\n").encode())
    log.info(
        "%s parameters (%s) on %d x %s, mesh %s",
        f"{parameter_overview.count_parameters(params):,}",
        workdir.parameters,
        run.mesh.size,
        run.mesh.devices.flat[0].device_kind,
        dict(run.mesh.shape),
    )


class _Report:
    """Tells, at each log line, how the training goes and how fast."""

    def __init__(
        self, config: ConfigDict, run: runs.Run, writer: MetricsWriter, timer: Clock, first: int
    ):
        self._config, self._run, self._writer, self._clock = config, run, writer, timer
        self._last, self._first = first, first
        self._flops = flops.count_flops(run.train_step, run.abstract_state, run.batch_spec)
        self.progress = Progress(config.train.steps, done=first)

    def line(self, step: int, state) -> None:
        """Writes metrics and timing of the steps since the line before."""
        means = _mean_metrics(state)
        self._writer.scalars(step, means)
        split, done = self._clock.split(), step - self._last
        self._last = step
        speed = clock.rate(done * self._config.train.batch_size, split)
        seconds = sum(split.get(part, 0.0) for part in clock.RATE_PARTS)
        usage = flops.mfu(
            done * self._flops,
            seconds,
            self._run.mesh.size,
            self._config.model.dtype,
            self._config.log.peak_flops,
        )
        parts = {f"seconds/{part}": spent for part, spent in split.items()}
        timing = {"images_per_second": speed, "mfu": usage} | parts | flops.peak_memory()
        self._writer.timing(step, timing)
        shown = {"loss": means["loss"], "images/s": speed}
        if usage is not None:
            shown["mfu"] = usage
        left = self._clock.eta(step - self._first, self._config.train.steps - step)
        self.progress.log(step, shown, left)


class _Tracer:
    """Traces `count` steps with JAX's profiler, from the first log line on."""

    def __init__(self, workdir: Workdir, start: int, count: int):
        self._directory, self._start, self._stop = workdir.profile, start, start + count
        self._running = False

    def after(self, step: int, state) -> None:
        """Starts or stops the trace where this step is its border."""
        if self._start == self._stop:
            return
        if step == self._start:
            jax.profiler.start_trace(self._directory)
            self._running = True
        if step == self._stop:
            jax.block_until_ready(state)
            self.close()
            log.info("profile of steps %d to %d: %s", self._start + 1, step, self._directory)

    def close(self) -> None:
        """Ends a trace that is still going on: it would take memory for ever."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def train(config: ConfigDict, directory: str) -> bool:
    """Trains to `config.train.steps`, from the newest checkpoint of the work directory if any.

    Returns:
        Whether it was told to stop when nothing was left to train: nothing else is to begin then.

    Raises:
        ConfigError: before anything is compiled, where the config does not fit data, devices or
            the run that the directory holds.
        TrainingFailed: too many bad steps in a row.
        TryAgain: it was told to stop, or what it needs is not there just now; its work is safe.
    """
    source = make_source(config)
    run = runs.build(config)
    workdir = Workdir(directory)
    if workdir.config.exists():
        check_resumable(workdir.read_config(), config)
    if run.start and not steps_of(workdir.checkpoints):
        run.start.check()
    workdir.start(config, sys.argv)
    if hasattr(run.task, "embeddings"):
        contract.keep(run.task.embeddings, workdir)
    tokenizer = tokens.prepare(config, source, workdir) if "tokens" in run.batch_spec else None
    steps = config.train.steps

    with contextlib.ExitStack() as stack:

        def closing(thing):
            return stack.enter_context(contextlib.closing(thing))

        writer = closing(MetricsWriter(workdir, tensorboard=config.log.tensorboard))
        checkpoints = closing(
            Checkpoints(workdir.checkpoints, config.checkpoint.keep, config.checkpoint.keep_every)
        )
        loader = closing(make_loader(config, source, run.batch_spec, tokenizer, run.batch_share()))
        preemption = closing(Preemption())
        timer = Clock()
        watchdog = closing(Watchdog(config.train.stall_seconds, timer.part, processes.title()))
        with timer("restore"):
            state, first = _restore_or_init(run, checkpoints, loader, writer, timer)
        if first >= steps:
            log.info("step %d of %d: nothing left to train", first, steps)
            return False
        report = _Report(config, run, writer, timer, first)
        closing(report.progress)
        _describe(run, workdir)
        with timer("compile"):
            train_step = run.train_step.lower(run.abstract_state, run.batch_spec).compile()
        batches = closing(
            input_pipeline.device_batches(loader, run.batch_sharding(), config.data.prefetch)
        )
        tracer = closing(_Tracer(workdir, first + config.log.every, config.profile))
        for step in range(first + 1, steps + 1):
            with timer("data"):
                batch, position = next(batches)
            with timer("step"):
                state = train_step(state, batch)
            watchdog.beat(step)
            report.progress.update(step)
            if step % config.log.every == 0 or step == steps:
                with timer("step"):
                    # The only place where the host waits for the device.
                    jax.block_until_ready(state)
                _stop_if_halted(config, state, checkpoints)
                report.line(step, state)
            tracer.after(step, state)
            stop = preemption.reached()
            if stop or step == steps:
                with timer("checkpoint"):
                    _stop_if_halted(config, state, checkpoints)
                    checkpoints.save_now(step, state, position)
            elif step % config.checkpoint.every == 0 or checkpoints.due():
                with timer("checkpoint"):
                    _stop_if_halted(config, state, checkpoints)
                    checkpoints.save(step, state, position)
            if stop and step < steps:
                raise Preempted(
                    f"stopped by a signal after step {step} of {steps}, and saved; start the same "
                    "command again to go on"
                )
            if config.log.preview_every and step % config.log.preview_every == 0:
                with timer("preview"):
                    writer.images(step, _preview(config, run, state))
        return preemption.reached()
