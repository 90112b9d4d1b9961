"""Feature extractors, by the names that protocols call them.

`EXTRACTORS` maps a name to a function of literals that gives an `Extractor`: it finds and reads the
weights. `Runner` runs one over many images. A new one is one file and one line here.
"""

from collections.abc import Callable

from evaluation.extractors.base import Extractor, Runner
from evaluation.extractors.classifier import classifier
from evaluation.extractors.clip import CaptionEncoder, clip, clip_run
from evaluation.extractors.dinov2 import dinov2
from evaluation.extractors.inception import inception

EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "inception": inception,
    "clip": clip,
    "dinov2": dinov2,
    # Runs of this code: their numbers compare with none that are published.
    "clip_run": clip_run,
    "classifier": classifier,
}

__all__ = ["EXTRACTORS", "CaptionEncoder", "Extractor", "Runner"]
