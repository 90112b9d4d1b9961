"""The evaluation job, `python main.py --mode=evaluate`: metrics of a run, or of any images."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

import input_pipeline
from evaluation import METRICS, candidates, features, image_files, reference_files, references
from evaluation.extractors import Extractor
from evaluation.image_sets import Drawn, Given, ImageSet, Stored
from evaluation.protocols import Protocol
from evaluation.references import Reference
from evaluation.rows import run_metrics
from training import checkpoints, components, contract, encoder, processes, tasks
from training.clock import Clock
from training.components import ConfigError
from training.mesh import make_mesh
from training.workdir import Workdir

_FIELD = "config.evaluate.metrics"
# Fields of config.sample that what a model draws depends on.
_SAMPLED = ("ema", "solver", "grid", "steps", "last_step", "clip", "eps_after_clip", "guidance")


def evaluate(config: Any, directory: str | os.PathLike[str]) -> None:
    """Run every metric of `config.evaluate.metrics` on a run, or on images made by anyone.

    Most are of samples: those of all settings in `config.evaluate`, drawn as far as they are
    missing, or the newest finished ones. Those that need the model get its encoder, at
    `config.sample.checkpoint` with the parameters of `config.sample.ema`.

    Each adds one row to <workdir>/evaluation/<metric>.jsonl: the metric as written in the config,
    its values, which samples with all that is known of how they were made, or which parameters, and
    what computed it. A row that is there for the same metric and the same samples or parameters is
    not computed again, and samples and features are stored chunk by chunk: so the job can be killed
    at any time and started as often as one likes.

    Raises:
        ConfigError: no metric is named, or what one needs is missing; before anything is drawn
            where that can be told.
    """
    workdir = Workdir(directory)
    if not config.evaluate.metrics:
        raise ConfigError(f"{_FIELD}: empty; name at least one, ('class_accuracy',)")
    candidates.check(config)
    metrics = {spec: components.build(METRICS, spec, _FIELD) for spec in config.evaluate.metrics}
    of = {"encoder": {}, "model": {}, "samples": {}, "features": {}}
    for spec, metric in metrics.items():
        of[getattr(metric, "needs", "samples")][spec] = metric
    if of["encoder"]:
        clip = encoder.load(directory, config.sample.ema, config.sample.checkpoint)
        about = {"checkpoint": clip.step, "ema": config.sample.ema}
        run_metrics(workdir, of["encoder"], about, lambda metric: metric(clip))
    if of["model"]:
        _evaluate_model(config, workdir, of["model"])
    if of["samples"] or of["features"]:
        _evaluate_images(config, workdir, of["samples"], of["features"])


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
    run_metrics(workdir, metrics, about, lambda metric: metric(task, params, config))


def _evaluate_images(
    config: Any,
    workdir: Workdir,
    metrics: Mapping[str, Callable],
    protocols: Mapping[str, Protocol],
) -> None:
    # Protocols of one network share what it says of an image.
    outputs: dict[str, dict[str, None]] = {}
    for protocol in protocols.values():
        outputs.setdefault(protocol.extractor, {}).update(dict.fromkeys(protocol.outputs()))
    made: dict[str, Extractor] = {}
    seen, mesh = {}, make_mesh(**config.mesh)

    @functools.cache
    def reference(extractor: Extractor, kept: tuple[str, ...]) -> Reference:
        return reference_of(config, extractor, kept, workdir, mesh)

    for spec, protocol in protocols.items():
        if protocol.extractor not in made:
            made[protocol.extractor] = protocol.make_extractor(config.evaluate.weights)
        protocol.check_outputs(made[protocol.extractor])
        of = made[protocol.extractor], tuple(sorted(outputs[protocol.extractor]))
        seen[spec] = _Seen(config, workdir, protocol, *of, reference)
    for images in image_sets(config, workdir):
        for item in seen.values():
            item.check(images)
        prepare = functools.cache(images.prepare)

        def run(metric: Callable, images=images, prepare=prepare) -> dict[str, Any]:
            prepare()
            return metric(images.rows(0, images.count), images.labels, config)

        run_metrics(workdir, metrics, images.about, run, images.info)
        for spec, item in seen.items():
            item.measure(spec, images, prepare)
        if jax.process_index() == 0 and (grid := images.directory.parent / "grid.png").exists():
            print(os.fspath(grid), flush=True)


def image_sets(config: Any, workdir: Workdir) -> Iterator[ImageSet]:
    """The sets of images that `config.evaluate` names, one after the other.

    Raises:
        ConfigError: there are none, or one cannot be drawn.
    """
    if config.evaluate.images:
        yield Given(config.evaluate.images, workdir)
    elif not config.evaluate.count:
        yield Stored(workdir)
    else:
        programs: dict[Any, Any] = {}
        for candidate in candidates.candidates(config, workdir):
            yield Drawn(candidate, workdir, programs)


class _Seen:
    """A protocol with its network and its reference; `outputs` of the network are kept."""

    def __init__(
        self,
        config: Any,
        workdir: Workdir,
        protocol: Protocol,
        extractor: Extractor,
        outputs: tuple[str, ...],
        reference: Callable[[Extractor, tuple[str, ...]], Reference],
    ):
        self.workdir, self.protocol, self.config = workdir, protocol, config
        self.extractor, self.outputs = extractor, outputs
        self.mesh = make_mesh(**config.mesh)
        self.reference = Reference("none", {}, {}, {})
        if any(metric.of_reference for metric in protocol.built()):
            self.reference = reference(extractor, outputs)
        self.about = {
            "reference": dict(self.reference.identity),
            "extractor": {"name": self.extractor.name, **self.extractor.identity},
        }

    def check(self, images: ImageSet) -> None:
        """Refuses images that the protocol cannot measure."""
        self.protocol.check(self.reference, images.count, images.name)

    def measure(self, spec: str, images: ImageSet, prepare: Callable[[], None]) -> None:
        """A row of these images, if there is none."""
        clock = Clock()

        def run(protocol: Protocol) -> dict[str, Any]:
            prepare()
            chunks = features.extract(
                images,
                self.extractor,
                self.outputs,
                functools.partial(_features_directory, images, self.extractor, self.outputs),
                batch_size=self.config.evaluate.batch_size,
                mesh=self.mesh,
                clock=clock,
            )
            values: dict[str, Any] = {}
            with clock("metric"):
                # One process is enough; where it fails all have to know.
                processes.on_first(
                    lambda: values.update(protocol(chunks.read(images.count), self.reference))
                )
            return values

        def more() -> dict[str, Any]:
            seconds = {"seconds": clock.totals()}
            return {**images.info(), "reference_name": self.reference.name, **seconds}

        run_metrics(self.workdir, {spec: self.protocol}, images.about | self.about, run, more)


def _features_directory(
    images: ImageSet, extractor: Extractor, outputs: tuple[str, ...], rows: int
) -> epath.Path:
    what = [extractor.name, dict(extractor.identity), outputs]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    return images.directory / f"{extractor.name}-{key}-{rows}"


def reference_of(
    config: Any, extractor: Extractor, outputs: tuple[str, ...], workdir: Workdir, mesh: Any
) -> Reference:
    """What `config.evaluate.reference` names, as the extractor sees it.

    Features of images are kept in <workdir>/evaluation/references.

    Raises:
        ConfigError: there is no such file or source, or it does not do.
    """
    given, where = config.evaluate.reference, "config.evaluate.reference"
    settings = {"outputs": outputs, "batch_size": config.evaluate.batch_size, "mesh": mesh}
    cache = workdir.evaluation / "references"
    try:
        if given and epath.Path(os.path.expanduser(given)).exists():
            path = os.path.expanduser(given)
            if not path.endswith((".npz", ".pkl")):
                return references.compute(image_files.read(path), extractor, cache, **settings)
            sizes = {name: extractor.outputs[name] for name in outputs}
            found = reference_files.read(path, sizes)
            return references.completed(found, extractor, cache, **settings)
        source = _source(given, config, where)
        data = config.data
        images = references.SourceImages(
            source, data.image_size, data.channels, on_bad_image=data.on_bad_image
        )
        return references.compute(images, extractor, cache, **settings)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where} = {given!r}: {error}") from error


def _source(given: str, config: Any, where: str) -> Any:
    if not given:
        return components.build(input_pipeline.SOURCES, config.data.source, "config.data.source")
    if "/" in given and "(" not in given:
        raise ConfigError(f"{where} = {given!r}: there is no such file or directory")
    return components.build(input_pipeline.SOURCES, given, where)
