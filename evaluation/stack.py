"""The evaluation of a stack: `python main.py --mode=evaluate` on its work directory."""

import json
import os
from typing import Any

import numpy as np

from evaluation import STACK_METRICS
from evaluation.job import run_metrics
from pipelines import generate
from pipelines.text_to_image import TextToImage
from training import components
from training.components import ConfigError
from training.workdir import Workdir

_FIELD = "config.evaluate.metrics"


def evaluate(config: Any, directory: str | os.PathLike[str]) -> None:
    """Run every metric of `config.evaluate.metrics` on the pictures that a stack makes.

    As `evaluation.job.evaluate`: a row in <workdir>/evaluation/<metric>.jsonl each, and none is
    computed twice. Pictures are kept under <workdir>/generated, so that a killed job goes on.

    Raises:
        ConfigError: no metric is named, or the stages cannot make pictures.
    """
    if not config.evaluate.metrics:
        raise ConfigError(
            f"{_FIELD}: empty; name at least one, (\"caption_accuracy(split='test')\",)"
        )
    metrics = {
        spec: components.build(STACK_METRICS, spec, _FIELD) for spec in config.evaluate.metrics
    }
    pipeline = TextToImage(config, directory)

    def draw(captions):
        numbers = np.arange(len(captions), dtype=np.int32)
        out, images = generate.draw(pipeline, config, directory, captions, numbers)
        print(os.fspath(out / "grid.png"), flush=True)
        return images

    about = {"stages": pipeline.identity, "seed": config.generate.seed}
    # As it is read back from a row.
    about = json.loads(json.dumps(about))
    run_metrics(Workdir(directory), metrics, about, lambda metric: metric(pipeline, draw, config))
