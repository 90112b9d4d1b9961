"""The evaluation job: `python main.py --mode=evaluate`. Metrics over a directory of samples."""

import hashlib
import io
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from evaluation import METRICS
from training import checkpoints, components, contract, encoder, tasks
from training.components import ConfigError
from training.files import atomic_write
from training.mesh import make_mesh
from training.workdir import Workdir, provenance

# Fields of config.sample that what a model draws depends on.
_SAMPLED = ("ema", "solver", "grid", "steps", "last_step", "clip", "eps_after_clip", "guidance")


def evaluate(config: Any, directory: str | os.PathLike[str]) -> None:
    """Run every metric of `config.evaluate.metrics` on a run.

    Most are of samples, the newest finished ones. Those that need the model get its encoder, at
    `config.sample.checkpoint` with the parameters of `config.sample.ema`.

    Each adds one row to <workdir>/evaluation/<metric>.jsonl: the metric as written in the config,
    its values, which samples (name and checksum) with all that is known of how they were made, or
    which parameters, and what computed it. A row that is there for the same metric and the same
    samples or parameters is not computed again, so the job can be started as often as one likes.

    Raises:
        ConfigError: no metric is named, or there are no samples, or no checkpoint where a metric
            is of the model.
    """
    workdir = Workdir(directory)
    if not config.evaluate.metrics:
        raise ConfigError("config.evaluate.metrics: empty; name at least one, ('class_accuracy',)")
    metrics = {
        spec: components.build(METRICS, spec, "config.evaluate.metrics")
        for spec in config.evaluate.metrics
    }
    of = {"encoder": {}, "model": {}, "samples": {}}
    for spec, metric in metrics.items():
        of[getattr(metric, "needs", "samples")][spec] = metric
    if of["encoder"]:
        clip = encoder.load(directory, config.sample.ema, config.sample.checkpoint)
        about = {"checkpoint": clip.step, "ema": config.sample.ema}
        run_metrics(workdir, of["encoder"], about, lambda metric: metric(clip))
    if of["model"]:
        _evaluate_model(config, workdir, of["model"])
    if of["samples"]:
        _evaluate_samples(config, workdir, of["samples"])


def _evaluate_samples(config: Any, workdir: Workdir, metrics: dict[str, Callable]) -> None:
    samples = newest_samples(workdir)
    data = (samples / "samples.npz").read_bytes()
    about = {"samples": samples.name, "sha256": hashlib.sha256(data).hexdigest()}
    arrays = np.load(io.BytesIO(data))
    images, labels = arrays["arr_0"], arrays.get("arr_1")
    info = json.loads((samples / "info.json").read_text())
    run = lambda metric: metric(images, labels, config)  # noqa: E731
    run_metrics(workdir, metrics, about, run, {"info": info})
    if jax.process_index() == 0:
        print(os.fspath(samples / "grid.png"), flush=True)


def newest_samples(workdir: Workdir) -> epath.Path:
    """The directory of samples that was finished last.

    Raises:
        ConfigError: there is none.
    """
    infos = list(workdir.samples.glob("*/info.json"))
    if not infos:
        raise ConfigError(
            f"{os.fspath(workdir.samples)}: no samples yet; make some first (--mode=sample)"
        )
    newest = max(infos, key=lambda path: (json.loads(path.read_text())["provenance"]["time"], path))
    return newest.parent


def _evaluate_model(config: Any, workdir: Workdir, metrics: dict[str, Callable]) -> None:
    task = tasks.make_task(config)
    if hasattr(task, "embeddings"):
        contract.check_kept(task.embeddings, workdir)
    settings = config.sample
    params, step = checkpoints.restore_for_sampling(
        workdir.checkpoints,
        settings.ema,
        task.init,
        make_mesh(**config.mesh),
        settings.checkpoint,
        averages=workdir.read_config().ema,
    )
    fields = config.to_dict()["sample"]
    about = {"checkpoint": step, "sample": {k: fields[k] for k in _SAMPLED}}
    about = json.loads(json.dumps(about))
    run_metrics(workdir, metrics, about, lambda metric: metric(task, params, config))


def run_metrics(
    workdir: Workdir,
    metrics: dict[str, Callable],
    about: dict[str, Any],
    run: Callable[[Callable], dict[str, Any]],
    more: dict[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """The values of each metric, kept as a row and printed.

    `about` is what they depend on, `more` goes with it.
    """
    found = {}
    done = {spec: _find(_read(_path(workdir, spec)), {"metric": spec} | about) for spec in metrics}
    # Every process has looked before the first one writes.
    multihost_utils.sync_global_devices("evaluate")
    for spec, metric in metrics.items():
        row = done[spec]
        if row is None:
            row = _row(spec, run(metric)) | about | (more or {})
            _append(_path(workdir, spec), row)
        if jax.process_index() == 0:
            print(f"{spec}: {json.dumps(row['values'])}", flush=True)
        found[spec] = row["values"]
    return found


def _row(spec: str, values: dict[str, Any]) -> dict[str, Any]:
    what = provenance()
    # The diff is long and the same in every row; run.json and info.json have theirs.
    what["code"] = {name: what["code"].get(name) for name in ("commit", "dirty")}
    return {"metric": spec, "values": values, "provenance": what}


def _path(workdir: Workdir, spec: str) -> epath.Path:
    return workdir.evaluation / f"{components.parse(spec)[0]}.jsonl"


def _read(path: epath.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _find(rows: list[dict[str, Any]], wanted: dict[str, Any]) -> dict[str, Any] | None:
    return next((row for row in rows if wanted.items() <= row.items()), None)


def _append(path: epath.Path, row: dict[str, Any]) -> None:
    if jax.process_index() != 0:
        return
    before = path.read_bytes() if path.exists() else b""
    atomic_write(path, before + json.dumps(row, allow_nan=False).encode() + b"\n")
