"""The evaluation of a stack: `python main.py --mode=evaluate` on its work directory."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation import STACK_METRICS
from evaluation.rows import run_metrics
from evaluation.stack_metrics import StackMetric, captioned
from pipelines import generate
from pipelines.text_to_image import TextToImage
from training import components, processes
from training.components import ConfigError
from training.workdir import Workdir

_FIELD = "config.evaluate.metrics"


def evaluate(config: Any, directory: str | os.PathLike[str]) -> None:
    """Run every metric of `config.evaluate.metrics` on the pictures that a stack makes.

    As `evaluation.job.evaluate`: a row in <workdir>/evaluation/<metric>.jsonl each, and none is
    computed twice. Pictures are kept under <workdir>/generated, so that a killed job goes on.

    Raises:
        ConfigError: no metric is named, one has a mistake, or the stages cannot make pictures.
    """
    if not config.evaluate.metrics:
        raise ConfigError(
            f"{_FIELD}: empty; name at least one, (\"caption_accuracy(split='test')\",)"
        )
    metrics = build(config.evaluate.metrics, config)
    measure(metrics, TextToImage(config, directory), config, directory)


def build(specs: Sequence[str], config: Any) -> dict[str, StackMetric]:
    """Metrics by what they are called in the config of a stack, before anything is drawn.

    Raises:
        ConfigError: a mistake in one of them, or the stack's pairs have no such split.
    """
    made = {spec: components.build(STACK_METRICS, spec, _FIELD) for spec in specs}
    # To open a source may mean to list all of its files.
    asking = {metric.split: spec for spec, metric in made.items()}
    for split, spec in asking.items():
        try:
            captioned(config, split)
        except ConfigError as error:
            raise ConfigError(f"{_FIELD} = {spec!r}: {error}") from error
    return made


def measure(
    metrics: Mapping[str, StackMetric],
    pipeline: TextToImage,
    config: Any,
    directory: str | os.PathLike[str],
) -> dict[str, dict[str, Any]]:
    """Values of each metric on what a pipeline makes; a row of `directory` each, as `evaluate`."""

    def draw(captions):
        numbers = np.arange(len(captions), dtype=np.int32)
        out, images = generate.draw(pipeline, config, directory, captions, numbers)
        if processes.first():
            print(os.fspath(out / "grid.png"), flush=True)
        return images

    about = {"stages": pipeline.identity, "seed": config.generate.seed}
    return run_metrics(
        Workdir(directory), dict(metrics), about, lambda metric: metric(pipeline, draw, config)
    )
