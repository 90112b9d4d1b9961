"""Bits/dim of real images under a trained model: `python main.py --mode=likelihood`.

    <workdir>/likelihood/<name>/info.json  table.txt  images.npz  terms.csv  terms.png  chunks/

The number of image i is a function of the checkpoint, the method, the seed and i alone. Images come
in a random order that the seed fixes. A chunk of `config.likelihood.batch_size` images (rounded up
to share evenly over the devices) is stored as soon as it is done: a job that was killed goes on at
the first missing one, and a larger count uses what is there.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import diffusion
import input_pipeline
from pipelines import likelihood_report as reports
from pipelines.chunks import Chunks
from pipelines.sampling import check_trained, chunk_size
from training import checkpoints, components, tasks
from training.clock import Clock, Progress, rate
from training.components import ConfigError
from training.files import atomic_write, npz
from training.mesh import batch_sharding, make_mesh
from training.posthoc import is_posthoc
from training.workdir import Workdir, provenance

_METHOD = "config.likelihood.method"


def likelihood(config: Any, directory: str | os.PathLike[str]) -> None:
    """Measure `config.likelihood.count` images under a run's checkpoint, store and print it.

    Raises:
        ConfigError: the config is not that of the run, there is no such checkpoint, the method has
            no value for this model, or the images are not what the model is of.
    """
    workdir, settings = Workdir(directory), config.likelihood
    check_trained(workdir, config)
    if components.parse(config.task).name == "clip":
        raise ConfigError(
            f"config.task = {config.task!r}: has no likelihood; take --mode=evaluate or embed"
        )
    task = tasks.make_task(config)
    method = build_method(config)
    # Refused before anything is read.
    make_plan(method, task, {}, settings.method)
    source, images = held_out(config)
    count = settings.count or len(source)
    if count > len(source):
        raise ConfigError(f"config.likelihood.count = {count}: {images} has {len(source)} images")
    mesh = make_mesh(**config.mesh)
    ema = settings.ema or config.sample.ema
    params, step = _restore(workdir, ema, settings.checkpoint, task, mesh)
    plan = make_plan(method, task, params, settings.method)
    size = chunk_size(settings.batch_size, mesh)
    what = _identity(config, step, ema, images, source.fingerprint, size)
    if is_posthoc(ema):
        what["snapshots"] = checkpoints.snapshots(workdir.checkpoints, step)
    out = workdir.path / "likelihood" / _name(what)
    if _finished(out, count):
        _tell(f"all {count} images are measured already", out)
        return

    clock, chunks = Clock(), Chunks(out / "chunks", size)
    missing = chunks.missing(count)
    if missing:
        program = _program(config, task, method)
        _measure(config, task, program, params, plan, source, mesh, chunks, missing, clock)
    multihost_utils.sync_global_devices("measured")
    if jax.process_index() == 0:
        rows = chunks.read(count)
        results = reports.summary(rows, settings.method)
        split = clock.totals()
        results |= {
            "count": count,
            "made_by_this_start": len(missing) * size,
            "seconds": split,
            "images_per_second": rate(len(missing) * size, split) if missing else None,
            "provenance": provenance(),
        }
        # What it says is no longer so from here on; it comes back last.
        (out / "info.json").unlink(missing_ok=True)
        atomic_write(out / "images.npz", npz(**{k: v for k, v in rows.items() if v.ndim == 1}))
        table = reports.terms(rows)
        if table:
            atomic_write(out / "terms.csv", reports.csv(table))
            atomic_write(out / "terms.png", reports.draw(table, results, out.name))
        atomic_write(out / "table.txt", reports.text(results, table).encode())
        info = json.dumps(what | results, indent=2, allow_nan=False) + "\n"
        atomic_write(out / "info.json", info.encode())
    multihost_utils.sync_global_devices("stored")
    _tell("", out)


def _tell(text: str, out) -> None:
    if jax.process_index() == 0:
        if text:
            print(text)
        print((out / "table.txt").read_text(), end="")
        print(os.fspath(out), flush=True)


def build_method(config: Any) -> diffusion.likelihood.Method:
    """The method of `config.likelihood`, for the kind of data that the model is of.

    Raises:
        ConfigError: latents with a method that is of 8-bit images; attention without derivatives.
    """
    spec = config.likelihood.method
    method = components.build(diffusion.LIKELIHOOD_METHODS, spec, _METHOD)
    if isinstance(method, diffusion.likelihood.ODE) and config.model.get("attention") == "cudnn":
        raise ConfigError(
            "config.model.attention = 'cudnn': has no forward derivative, which 'ode' takes; add "
            "--config.model.attention=xla"
        )
    if config.data.field == "image":
        return method
    if not isinstance(method, diffusion.likelihood.ODE):
        raise ConfigError(
            f"{_METHOD} = {spec!r}: is of 8-bit images, and this run is of "
            f"{config.data.field!r}; take 'ode', which gives the density of latents"
        )
    return dataclasses.replace(method, dequantization="none")


def make_plan(method: diffusion.likelihood.Method, task: Any, params: dict, spec: str) -> Any:
    """The method's plan on the schedule, at its learned values where params have any."""
    learned = task.split(params)[1].get("schedule")
    schedule = task.schedule.bind(jax.device_get(learned)) if learned else task.schedule
    try:
        return method.plan(schedule, task.learned_variance)
    except ValueError as error:
        raise ConfigError(f"{_METHOD} = {spec!r}: {error}") from error


def held_out(config: Any) -> tuple[Any, str]:
    """The images to measure, and how a config names them.

    Raises:
        ConfigError: no such source or split, or one without the model's labels.
    """
    settings, field, images = config.likelihood, "config.likelihood.source", ""
    images = settings.source
    if not images:
        name = components.parse(config.data.source).name
        make = components.lookup(input_pipeline.SOURCES, name, "config.data.source")
        if "split" not in inspect.signature(make).parameters:
            raise ConfigError(
                f"config.likelihood.source = '': config.data.source = {config.data.source!r} has "
                "no splits; name the images to measure"
            )
        field = "config.likelihood.split gives the source"
        images = components.changed(config.data.source, split=settings.split)
    source = components.build(input_pipeline.SOURCES, images, field)
    classes = config.model.get("num_classes", 0)
    if classes and source.num_classes != classes:
        raise ConfigError(
            f"{field} = {images!r}: has {source.num_classes} classes, and the network "
            f"(config.model.num_classes) is told one of {classes}"
        )
    try:
        source.require((config.data.field,))
    except ValueError as error:
        raise ConfigError(f"{field} = {images!r}: {error}") from error
    return source, images


def _restore(workdir: Workdir, ema: str, step: int, task: Any, mesh) -> tuple[Any, int]:
    try:
        return checkpoints.restore_for_sampling(
            workdir.checkpoints, ema, task.init, mesh, step, averages=workdir.read_config().ema
        )
    except ConfigError as error:
        # Its fields are those of sampling.
        message = str(error).replace("config.sample.", "config.likelihood.")
        raise ConfigError(message) from error


def _identity(
    config: Any, step: int, ema: str, images: str, fingerprint: str, size: int
) -> dict[str, Any]:
    """All that decides which number an image gets."""
    fields = config.to_dict()
    return {
        "checkpoint": step,
        "likelihood": {
            "method": fields["likelihood"]["method"],
            "source": images,
            "fingerprint": fingerprint,
            "seed": fields["likelihood"]["seed"],
            "ema": ema,
            "batch_size": size,
        },
        "model": fields["model"],
        "diffusion": {
            name: fields["diffusion"][name] for name in ("schedule", "parameterization", "variance")
        },
        "data": {
            name: fields["data"][name] for name in ("image_size", "channels", "field", "scale")
        },
    }


def _name(what: dict[str, Any]) -> str:
    """A directory's name: what a person looks for, and a hash of all the rest."""
    settings = what["likelihood"]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    parts = (f"step{what['checkpoint']}", settings["ema"], settings["method"], digest)
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part).strip("_") for part in parts)


def _finished(out, count: int) -> bool:
    """Whether the figures are complete: info.json is written last."""
    path = out / "info.json"
    return path.exists() and json.loads(path.read_text())["count"] == count


def _program(config: Any, task: Any, method: diffusion.likelihood.Method):
    """(params, plan, seed, rows, batch) -> {name: array [batch ...]}."""
    field, scale = config.data.field, config.data.scale

    def measure(params, plan, seed, rows, batch):
        weights, learned = task.split(params)

        def network(x, time, condition):
            return task.network.apply(weights, x, time, condition)

        schedule = task.schedule.bind(learned.get("schedule", {}))
        denoiser = diffusion.denoiser(
            network, schedule, task.parameterization, task.learned_variance
        )
        x0 = diffusion.to_model(batch[field]) if field == "image" else scale * batch[field]
        condition = {"label": batch["label"]} if task.num_classes else None
        keys = diffusion.sample_keys(jax.random.key(seed), rows)
        result = method(denoiser, schedule, plan, x0, condition, keys)
        parts = dict(result.parts)
        if field != "image":
            # The density of what is stored, not of what the network sees.
            parts["scale"] = parts["prior"] * 0.0 - math.log2(scale)
        named = {"part": parts, "term": result.terms, "count": result.counts}
        return {f"{kind}/{k}": v for kind, values in named.items() for k, v in values.items()}

    return measure


def _measure(
    config, task, program, params, plan, source, mesh, chunks: Chunks, missing: list[int], clock
) -> None:
    sharding, field = batch_sharding(mesh), config.data.field
    loader = input_pipeline.make_loader(
        source,
        image_size=config.data.image_size,
        channels=config.data.channels,
        batch_size=chunks.size,
        seed=config.likelihood.seed,
        fields=(field, "label") if task.num_classes else (field,),
        workers=config.data.workers,
        on_bad_image=config.data.on_bad_image,
    )
    plan, seed = jax.tree.map(_plain, plan), np.uint32(config.likelihood.seed)

    def arguments(k: int):
        if loader.state()["batches"] != k:
            loader.restore(loader.state() | {"batches": k})
        local = next(loader)
        put = functools.partial(jax.make_array_from_process_local_data, sharding)
        batch = {name: put(rows, (chunks.size, *rows.shape[1:])) for name, rows in local.items()}
        rows = jax.device_put(chunks.rows(k), sharding)
        return params, plan, seed, rows, batch

    try:
        with clock("data"):
            args = arguments(missing[0])
        with clock("compile"):
            compiled = jax.jit(program, out_shardings=sharding).lower(*args).compile()
        progress = Progress(len(missing) * chunks.size, unit="image", every=5.0)
        for done, k in enumerate(missing, start=1):
            if done > 1:
                with clock("data"):
                    args = arguments(k)
            with clock("step"):
                arrays = jax.block_until_ready(compiled(*args))
            with clock("write"):
                chunks.write(k, args[3], **arrays)
            made = done * chunks.size
            progress.log(made, {"images/s": rate(made, clock.totals())})
        progress.close()
    finally:
        loader.close()


def _plain(leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf)
    return leaf if leaf.dtype == bool else leaf.astype(np.float32)
