"""Samples of a trained model: `python main.py --mode=sample`.

    <workdir>/samples/<name>/000000.png ...  samples.npz  grid.png  info.json  chunks/

Sample i is a function of the checkpoint, the sampler, the seed and i. Samples are made in chunks of
`config.sample.batch_size` indices (rounded up to share evenly over the devices); a chunk is stored
as soon as it is made, whole, also where fewer are asked for. So a job that was killed goes on at
the first missing chunk, and a larger or smaller count uses what is there.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffusion.pixels import to_uint8
from pipelines.chunks import Chunks
from pipelines.pictures import GRID_IMAGES, finished, store
from training import checkpoints, companions, guidance, processes, tasks
from training.clock import Clock, Progress, rate
from training.components import ConfigError, parse
from training.config import differences
from training.mesh import batch_sharding, batch_ways, make_mesh
from training.posthoc import is_posthoc
from training.sampler import build_sampler, sample_labels
from training.workdir import Workdir, provenance

# Fields that say what is sampled; they have to be those of the training run.
_TRAINED = ("task", "data.image_size", "data.channels", "model.*", "diffusion.*")
# Fields of the model that say only how it is computed.
_COMPUTED = ("model.dtype", "model.attention", "model.remat", "model.dropout")
# Fields of `config.sample` that a compiled program is given when it runs.
_GIVEN = ("ema", "seed", "labels", "guidance")


def sample(config: Any, directory: str | os.PathLike[str]) -> None:
    """Make `config.sample.count` samples of a run's checkpoint and store them.

    With several processes each stores the rows of its own devices and process 0 puts them together;
    the work directory has to be shared between the hosts.

    Raises:
        ConfigError: the config is not that of the run, or there is no such checkpoint.
    """
    samples, count = Samples(config, Workdir(directory)), config.sample.count
    if processes.on_first(lambda: finished(samples.out, count)):
        _tell(f"all {count} samples are there already: {samples.out / 'grid.png'}")
        return
    drawn = samples.draw(count)
    if jax.process_index() == 0:
        info = samples.what | drawn | {"count": count, "provenance": provenance()}
        _store(samples, count, info)
    multihost_utils.sync_global_devices("merged")
    _tell(os.fspath(samples.out / "grid.png"))


class Samples:
    """The samples of one setting of `config.sample`: what they are, where, and how they are drawn.

    Attributes:
        what: all that decides which image an index gives, as JSON values.
        out: their directory.
        chunks: their rows, 'images' and 'labels', as far as they are drawn.
        labelled: whether a label means anything.

    Args:
        config: of the run, with the setting.
        workdir: of the run.
        programs: compiled programs by what they depend on, to share between settings that differ in
            checkpoint, average, seed or the numbers of a guidance alone.

    Raises:
        ConfigError: the config is not that of the run, or its task draws no images.
    """

    def __init__(self, config: Any, workdir: Workdir, programs: dict[Any, Any] | None = None):
        check_trained(workdir, config)
        self.config, self.workdir = config, workdir
        self.task = _images_task(config)
        self.mesh = make_mesh(**config.mesh)
        others = companions.restore(config, workdir, self.mesh)
        self.sampler = build_sampler(config, self.task, others)
        self.labelled = self.sampler.num_classes > 0
        self._programs = {} if programs is None else programs
        size = chunk_size(config.sample.batch_size, self.mesh)
        step = checkpoints.which(workdir.checkpoints, config.sample.checkpoint)
        what = _identity(config, step, size)
        if is_posthoc(config.sample.ema):
            what["snapshots"] = checkpoints.snapshots(workdir.checkpoints, step)
        if any(others):
            what["companions"] = [other and other.identity for other in others]
        if hasattr(self.task, "sample_condition"):
            what["told"] = {"task": config.task, "source": config.data.source}
        self.what, self.out = what, workdir.samples / _name(what)
        self.chunks = Chunks(self.out / "chunks", size)

    def draw(self, count: int) -> dict[str, Any]:
        """Draw what is missing of the first `count` samples, and say what that took.

        Raises:
            ConfigError: something is missing, and its checkpoint is not there.
        """
        clock, made = Clock(), 0
        if missing := self.chunks.missing(count):
            self._draw(missing, clock)
            made = len(missing) * self.chunks.size
        multihost_utils.sync_global_devices("sampled")
        split = clock.totals()
        return {
            "network_calls_per_image": self.sampler.calls_per_image,
            "made_by_this_start": made,
            "seconds": split,
            "images_per_second": rate(made, split) if made else None,
        }

    def _draw(self, missing: list[int], clock: Clock) -> None:
        config, chunks, sampler = self.config, self.chunks, self.sampler
        params, _ = checkpoints.restore_for_sampling(
            self.workdir.checkpoints,
            config.sample.ema,
            self.task.init,
            self.mesh,
            self.what["checkpoint"],
            averages=self.workdir.read_config().ema,
        )
        inputs, rows = sampler.inputs(params), batch_sharding(self.mesh)
        told_of = getattr(self.task, "sample_condition", lambda indices: {})

        def arguments(k: int):
            indices = chunks.rows(k)
            labels = sample_labels(config.sample.labels, sampler.num_classes, indices)
            placed = jax.device_put((indices, labels, told_of(indices)), rows)
            return params, inputs, np.uint32(config.sample.seed), *placed

        with clock("compile"):
            program = self._program(arguments(missing[0]), rows)
        progress = Progress(len(missing) * chunks.size, unit="image", every=5.0)
        for done, k in enumerate(missing, start=1):
            with clock("step"):
                args = arguments(k)
                images = jax.block_until_ready(program(*args))
            with clock("write"):
                chunks.write(k, args[-3], images=images, labels=args[-2])
            made = done * chunks.size
            progress.log(made, {"images/s": rate(made, clock.totals())})
        progress.close()

    def _program(self, arguments: tuple[Any, ...], rows: Any) -> Callable[..., Any]:
        """The compiled sampler; that of another setting if only what it is given differs."""
        settings = {k: v for k, v in self.what["sample"].items() if k not in _GIVEN}
        fixed = {k: v for k, v in self.what.items() if k not in ("checkpoint", "snapshots")}
        # Guidances stand in the structure of the inputs, but for their numbers.
        key = json.dumps(fixed | {"sample": settings}), jax.tree.structure(arguments)
        if key not in self._programs:

            def draw(params, inputs, seed, indices, labels, told):
                images = self.sampler.draw(
                    params, inputs, jax.random.key(seed), indices, labels, told
                )
                return to_uint8(images)

            lowered = jax.jit(draw, out_shardings=rows).lower(*arguments)
            self._programs[key] = lowered.compile()
        return self._programs[key]


def _images_task(config: Any) -> Any:
    """The task of a run whose samples are images.

    Raises:
        ConfigError: they are something else, or it has none.
    """
    if config.data.field != "image":
        raise ConfigError(
            f"config.data.field = {config.data.field!r}: samples of this run are latents, and the "
            "autoencoder that makes images of them is not part of it; --mode=sample is for images"
        )
    if parse(config.task).name == "classifier":
        raise ConfigError(
            "config.task = 'classifier': has no samples; name this run in config.sample.guidance "
            "of a diffusion run, classifier(scale=1.0, workdir=...)"
        )
    if parse(config.task).name == "clip":
        raise ConfigError(
            f"config.task = {config.task!r}: has no samples; take --mode=evaluate or embed"
        )
    task = tasks.make_task(config)
    if not hasattr(task, "image_shape"):
        raise ConfigError(
            f"config.task = {config.task!r}: draws embeddings, no images; --mode=evaluate "
            "measures them (config.evaluate.metrics = ('prior_quality',))"
        )
    return task


def _tell(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def check_trained(workdir: Workdir, config: Any) -> None:
    """Refuses a config that describes another model than the one in the work directory."""
    for field, trained, given in differences(workdir.read_config(), config):
        if any(fnmatch(field, name) for name in _TRAINED) and field not in _COMPUTED:
            raise ConfigError(
                f"config.{field} = {given!r}, but {os.fspath(workdir)} was trained with "
                f"{trained!r}; leave out --config to sample with the run's own"
            )


def chunk_size(batch_size: int, mesh: Mesh) -> int:
    """The batch size, rounded up to share evenly over the devices."""
    ways = batch_ways(mesh)
    return -(-batch_size // ways) * ways


def _identity(config: Any, step: int, chunk: int) -> dict[str, Any]:
    """All that decides which image an index gives."""
    fields = config.to_dict()
    settings = {k: v for k, v in fields["sample"].items() if k not in ("count", "checkpoint")}
    return {
        "checkpoint": step,
        "sample": settings | {"batch_size": chunk},
        "model": fields["model"],
        "diffusion": {
            name: fields["diffusion"][name] for name in ("schedule", "parameterization", "variance")
        },
        "image": {name: fields["data"][name] for name in ("image_size", "channels")},
    }


def _name(what: dict[str, Any]) -> str:
    """A directory's name: what a person looks for, and a hash of all the rest."""
    settings = what["sample"]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    parts = (
        f"step{what['checkpoint']}",
        settings["ema"],
        settings["solver"],
        settings["grid"],
        f"{settings['steps']}steps",
        guidance.part_of_name(settings["guidance"]),
        f"seed{settings['seed']}",
        digest,
    )
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part).strip("_") for part in parts)


def _store(samples: Samples, count: int, info: dict[str, Any]) -> None:
    rows = samples.chunks.read(count)
    images, labels = rows["images"], rows["labels"]
    arrays = {"arr_0": images} | ({"arr_1": labels} if samples.labelled else {})
    texts = [str(label) for label in labels] if samples.labelled else None
    shown = images[:GRID_IMAGES]
    if (beside := getattr(samples.task, "beside", None)) is not None:
        shown = beside(shown, np.arange(len(shown), dtype=np.int32))
    store(samples.out, arrays, info, texts, shown)
